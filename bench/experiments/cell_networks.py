"""A cell search space for 32×32 images after NAS-Bench-201 (Dong and Yang 2020), narrow enough to train on a CPU.

A cell has four nodes; each of the six edges between an earlier and a later one carries one of five operations, and a
node sums its edges. A network is a stem, three stages of equal cells, residual blocks between them that halve the
image, and a head. 5^6 = 15 625 cells, some of them the same function, some without a path.
"""

from __future__ import annotations

import random
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATIONS = ("none", "skip", "conv1x1", "conv3x3", "pool")
EDGES = tuple((start, end) for end in range(1, 4) for start in range(end))

Cell = tuple[str, ...]
"""An operation for each of EDGES."""


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _operation(name: str, channels: int) -> nn.Module:
    match name:
        case "none":
            return _Zero()
        case "skip":
            return nn.Identity()
        case "pool":
            return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    kernel = int(name[-1])
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(channels)
    )


class _Nodes(nn.Module):
    def __init__(self, cell: Cell, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_operation(name, channels) for name in cell)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        edges = iter(self.edges)
        for end in range(1, 4):
            nodes.append(sum((next(edges)(nodes[start]) for start in range(end)), torch.zeros_like(x)))
        return nodes[-1]


class _Halving(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels_in, channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y


class CellNetwork(nn.Module):
    """Stem, stages of cells, head; ``features`` is the tensor before the head."""

    def __init__(self, cell: Cell, *, channels: int = 8, cells: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)]
        for stage in range(3):
            width = channels * 2**stage
            if stage:
                parts.append(_Halving(width // 2, width))
            parts += [_Nodes(cell, width) for _ in range(cells)]
        self.body = nn.Sequential(*parts, nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def is_connected(cell: Cell) -> bool:
    """Whether something of the input reaches the output."""
    reached = {0}
    for (start, end), name in zip(EDGES, cell, strict=True):
        if name != "none" and start in reached:
            reached.add(end)
    return 3 in reached


def sampled_cells(count: int, seed: int) -> list[Cell]:
    """Distinct connected cells, uniformly."""
    return random.Random(seed).sample(list(_connected()), count)


def _connected() -> Iterator[Cell]:
    return filter(is_connected, product(OPERATIONS, repeat=len(EDGES)))
