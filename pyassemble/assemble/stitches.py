"""Stitches: trainable layers that bring one block's output to the shape that the next block takes (PA-DNN, Q_β)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from pyassemble.network.shapes import FeatureShape

_KERNEL = 3
_TOKEN_DEVIATION = 0.02  # of learned tokens at the start, as is usual for class tokens


class Stitch(nn.Module):
    """A convolution to the target's channels and space; tokens become maps before it and tokens again behind it.

    With an integer ratio of the sizes the strided convolution (space shrinks) or transposed convolution (space grows)
    gives the exact size. Otherwise its stride is the floor of the ratio, and average pooling or bilinear resizing does
    the rest. Where one axis shrinks and the other grows, the convolution shrinks the one and resizing lets the other
    grow. Prefix tokens are dropped on leaving a sequence of tokens; learned ones are added on entering one.

    Attributes:
        source: What comes in.
        target: What goes out.
        convolution: The only layer.
        prefix_tokens: Learned tokens (1, P, C) at the front of the target's sequence; None where it has none.
    """

    def __init__(self, source: FeatureShape, target: FeatureShape, *, generator: torch.Generator | None = None) -> None:
        """Makes a stitch with random weights.

        Args:
            source: What comes in.
            target: What goes out.
            generator: Draws the weights, uniform as torch initializes convolutions; torch's own if None.
        """
        super().__init__()
        self.source, self.target = source, target
        layer, self._space = _convolution(source, target)
        self.convolution = layer.to_empty(device="cpu")
        _initialize(self.convolution, generator)
        self.prefix_tokens: nn.Parameter | None = None
        if target.prefix_tokens:
            tokens = torch.empty(1, target.prefix_tokens, target.channels)
            self.prefix_tokens = nn.Parameter(tokens.normal_(std=_TOKEN_DEVIATION, generator=generator))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, *source.size) to (B, *target.size)."""
        maps = self._resized(self.convolution(as_maps(features, self.source)))
        if self.target.kind == "map":
            return maps.permute(0, 2, 3, 1) if self.target.channels_last else maps
        tokens = maps.flatten(2).transpose(1, 2)
        if self.prefix_tokens is not None:
            tokens = torch.cat((self.prefix_tokens.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        return tokens

    def _resized(self, maps: torch.Tensor) -> torch.Tensor:
        goal = (self.target.height, self.target.width)
        smaller = (min(self._space[0], goal[0]), min(self._space[1], goal[1]))
        if smaller != self._space:
            maps = functional.adaptive_avg_pool2d(maps, smaller)
        if smaller != goal:
            maps = functional.interpolate(maps, size=goal, mode="bilinear", align_corners=False)
        return maps

    @torch.no_grad()
    def scale_(self, factor: float | torch.Tensor) -> None:
        """Folds a factor of the features that come in: afterwards ``stitch(x)`` is what ``stitch(factor · x)`` was."""
        self.convolution.weight.mul_(factor)

    def extra_repr(self) -> str:
        """The two shapes."""
        return f"{self.source} → {self.target}"


class Continuation(nn.Module):
    """Between two blocks that follow each other in one network: hands on what comes in, times a factor of 1."""

    factor: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The features themselves, bit for bit, as long as nothing was folded into the factor."""
        return features * self.factor

    def scale_(self, factor: float | torch.Tensor) -> None:
        """Folds a factor of the features that come in."""
        self.factor.mul_(factor)


def stitch(source: FeatureShape, target: FeatureShape, *, generator: torch.Generator | None = None) -> Stitch:
    """A stitch from (B, *source.size) to exactly (B, *target.size), with random weights; see :class:`Stitch`."""
    return Stitch(source, target, generator=generator)


def as_maps(features: torch.Tensor, shape: FeatureShape) -> torch.Tensor:
    """Features of any shape as maps (B, C, H, W); prefix tokens are left out."""
    if shape.kind == "tokens":
        grid = features[:, shape.prefix_tokens :].transpose(1, 2)
        return grid.reshape(features.shape[0], shape.channels, shape.height, shape.width)
    if shape.channels_last and shape.channels == 1:
        # A permutation would give strides by which PyTorch's convolution was seen to read past the end of the features.
        return features.reshape(features.shape[0], 1, shape.height, shape.width)
    return features.permute(0, 3, 1, 2) if shape.channels_last else features


def _convolution(source: FeatureShape, target: FeatureShape) -> tuple[nn.Conv2d | nn.ConvTranspose2d, tuple[int, int]]:
    """The convolution without weights, and the height and width that it gives."""
    channels = (source.channels, target.channels)
    sizes = ((source.height, target.height), (source.width, target.width))
    if any(before < after for before, after in sizes) and all(before <= after for before, after in sizes):
        rows, columns = (after // before for before, after in sizes)
        # (n − 1)·s − 2 + 3 + (s − 1) = n·s
        more = (rows - 1, columns - 1)
        stride = (rows, columns)
        layer = nn.ConvTranspose2d(*channels, _KERNEL, stride, padding=1, output_padding=more, device="meta")
        return layer, (source.height * rows, source.width * columns)
    rows, columns = (max(before // after, 1) for before, after in sizes)
    # ⌊(n + 2 − 3) / s⌋ + 1 = ⌈n / s⌉
    space = (math.ceil(source.height / rows), math.ceil(source.width / columns))
    return nn.Conv2d(*channels, _KERNEL, (rows, columns), padding=1, device="meta"), space


def _initialize(layer: nn.Conv2d | nn.ConvTranspose2d, generator: torch.Generator | None) -> None:
    """As torch does in ``reset_parameters``, but from a generator."""
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    assert layer.bias is not None
    bound = 1 / math.sqrt(layer.weight[0].numel())
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
