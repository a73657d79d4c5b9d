"""Where the channels of each teacher lie along the one dimension in which a tensor of the wide student is wider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyassemble.network.groups import Groups


@dataclass(frozen=True)
class Places:
    """A tensor of the wide student as slices of the teachers' tensors.

    Slice ``p`` of the wide tensor along ``dim`` is slice ``index[p]`` of the tensor of teacher ``teacher[p]``.

    Attributes:
        dim: The dimension, counted from the front.
        teacher: (P,).
        index: (P,).
    """

    dim: int
    teacher: Tensor
    index: Tensor

    @property
    def size(self) -> int:
        """P."""
        return len(self.teacher)

    def on(self, dim: int) -> Places:
        """The same along another dimension."""
        return Places(dim, self.teacher, self.index)

    def taken(self, positions: Tensor) -> Places:
        """Some of the slices."""
        return Places(self.dim, self.teacher[positions], self.index[positions])

    def same_order(self, other: Places) -> bool:
        """Whether both have the same slices in the same order."""
        return torch.equal(self.teacher, other.teacher) and torch.equal(self.index, other.index)

    def of(self, teacher: int) -> Tensor:
        """Positions of a teacher's slices, in the order in which the teacher has them."""
        mine = torch.nonzero(self.teacher == teacher)[:, 0]
        return mine[torch.argsort(self.index[mine], stable=True)]

    def order_from(self, other: Places) -> Tensor:
        """Positions that put the slices of ``other`` into this order.

        Raises:
            ValueError: They are not the same slices.
        """
        where = {key: p for p, key in enumerate(zip(other.teacher.tolist(), other.index.tolist(), strict=True))}
        try:
            order = [where[key] for key in zip(self.teacher.tolist(), self.index.tolist(), strict=True)]
        except KeyError:
            raise ValueError("not the same slices") from None
        if len(order) != other.size:
            raise ValueError("not the same slices")
        return torch.tensor(order, dtype=torch.int64)


@dataclass(frozen=True)
class Kept:
    """Which units of which teachers a network consists of.

    Attributes:
        groups: The architecture's groups.
        teachers: N.
        units: For each group (N, size), True where kept.
    """

    groups: Groups
    teachers: int
    units: list[Tensor]

    @classmethod
    def all(cls, groups: Groups, teachers: int) -> Kept:
        """Every unit of every teacher."""
        return cls(groups, teachers, [torch.ones(teachers, group.size, dtype=torch.bool) for group in groups.groups])

    def holds(self, labels: Tensor, teacher: int) -> Tensor:
        """Whether each of the labels is of a unit that is kept."""
        group, unit = self.groups.group_of[labels], self.groups.unit_of[labels]
        sizes = torch.tensor([units.shape[1] for units in self.units])
        kept = torch.cat([units[teacher] for units in self.units])
        return kept[(sizes.cumsum(0) - sizes)[group] + unit]

    def places(self, labels: Tensor, dim: int) -> Places:
        """How a layer of free choice lays out its channels.

        The teachers stand side by side within each run of channels. A run ends where a unit returns, and where the
        group changes. Heads thus stay whole in stacked q, k and v, and an operation that splits channels along the
        borders of runs does to the wide tensor what it does to the teachers'.
        """
        teachers, indices = [], []
        held = [self.holds(labels, t) for t in range(self.teachers)]
        for start, stop in self._runs(labels):
            run = torch.arange(start, stop)
            for t in range(self.teachers):
                mine = run[held[t][start:stop]]
                teachers.append(torch.full_like(mine, t))
                indices.append(mine)
        return Places(dim, torch.cat(teachers), torch.cat(indices))

    def _runs(self, labels: Tensor) -> list[tuple[int, int]]:
        group = self.groups.group_of[labels].tolist()
        unit = self.groups.unit_of[labels].tolist()
        borders = {p for p in range(1, len(group)) if group[p] != group[p - 1]}
        runs, start = [], 0
        seen: set[tuple[int, int]] = set()
        for place, key in enumerate(zip(group, unit, strict=True)):
            returned = key in seen and (place == start or key != (group[place - 1], unit[place - 1]))
            if place > start and (place in borders or returned):
                runs.append((start, place))
                start, seen = place, set()
            seen.add(key)
        runs.append((start, len(group)))
        return runs


def wide_labels(labels: Tensor, places: Places, count: int, size: int) -> Tensor:
    """Labels of the wide tensor: ``count`` times the teacher, plus the label in the teacher's tensor.

    Args:
        labels: Of the teachers' tensor.
        places: Of the wide tensor.
        count: How many labels a teacher has.
        size: Of the teachers' tensor along the dimension of the places.
    """
    shape = list(labels.shape)
    shape[places.dim] = size
    slices = labels.expand(shape).index_select(places.dim, places.index)
    offset = [1] * labels.ndim
    offset[places.dim] = places.size
    return slices + count * places.teacher.reshape(offset)


def recognize(wide: Tensor, plain: Tensor, count: int, dims: list[int]) -> Places | None:
    """Reads off the labels of a wide tensor how it is made of slices of the teachers'.

    Args:
        wide: Labels from :func:`wide_labels`, moved by some operation.
        plain: Labels of the teachers' tensor, moved by the same.
        count: How many labels a teacher has.
        dims: The dimensions to try, best first.

    Returns:
        None where it is not made of slices along any of the dimensions.
    """
    for dim in dims:
        if any(wide.shape[d] != plain.shape[d] for d in range(wide.ndim) if d != dim):
            continue
        wide_rows = wide.movedim(dim, 0).reshape(wide.shape[dim], -1).numpy()
        plain_rows = plain.movedim(dim, 0).reshape(plain.shape[dim], -1).numpy()
        teacher = wide_rows[:, :1] // count
        if not (wide_rows // count == teacher).all():
            continue
        found = _match(wide_rows % count, plain_rows, teacher[:, 0])
        if found is not None:
            return Places(dim, torch.from_numpy(teacher[:, 0].copy()), torch.from_numpy(found))
    return None


def _match(rows: np.ndarray, known: np.ndarray, teacher: np.ndarray) -> np.ndarray | None:
    """Index among the known rows of each row; rows that occur repeatedly are told apart by their order."""
    where: dict[bytes, list[int]] = {}
    for index, row in enumerate(known):
        where.setdefault(row.tobytes(), []).append(index)
    used: dict[tuple[int, bytes], int] = {}
    found = np.empty(len(rows), np.int64)
    for place, row in enumerate(rows):
        key = row.tobytes()
        candidates = where.get(key)
        occurrence = used.get((int(teacher[place]), key), 0)
        if candidates is None or occurrence >= len(candidates):
            return None
        found[place] = candidates[occurrence]
        used[int(teacher[place]), key] = occurrence + 1
    return found
