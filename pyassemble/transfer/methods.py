"""Which elements of a source tensor go where in a target tensor: the transfer methods of DPIAT's ablation.

A method sees one matched pair of layers at a time, all their tensors together, because a bias and a batch norm's
buffers must follow the output channels chosen for the weight. It returns, for each tensor, a region of the source and
a region of the target of the same shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch

#: Chosen positions along one dimension: a range, or a list of indices.
Positions = slice | torch.Tensor
Region = tuple[Positions, ...]


class LayerPair(NamedTuple):
    """The tensors of two matched layers, by role; only roles that both have, with equal numbers of dimensions.

    Attributes:
        source: The source's tensors.
        target_shapes: The target's shapes.
        output_dim: Dimension of the weight that counts outputs: 0, but 1 for transposed convolutions.
    """

    source: Mapping[str, torch.Tensor]
    target_shapes: Mapping[str, tuple[int, ...]]
    output_dim: int


class Assigned(NamedTuple):
    """Where one tensor's elements come from and go to.

    Attributes:
        source: Positions that are read.
        target: Positions that are written.
        elements: How many they are.
    """

    source: Region
    target: tuple[slice, ...]
    elements: int


Method = Callable[[LayerPair, torch.Generator], dict[str, Assigned]]


def _clip(pair: LayerPair, generator: torch.Generator) -> dict[str, Assigned]:
    """Centre crop in every dimension (SPEC 1.5)."""
    return {role: crop(tensor.shape, pair.target_shapes[role]) for role, tensor in pair.source.items()}


@lru_cache(maxsize=4096)
def crop(source: tuple[int, ...], target: tuple[int, ...]) -> Assigned:
    """Regions of the centre crop between two shapes. Networks repeat a few shapes hundreds of times."""
    sizes = list(zip(source, target, strict=True))
    regions = tuple(_centre(s, t) for s, t in sizes), tuple(_centre(t, s) for s, t in sizes)
    return Assigned(*regions, math.prod([min(s, t) for s, t in sizes]))


def _full(pair: LayerPair, generator: torch.Generator) -> dict[str, Assigned]:
    """As clip where the source is larger; where the target is, its rest repeats randomly drawn source indices."""

    def positions(role: str, dim: int, s: int, t: int) -> Positions:
        if s >= t:
            return _centre(s, t)
        drawn = torch.randint(s, (t,), generator=generator, device="cpu")
        drawn[_centre(t, s)] = torch.arange(s, device="cpu")
        return drawn

    return _by_channel(pair, positions, lambda s, t: slice(0, t))


def _magnitude(pair: LayerPair, generator: torch.Generator) -> dict[str, Assigned]:
    """Channels of the largest absolute weight sum where the source is larger, index 0 onward where it is smaller.

    Output channels are chosen first, then input channels by what is left of the weight; kernels are cropped to the
    centre.
    """
    weight = pair.source.get("weight")
    left = weight.abs().double() if weight is not None else None

    def positions(role: str, dim: int, s: int, t: int) -> Positions:
        nonlocal left
        if s <= t:
            return slice(0, s)
        if role != "weight" or left is None or dim not in (0, 1):
            return _centre(s, t)
        sums = left.transpose(0, dim).flatten(1).sum(1) if left.dim() > 1 else left
        kept = sums.sort(descending=True, stable=True).indices[:t].sort().values
        left = left.index_select(dim, kept)
        return kept.cpu()

    return _by_channel(pair, positions, lambda s, t: slice(0, min(s, t)), kernel_centred=True)


def _by_channel(
    pair: LayerPair,
    positions: Callable[[str, int, int, int], Positions],
    target_positions: Callable[[int, int], slice],
    *,
    kernel_centred: bool = False,
) -> dict[str, Assigned]:
    """Apply a choice of positions per dimension, the weight first; other tensors reuse its output channels."""
    assigned: dict[str, Assigned] = {}
    outputs: tuple[int, int, Positions] | None = None
    for role in sorted(pair.source, key=lambda role: role != "weight"):
        source_shape, target_shape = pair.source[role].shape, pair.target_shapes[role]
        order = list(range(len(source_shape)))
        if role == "weight" and len(order) > 1:
            order.sort(key=lambda dim: dim != pair.output_dim)
        chosen: dict[int, tuple[Positions, slice]] = {}
        for dim in order:
            s, t = source_shape[dim], target_shape[dim]
            if kernel_centred and dim > 1:
                chosen[dim] = (_centre(s, t), _centre(t, s))
            elif role != "weight" and dim == 0 and outputs is not None and outputs[:2] == (s, t):
                chosen[dim] = (outputs[2], target_positions(s, t))
            else:
                chosen[dim] = (positions(role, dim, s, t), target_positions(s, t))
        if role == "weight" and order:
            first = order[0]
            outputs = (source_shape[first], target_shape[first], chosen[first][0])
        dims = range(len(source_shape))
        target = tuple(chosen[d][1] for d in dims)
        elements = math.prod(positions.stop - positions.start for positions in target)
        assigned[role] = Assigned(tuple(chosen[d][0] for d in dims), target, elements)
    return assigned


def _centre(size: int, other: int) -> slice:
    """The middle of a dimension that has room for ``other``; all of it where ``other`` is larger."""
    start = max(0, (size - other) // 2)
    return slice(start, start + min(size, other))


_METHODS: dict[str, Method] = {"clip": _clip, "clip_norm": _clip, "full": _full, "magnitude": _magnitude}

#: Names accepted as ``method``.
METHODS = tuple(_METHODS)


def assign(pair: LayerPair, method: str, generator: torch.Generator) -> dict[str, Assigned]:
    """Regions of every tensor of a matched pair of layers, under a named method."""
    return _METHODS[method](pair, generator)


def crops(method: str) -> bool:
    """Whether a method takes the centre crop of each tensor by itself (:func:`crop`)."""
    return _METHODS[method] is _clip


def rescales(method: str) -> bool:
    """Whether a method scales each weight as a whole after writing it."""
    return method == "clip_norm"


def output_variance_ratio(source: torch.Tensor, target: torch.Tensor, output_dim: int) -> float:
    """Factor on a target's weight after which its outputs vary as the source's do (``clip_norm``).

    Under independent inputs of unit variance an output's variance is the sum of squares of its weights: fan-in times
    the mean square. A weight of zeros, or one that is not finite, is left as it is.
    """
    source_variance = _output_variance(source, output_dim)
    target_variance = _output_variance(target, output_dim)
    measurable = 0 < source_variance < math.inf and 0 < target_variance < math.inf
    return (source_variance / target_variance) ** 0.5 if measurable else 1.0


def _output_variance(weight: torch.Tensor, output_dim: int) -> float:
    fan_in = weight.numel() // weight.shape[output_dim]
    wide = torch.complex128 if weight.is_complex() else torch.float64
    return fan_in * float(weight.to(wide).abs().square().mean())


@lru_cache(maxsize=4096)
def _whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in shape)


def take(tensor: torch.Tensor, region: Region) -> torch.Tensor:
    """The elements of a region: a view where every dimension is a range, otherwise a copy."""
    shape = tensor.shape
    if region == _whole(shape):
        return tensor
    for dim, positions in enumerate(region):
        if isinstance(positions, slice):
            start = positions.start
            if start != 0 or positions.stop != shape[dim]:
                tensor = tensor.narrow(dim, start, positions.stop - start)
        else:
            tensor = tensor.index_select(dim, positions.to(tensor.device))
    return tensor
