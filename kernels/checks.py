"""What the fused operations accept, checked before anything is computed."""

from __future__ import annotations

import sys
from typing import Any

import torch

from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def describe(name: str, tensor: torch.Tensor) -> str:
    """Name, shape, dtype and device of a tensor, as messages give them."""
    return f"{name} of shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}"


def check_tensor(name: str, tensor: Any) -> None:
    """Refuse what is no dense tensor of a floating-point type that is computed with."""
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentTypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype not in DTYPES or tensor.layout is not torch.strided:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TensorError(f"{describe(name, tensor)}, {tensor.layout}; accepted: dense tensors of {known}")


def check_number_type(name: str, value: Any, *types: type) -> None:
    """Refuse what is no number of one of the Python types; a learned tensor, say, would get no gradient."""
    if isinstance(value, bool) or not isinstance(value, (*types, torch.SymInt, torch.SymFloat)):
        accepted = " or ".join(kind.__name__ for kind in types)
        raise ArgumentTypeError(f"{name} must be a number ({accepted}), not {type(value).__name__}")
    if float in types and isinstance(value, int) and abs(value) > sys.float_info.max:
        raise OutOfRangeError(f"{name} of {value.bit_length()} bits is larger than any float")


def check_integer(name: str, value: Any, stop: int) -> None:
    """Refuse what is no integer in [0, stop)."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ArgumentTypeError(f"{name} must be an int, not {type(value).__name__}")
    if not 0 <= value < stop:
        raise OutOfRangeError(f"{name} must be in [0, 2**{stop.bit_length() - 1}), not {value}")


def split_seed(seed: Any, device: torch.device) -> tuple[int, torch.Tensor | None]:
    """The seed as an operator takes it: a number, or 0 and the tensor that holds it.

    Raises:
        ArgumentTypeError: Neither an int nor a tensor.
        OutOfRangeError: An int outside [0, 2**63).
        TensorError: A tensor that is not 0-d int64 on the device. Its value is not looked at, which would wait for the
            device: a negative one counts as the 64 bits it consists of.
    """
    if isinstance(seed, torch.Tensor):
        if seed.ndim or seed.dtype is not torch.int64 or seed.device != device:
            raise TensorError(f"{describe('seed', seed)}; accepted: an int, or a 0-d int64 tensor on {device}")
        return 0, seed
    check_integer("seed", seed, 2**63)
    return seed, None
