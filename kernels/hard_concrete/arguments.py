"""What the gate's functions accept."""

from __future__ import annotations

import math

import torch

from pyassemble.errors import OutOfRangeError, TensorError
from pyassemble.kernels.checks import check_number_type, check_tensor, describe


def check(x: torch.Tensor, loc: torch.Tensor, dim: int, beta: float, gamma: float, zeta: float) -> int:
    """Refuse bad arguments; the dimension of the channels, counted from the front."""
    check_tensor("x", x)
    check_loc(loc)
    check_interval(beta, gamma, zeta)
    check_number_type("dim", dim, int)
    if x.ndim < 2 or not -x.ndim <= dim < x.ndim or dim % x.ndim == 0:
        raise TensorError(
            f"{describe('x', x)} has no channels on dimension {dim}; accepted: (B, ...), channels on any other than 0"
        )
    dim %= x.ndim
    if x.shape[dim] != loc.shape[0]:
        raise TensorError(
            f"{describe('x', x)} has {x.shape[dim]} channels on dimension {dim}, {describe('loc', loc)} is for "
            f"{loc.shape[0]}; accepted: as many elements of loc as x has channels"
        )
    if x.device != loc.device:
        raise TensorError(f"{describe('x', x)} and {describe('loc', loc)}; accepted: both on one device")
    return dim


def check_loc(loc: torch.Tensor) -> None:
    """Refuse what is not one floating-point number for each channel."""
    check_tensor("loc", loc)
    if loc.ndim != 1:
        raise TensorError(f"{describe('loc', loc)}; accepted: one dimension, one element for each channel")


def check_interval(beta: float, gamma: float, zeta: float) -> None:
    """Refuse constants that do not stretch [0, 1] beyond both its ends."""
    for name, value in (("beta", beta), ("gamma", gamma), ("zeta", zeta)):
        check_number_type(name, value, int, float)
    if not (0 < beta < math.inf and -math.inf < gamma < 0 and 1 < zeta < math.inf):
        raise OutOfRangeError(
            f"beta {beta}, gamma {gamma}, zeta {zeta}; accepted: finite numbers, beta > 0, gamma < 0, zeta > 1"
        )


def check_bounds(low: float, high: float) -> None:
    """Refuse bounds between which there is nothing."""
    for name, value in (("low", low), ("high", high)):
        check_number_type(name, value, int, float)
    if not low < high:
        raise OutOfRangeError(f"low {low}, high {high}; accepted: low < high, infinite for none")


def refuse_gradients(x: torch.Tensor, loc: torch.Tensor) -> None:
    """Refuse to overwrite what a backward pass would need."""
    if torch.is_grad_enabled() and (x.requires_grad or loc.requires_grad):
        raise TensorError(
            f"{describe('x', x)} would be overwritten while a gradient is asked for; accepted: under torch.no_grad(), "
            "or the function without the underscore"
        )
