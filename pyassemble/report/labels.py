"""What to call the blocks and layers of a network where there is room for one short name."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.network.layers import LayerSequence

ELLIPSIS = "…"


def element_labels(sequence: LayerSequence) -> list[str]:
    """One label for each top-level element of a network.

    A layer is called by its name, a block by the dotted prefix its layers share (``blocks.3.1``). Blocks that share
    none, or the same one as another block, are called by their first and last layer.
    """
    names = [[layer.name for layer in sequence.layers[start:stop]] for start, stop, _ in sequence.elements]
    labels = [common_prefix(run) for run in names]
    count = Counter(labels)
    return [
        label if label and count[label] == 1 else _first_and_last(run) for label, run in zip(labels, names, strict=True)
    ]


def element_of_layer(sequence: LayerSequence) -> list[int]:
    """For each layer, the index of the top-level element it belongs to."""
    return [index for index, (start, stop, _) in enumerate(sequence.elements) for _ in range(start, stop)]


def common_prefix(names: Sequence[str]) -> str:
    """The longest run of whole dotted parts with which all names begin; a single name is its own prefix."""
    shared: list[str] = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def within(name: str, prefix: str) -> str:
    """A layer's name without the label of the block it stands under, where the name begins with that."""
    return name.removeprefix(f"{prefix}.")


def shape_text(shape: Sequence[int]) -> str:
    """A shape in print: ``32×3×3×3``."""
    return "×".join(map(str, shape)) or "scalar"


def shortened(text: str, width: int) -> str:
    """The text, with its middle left out where it is longer than ``width`` characters."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + ELLIPSIS + text[len(text) - (width - 1 - head) :]


def _first_and_last(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} {ELLIPSIS} {names[-1]}"
