"""One alignment as a document for programs; its picture is drawn in :mod:`pyassemble.report.picture`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.report.labels import element_labels
from pyassemble.report.picture import draw_alignment
from pyassemble.transfer.matching import layer_score

if TYPE_CHECKING:
    from pyassemble.network.layers import LayerSequence
    from pyassemble.transfer import Alignment

__all__ = ["ALIGNMENT_FORMAT", "ALIGNMENT_VERSION", "alignment_json", "draw_alignment"]

ALIGNMENT_FORMAT = "pyassemble.alignment"
ALIGNMENT_VERSION = 1


def alignment_json(alignment: Alignment) -> dict[str, Any]:
    """The JSON form of an alignment: only dicts, lists, strings, numbers and booleans.

    ``source`` and ``target`` hold the networks' ``layers`` (name, kind, shape; the kind of a layer without weights is
    null), the number of ``scored`` ones, and the ``blocks`` as half-open ranges of layers. ``pairs`` refer to the
    layers by index and by name, with the score of the two shapes.
    """
    return {
        "format": ALIGNMENT_FORMAT,
        "version": ALIGNMENT_VERSION,
        "matching": alignment.matching,
        "standardization": alignment.standardization,
        "approximate": alignment.approximate,
        "score": alignment.score,
        "directed_similarity": alignment.directed,
        "source": _network(alignment.source),
        "target": _network(alignment.target),
        "pairs": [_pair(alignment, source, target) for source, target in alignment.indices],
    }


def _network(sequence: LayerSequence) -> dict[str, Any]:
    labels = element_labels(sequence)
    return {
        "scored": sequence.scored,
        "approximate": sequence.approximate,
        "layers": [
            {"name": layer.name, "kind": layer.kind, "shape": [int(size) for size in layer.shape]}
            for layer in sequence.layers
        ],
        "blocks": [
            {"label": label, "start": start, "stop": stop}
            for label, (start, stop, is_block) in zip(labels, sequence.elements, strict=True)
            if is_block
        ],
    }


def _pair(alignment: Alignment, source: int, target: int) -> dict[str, Any]:
    source_layer, target_layer = alignment.source.layers[source], alignment.target.layers[target]
    return {
        "source": source_layer.name,
        "target": target_layer.name,
        "source_index": int(source),
        "target_index": int(target),
        "score": layer_score(source_layer, target_layer),
    }
