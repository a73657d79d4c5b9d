"""One alignment as a document for programs, and that read back; its picture is in :mod:`pyassemble.report.picture`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.report.labels import element_labels, shape_text
from pyassemble.report.page import Section, folded, paragraph, picture, table
from pyassemble.report.picture import alignment_figure, draw_alignment
from pyassemble.report.tables import alignment_summary
from pyassemble.transfer import Alignment
from pyassemble.transfer.matching import layer_score

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALIGNMENT_FORMAT",
    "ALIGNMENT_VERSION",
    "SIMILARITY_FORMAT",
    "SIMILARITY_VERSION",
    "alignment_from_json",
    "alignment_json",
    "alignment_section",
    "draw_alignment",
    "similarity_section",
]

ALIGNMENT_FORMAT = "pyassemble.alignment"
ALIGNMENT_VERSION = 1
SIMILARITY_FORMAT = "pyassemble.similarity"
SIMILARITY_VERSION = 1


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


def alignment_from_json(document: Mapping[str, Any]) -> Alignment:
    """The alignment of which :func:`alignment_json` gave the document."""
    return Alignment(
        _sequence(document["source"]),
        _sequence(document["target"]),
        tuple((pair["source_index"], pair["target_index"]) for pair in document["pairs"]),
        document["score"],
        document["matching"],
        document["standardization"],
    )


def alignment_section(
    document: Mapping[str, Any], *, source_name: str = "source", target_name: str = "target"
) -> Section:
    """What a page shows of an alignment: its picture and its pairs.

    Args:
        document: From :func:`alignment_json`.
        source_name: What to call the source.
        target_name: What to call the target.
    """
    alignment = alignment_from_json(document)
    with alignment_figure(alignment, source_name=source_name, target_name=target_name) as figure:
        drawn = picture(figure)
    rows = []
    for s, t in alignment.indices:
        source, target = alignment.source.layers[s], alignment.target.layers[t]
        shapes = shape_text(source.shape), shape_text(target.shape)
        rows.append((source.name, target.name, *shapes, f"{layer_score(source, target):.3f}"))
    head = ("source layer", "target layer", "source shape", "target shape", "score")
    return Section(
        f"{source_name} → {target_name}",
        (paragraph(alignment_summary(alignment)), drawn, folded("All pairs", table(head, rows))),
    )


def similarity_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of a similarity: its numbers, and the alignment.

    Args:
        document: What ``pyassemble similarity --json`` writes.
    """
    section = alignment_section(document["alignment"], source_name=document["source"], target_name=document["target"])
    rows = [("directed, source → target", document["directed"]["source_to_target"])]
    if document["symmetric"] is not None:
        rows += [("directed, target → source", document["directed"]["target_to_source"])]
        rows += [("symmetric", document["symmetric"])]
    return Section(
        f"Similarity of {section.title}",
        (table(("similarity", ""), [(name, f"{value:.4f}") for name, value in rows]), *section.parts),
    )


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


def _sequence(document: Mapping[str, Any]) -> LayerSequence:
    layers = [Layer(row["name"], row["kind"], tuple(row["shape"])) for row in document["layers"]]
    elements: list[Element] = []
    for block in (*document["blocks"], {"start": len(layers), "stop": len(layers)}):
        done = elements[-1].stop if elements else 0
        elements += [Element(single, single + 1, False) for single in range(done, block["start"])]
        if block["stop"] > block["start"]:
            elements.append(Element(block["start"], block["stop"], True))
    return LayerSequence.of(layers, elements, approximate=document["approximate"])


def _pair(alignment: Alignment, source: int, target: int) -> dict[str, Any]:
    source_layer, target_layer = alignment.source.layers[source], alignment.target.layers[target]
    return {
        "source": source_layer.name,
        "target": target_layer.name,
        "source_index": int(source),
        "target_index": int(target),
        "score": layer_score(source_layer, target_layer),
    }
