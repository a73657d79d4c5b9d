"""The head of an assembly: pools what the last block returns, and classifies it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from pyassemble.network.shapes import FeatureShape


class Head(nn.Module):
    """The mean over space, then one linear layer; prefix tokens (class tokens) take no part.

    Attributes:
        shape: What comes in.
        classifier: (C) to the classes.
    """

    def __init__(self, shape: FeatureShape, num_classes: int, *, generator: torch.Generator | None = None) -> None:
        """Makes a head with random weights.

        Args:
            shape: What comes in.
            num_classes: Number of outputs.
            generator: Draws the weights, uniform as torch initializes linear layers; torch's own if None.
        """
        super().__init__()
        self.shape = shape
        self.classifier = nn.Linear(shape.channels, num_classes, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(shape.channels)
        nn.init.uniform_(self.classifier.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.classifier.bias, -bound, bound, generator=generator)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, *shape.size) to (B, classes)."""
        classes: torch.Tensor = self.classifier(self.pool(features))
        return classes

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """(B, *shape.size) to (B, C)."""
        if self.shape.kind == "tokens":
            return features[:, self.shape.prefix_tokens :].mean(dim=1)
        return features.mean(dim=(1, 2) if self.shape.channels_last else (2, 3))

    @torch.no_grad()
    def scale_(self, factor: float | torch.Tensor) -> None:
        """Folds a factor of the features that come in: afterwards ``head(x)`` is what ``head(factor · x)`` was."""
        self.classifier.weight.mul_(factor)

    def extra_repr(self) -> str:
        """The shape that comes in."""
        return str(self.shape)
