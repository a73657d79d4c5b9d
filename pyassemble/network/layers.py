"""A standardized network: a sequence of layers, some grouped into blocks (DPIAT, section on standardization)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Layer(NamedTuple):
    """One element of the alignment.

    Attributes:
        name: Name of the module (or of the tensor, where a module holds several) as in ``named_modules()``.
        kind: What it may be paired with, e.g. ``"Conv2d"``; ``None`` for a layer that carries no weight.
        shape: Shape of the scored weight; ``()`` for a layer that carries none.
    """

    name: str
    kind: str | None
    shape: tuple[int, ...]


class Element(NamedTuple):
    """A run ``layers[start:stop]`` at the top level: one layer, or a block of layers."""

    start: int
    stop: int
    is_block: bool


@dataclass(frozen=True)
class LayerSequence:
    """What alignment sees of a network: its layers in order, and which of them form a block.

    Attributes:
        layers: All layers, flattened, in order.
        elements: The top level, covering ``layers`` without gaps.
        approximate: Whether names and shapes were all that was known of the network (SPEC 1.7).
    """

    layers: tuple[Layer, ...]
    elements: tuple[Element, ...]
    approximate: bool = False

    @cached_property
    def scored(self) -> int:
        """Number of layers that carry a weight: the network's alignment score with itself."""
        return sum(layer.kind is not None for layer in self.layers)

    def flat(self) -> LayerSequence:
        """The same layers without blocks."""
        elements = tuple(Element(i, i + 1, False) for i in range(len(self.layers)))
        return LayerSequence(self.layers, elements, self.approximate)
