"""Arithmetic on whole lines of memory: the numbers of NumPy, at the places asked for and no other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyassemble.kernels import hard_concrete_gate
from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.lines import LINE, are_lines, in_whole_lines, scale_and_add_line, scale_line
from pyassemble.kernels.streaming import finish


@numba_jit()
def whole(address: Any, size: Any, like: Any) -> Any:
    return in_whole_lines(size, like), are_lines(address, size, like)


@numba_jit()
def scaled(y: Any, x: Any, gate: Any, i: Any, past: Any) -> None:
    scale_line(y, x, gate, i, past)
    finish()


@numba_jit()
def scaled_and_added(dx: Any, sums: Any, dy: Any, x: Any, gate: Any, i: Any, past: Any) -> None:
    scale_and_add_line(dx, sums, dy, x, gate, i, past)
    finish()


def at_a_line(count: int, dtype: Any) -> Any:
    """Zeros whose first lies at a multiple of a line."""
    room = np.zeros(count * np.dtype(dtype).itemsize + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + count * np.dtype(dtype).itemsize].view(dtype)


def test_what_whole_lines_are() -> None:
    single, double, half = np.empty(0, np.float32), np.empty(0, np.float64), np.empty(0, np.int16)
    assert whole(640, 32, single) == (32, True)
    assert whole(640, 40, single) == (32, False)
    assert whole(644, 32, single) == (32, False)
    assert whole(640, 40, double) == (40, True)
    assert whole(640, 15, single) == (0, False)
    assert whole(640, 32, half) == (0, False)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_line_is_scaled(dtype: Any, past: bool) -> None:
    lanes = LINE // np.dtype(dtype).itemsize
    generator = np.random.default_rng(0)
    x, dy = (generator.standard_normal(3 * lanes).astype(dtype) for _ in range(2))
    gate = dtype(0.3)
    line = slice(lanes, 2 * lanes)
    expected = np.zeros(3 * lanes, dtype)
    expected[line] = x[line] * gate
    y = at_a_line(3 * lanes, dtype)
    scaled(y, x, gate, lanes, past)
    assert (y == expected).all()
    dx, sums = at_a_line(3 * lanes, dtype), np.ones(lanes, dtype)
    scaled_and_added(dx, sums, dy, x, gate, lanes, past)
    expected[line] = dy[line] * gate
    assert (dx == expected).all()
    assert (sums == 1 + dy[line] * x[line]).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_the_input_lies_changes_no_bit(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """Neither the sums' order nor anything else follows the addresses."""
    shape = (4, 16, 9, 16)
    loc = torch.linspace(-1, 2, 16).requires_grad_()
    room = torch.randn(1 + 2 * 4 * 16 * 9 * 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    results = []
    for start in (0, 1):
        strides = torch.empty(shape).contiguous(memory_format=memory_format).stride()
        held = torch.cat([torch.zeros(start, dtype=dtype), room])
        x = held.as_strided(shape, strides, start).detach().requires_grad_()
        dy = held.as_strided(shape, strides, start + 4 * 16 * 9 * 16)
        y = hard_concrete_gate(x, loc, seed=3)
        results.append([y.detach(), *torch.autograd.grad(y, (x, loc), dy)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
