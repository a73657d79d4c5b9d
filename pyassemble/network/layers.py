"""A standardized network: a sequence of layers, some grouped into blocks (DPIAT, section on standardization)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


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

    The layers are held as columns: a network is aligned far more often than its layers are looked at one by one.

    Attributes:
        names: Name of each layer, as in :class:`Layer`.
        kinds: Kind of each.
        shapes: Shape of each.
        elements: The top level, covering the layers without gaps.
        approximate: Whether names and shapes were all that was known of the network (SPEC 1.7).
    """

    names: tuple[str, ...]
    kinds: tuple[str | None, ...]
    shapes: tuple[tuple[int, ...], ...]
    elements: tuple[Element, ...]
    approximate: bool = False

    @classmethod
    def of(cls, layers: Iterable[Layer], elements: Iterable[Element], *, approximate: bool = False) -> LayerSequence:
        """A sequence from its layers."""
        rows = tuple(layers)
        names, kinds, shapes = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(names, kinds, shapes, tuple(elements), approximate)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, flattened, in order."""
        return tuple(map(Layer, self.names, self.kinds, self.shapes))

    @cached_property
    def scored(self) -> int:
        """Number of layers that carry a weight: the network's alignment score with itself."""
        # An empty tensor has nothing to give or take.
        return sum(kind is not None and 0 not in shape for kind, shape in zip(self.kinds, self.shapes, strict=True))

    def flat(self) -> LayerSequence:
        """The same layers without blocks."""
        elements = tuple(Element(i, i + 1, False) for i in range(len(self.names)))
        return LayerSequence(self.names, self.kinds, self.shapes, elements, self.approximate)
