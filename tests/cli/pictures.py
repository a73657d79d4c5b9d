"""Small residual networks and pictures of three colours, for the commands that need data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

NETWORKS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1)
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x):
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))

def network(*widths):
    blocks = [Block(a, b, 1 + (i == 1)) for i, (a, b) in enumerate(zip((3, *widths), widths))]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))

def wide(): return network(12, 12, 16)
def deep(): return network(6, 8, 8, 10)
"""


def make_pictures(folder: Path, count: int = 24) -> None:
    """A folder for each of three classes: pictures in which one colour is bright."""
    generator = np.random.default_rng(0)
    for number in range(count):
        colour = number % 3
        pixels = generator.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        pixels[..., colour] += 120
        place = folder / ("red", "green", "blue")[colour]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
