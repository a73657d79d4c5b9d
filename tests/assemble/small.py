"""A small repository of real architectures and a learnable problem, quick enough for many tests."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn

from pyassemble.assemble.repository import Repository
from pyassemble.training import fit

CLASSES = 3


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


def residual(*channels: int, seed: int) -> nn.Sequential:
    """A residual network: one block for each width, the image halved at two of them, and a head."""
    torch.manual_seed(seed)
    blocks = [
        Residual(before, after, 1 + (i in (1, 3)))
        for i, (before, after) in enumerate(zip((8, *channels), channels, strict=False))
    ]
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
    network = nn.Sequential(stem, *blocks, head)
    return network


@cache
def _trained() -> dict[str, nn.Module]:
    networks = {"wide": residual(12, 12, 16, 20, 20, seed=1), "deep": residual(8, 8, 10, 10, 12, 14, seed=2)}
    images, labels = problem(512, seed=5)
    for network in networks.values():
        fit(network, images, labels, epochs=6, batch_size=32, learning_rate=3e-3)
    return networks


def repository() -> Repository:
    """Two small residual networks for 8 × 8 images, of 5 and 6 segments, trained a little on other images."""
    return Repository({name: copy.deepcopy(network) for name, network in _trained().items()}, torch.zeros(2, 3, 8, 8))


@cache
def shared_repository() -> Repository:
    """The same one for all tests that only read it."""
    return repository()


def problem(count: int, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images whose class is the channel that is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randn(count, 3, size, size, generator=generator)
    images[torch.arange(count), labels] += 1.5
    return images, labels
