"""How a tensor lies in memory, as a fused operation sees it: batch, outer, channels, inner, each one after the other.

Contiguous (B, C, H, W) is (B, 1, C, HW); channels-last, and tokens (B, N, C), are (B, HW or N, C, 1). One description
serves every number of dimensions, so that no operation permutes or copies.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch


class Layout(NamedTuple):
    """Sizes of the four parts of a dense tensor's memory, slowest first."""

    batch: int
    outer: int
    channels: int
    inner: int


def layout(x: torch.Tensor, dim: int) -> Layout | None:
    """The layout of a tensor with samples on dimension 0 and channels on ``dim``.

    None: elements overlap, leave gaps, or the samples do not lie one after the other.
    """
    return _layout(x.shape, x.stride(), dim)


@functools.lru_cache(maxsize=1024)  # a network asks about the same few in every step
def _layout(shape: torch.Size, strides: tuple[int, ...], dim: int) -> Layout | None:
    order = sorted((d for d in range(len(shape)) if shape[d] != 1), key=lambda d: strides[d], reverse=True)
    if not _is_dense(shape, strides) or (shape[0] != 1 and order[0] != 0):
        return None
    outer, inner, seen = 1, 1, shape[dim] == 1
    for d in order:
        if d == dim:
            seen = True
        elif d != 0 and seen:
            inner *= shape[d]
        elif d != 0:
            outer *= shape[d]
    return Layout(shape[0], outer, shape[dim], inner)


def is_dense(x: torch.Tensor) -> bool:
    """Whether the elements fill one stretch of memory, each place once, in whatever order of dimensions."""
    return _is_dense(x.shape, x.stride())


def _is_dense(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    expected = 1
    for stride, size in sorted((strides[d], shape[d]) for d in range(len(shape)) if shape[d] != 1):
        if stride != expected:
            return False
        expected *= size
    return True


def same_order(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape have their elements at the same places, counted from their first."""
    places, others = a.stride(), b.stride()
    return places == others or all(m == n or size == 1 for m, n, size in zip(places, others, a.shape, strict=True))


def laid_out_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``x`` itself if its elements lie as those of ``like`` do, else a copy that lies so."""
    return x if same_order(x, like) else torch.empty_like(like, dtype=x.dtype).copy_(x)
