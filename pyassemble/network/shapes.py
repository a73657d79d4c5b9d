"""Shapes of the features that flow through a network: maps of channels, or sequences of tokens on a grid."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from pyassemble.errors import TensorError
from pyassemble.network.graph_module import TensorShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyassemble.network.graph_module import TracedNetwork


@dataclass(frozen=True)
class FeatureShape:
    """Shape of one image's features.

    Attributes:
        kind: ``"map"`` for (C, H, W), ``"tokens"`` for (N, C) with N = ``prefix_tokens`` + H·W, row by row.
        channels: C.
        height: H, of the map or of the grid that the tokens were cut from.
        width: W.
        prefix_tokens: Tokens before those of the grid: class, distillation and register tokens. 0 for a map.
        channels_last: Whether a map is (H, W, C). False for tokens, whose channels are always last.
    """

    kind: Literal["map", "tokens"]
    channels: int
    height: int
    width: int
    prefix_tokens: int = 0
    channels_last: bool = False

    @classmethod
    def of(cls, images: torch.Tensor) -> FeatureShape:
        """Shape of a batch (B, C, H, W) of images or maps.

        Raises:
            TensorError: Another number of dimensions.
        """
        if images.dim() != 4:
            raise TensorError(f"a tensor of shape {tuple(images.shape)} is no batch of maps; (B, C, H, W) was expected")
        return cls("map", images.shape[1], images.shape[2], images.shape[3])

    @property
    def size(self) -> tuple[int, ...]:
        """Shape of the tensor behind its batch dimension."""
        if self.kind == "tokens":
            return (self.prefix_tokens + self.height * self.width, self.channels)
        space = (self.height, self.width)
        return (*space, self.channels) if self.channels_last else (self.channels, *space)

    def __str__(self) -> str:
        space = f"{self.height}×{self.width}"
        if self.kind == "tokens":
            prefix = f"{self.prefix_tokens} + " if self.prefix_tokens else ""
            return f"tokens {prefix}{space}, {self.channels} channels"
        return f"map {space}, {self.channels} channels{' (last)' if self.channels_last else ''}"


def feature_shapes(traced: TracedNetwork) -> dict[fx.Node, FeatureShape]:
    """The steps of a network that return features, with their shapes.

    Which dimension holds the channels is followed through the graph from the images and the layers; where that is
    lost (inside a step that cannot be traced), the dimensions are compared with the proportions of the image. The grid
    of a sequence of tokens is that of the map, among those before it, which leaves the fewest tokens over; these are
    its prefix.
    """
    axes = _channel_axes(traced)
    _, height, width = _image_size(traced)
    grids: dict[tuple[int, int], int] = {}
    found: dict[fx.Node, FeatureShape] = {}
    for position, (node, value) in enumerate(traced.values.items()):
        shape = value.shape
        if shape is None or 0 in shape:
            continue
        if len(shape) == 3:
            axis = axes.get(node)
            last = axis == 3 if axis is not None else _looks_channels_last(shape, height / width)
            h, w, channels = shape if last else (shape[1], shape[2], shape[0])
            found[node] = FeatureShape("map", channels, h, w, channels_last=last)
            if axis is not None:
                grids[h, w] = position
        elif len(shape) == 2 and axes.get(node, 2) == 2:
            grid = _grid(shape[0], grids, height, width)
            if grid is not None:
                found[node] = FeatureShape("tokens", shape[1], *grid, prefix_tokens=shape[0] - math.prod(grid))
    return found


def _image_size(traced: TracedNetwork) -> tuple[int, int, int]:
    shape = traced.values[traced.input].shape
    return (shape[0], shape[1], shape[2]) if shape is not None and len(shape) == 3 else (1, 1, 1)


def _looks_channels_last(shape: tuple[int, ...], proportion: float) -> bool:
    first, second, third = shape
    return abs(math.log(first / second / proportion)) < abs(math.log(second / third / proportion))


def _grid(tokens: int, grids: Mapping[tuple[int, int], int], height: int, width: int) -> tuple[int, int] | None:
    """Height and width of the grid that a number of tokens comes from."""
    # A step that cannot be traced may hide the map: it then is the image cut into square patches.
    patches = [(height // p, width // p) for p in range(1, min(height, width) + 1) if not height % p + width % p]
    fitting = [grid for grid in (*grids, *patches) if tokens <= 2 * math.prod(grid) <= 2 * tokens]
    # The latest of several that leave as many tokens over: its proportions are those of the tokens.
    return min(fitting, key=lambda grid: (tokens - math.prod(grid), -grids.get(grid, -1)), default=None)


def _channel_axes(traced: TracedNetwork) -> dict[fx.Node, int]:
    """The dimension that holds the channels, for the steps where the graph tells."""
    axes: dict[fx.Node, int] = {traced.input: 1}
    for node, value in traced.values.items():
        if isinstance(value.small, TensorShape) and node not in axes:
            axis = _channel_axis(node, axes, traced)
            if axis is not None:
                axes[node] = axis
    return axes


# Layers that read their channels from dimension 1 whatever they were given.
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


def _channel_axis(node: fx.Node, axes: Mapping[fx.Node, int], traced: TracedNetwork) -> int | None:
    dims = len(traced.values[node].small)
    if node.op == "call_module":
        module = traced.module.get_submodule(str(node.target))
        if isinstance(module, _CHANNELS_FIRST):
            return 1
        if isinstance(module, nn.Linear):
            return dims - 1
    source = next((arg for arg in node.all_input_nodes if arg in axes), None)
    if source is None:
        return None
    axis = axes[source]
    before: TensorShape = traced.values[source].small
    after: TensorShape = traced.values[node].small
    order = _permutation(node, len(before))
    if order is not None:
        return order.index(axis)
    if before == after:
        return axis
    if sorted(before) == sorted(after) and after.count(before[axis]) == 1:
        return after.index(before[axis])  # some layer's own permutation
    if len(before) == dims and before[axis] == after[axis]:
        return axis  # space was resized, or tokens were added
    if axis == 1 and after[:2] == before[:2]:
        return 1  # space was flattened, or a flat space unfolded
    if axis == len(before) - 1 and after[-1] == before[-1]:
        return dims - 1
    # Layers that change the number of channels where they are.
    return axis if node.op == "call_module" and len(before) == dims else None


def _permutation(node: fx.Node, dims: int) -> tuple[int, ...] | None:
    """The order that a step puts the dimensions of its input in; None where it leaves them."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function"):
        return None
    arguments: list[Any] = [arg for arg in tree_leaves((node.args[1:], node.kwargs)) if isinstance(arg, int)]
    order = list(range(dims))
    if name == "permute" and len(arguments) == dims:
        return tuple(operator.index(i) % dims for i in arguments)
    if name in ("transpose", "swapaxes", "swapdims") and len(arguments) == 2:
        first, second = (i % dims for i in arguments)
        order[first], order[second] = order[second], order[first]
        return tuple(order)
    return None
