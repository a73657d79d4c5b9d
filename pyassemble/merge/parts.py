"""Tensors that a wide network holds in pieces: each teacher's part of a norm, or of a block-diagonal weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.merge.layout import Places


@dataclass(frozen=True)
class Part:
    """A piece of one of the architecture's tensors, as the wide network holds it.

    Attributes:
        name: In the wide network's state.
        positions: By dimension, where its slices lie in the whole tensor; a dimension that is not named is whole.
    """

    name: str
    positions: dict[int, Tensor]

    def put(self, value: Tensor, whole: Tensor) -> None:
        """Writes the piece into the whole tensor."""
        grid = []
        for dim, size in enumerate(value.shape):
            at = self.positions[dim] if dim in self.positions else torch.arange(size)
            grid.append(at.to(value.device).reshape([-1 if d == dim else 1 for d in range(value.ndim)]))
        whole[tuple(grid)] = value


class WideState(Mapping[str, Tensor]):
    """A wide network's tensors by the names of the architecture's state_dict, without a gradient.

    A tensor that is held in pieces is put together when it is asked for, zero where no piece is: never is more than one
    of them there beside the pieces.

    Args:
        graph: The wide network.
        parts: The tensors that it holds in pieces.
        places: Where channels lie in each whole tensor, by dimension.
        factors: What to multiply into a tensor along a dimension, by the tensor's name: (dimension, (size,)).
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        parts: Mapping[str, Sequence[Part]],
        places: Mapping[str, Mapping[int, Places]],
        factors: Mapping[str, tuple[int, Tensor]] | None = None,
    ) -> None:
        self._held = graph.state_dict()
        self._parts, self._places, self._factors = parts, places, factors or {}
        pieces = {part.name for parts_ in parts.values() for part in parts_}
        self._names = [*(name for name in self._held if name not in pieces), *parts]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._parts:
            value: Tensor = self._held[name]
        else:
            pieces = self._parts[name]
            first = self._held[pieces[0].name]
            shape = list(first.shape)
            for dim, places in self._places[name].items():
                shape[dim] = places.size
            value = first.new_zeros(shape)
            for part in pieces:
                part.put(self._held[part.name], value)
        if name in self._factors:
            dim, factor = self._factors[name]
            value = value * factor.reshape([-1 if d == dim else 1 for d in range(value.ndim)]).to(value.dtype)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
