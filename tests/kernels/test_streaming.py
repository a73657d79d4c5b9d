"""Results written past the caches: the same bits as those written in the ordinary way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyassemble.kernels import hard_concrete_gate, perturb, streaming
from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.streaming import buffer, finish, prefetch, stream
from tests.kernels.backends import DTYPES, gate
from tests.kernels.test_hard_concrete import CASES, example


@numba_jit()
def streamed(target: Any, source: Any, size: Any) -> Any:
    """Copy by way of a buffer; the buffer's address."""
    staged = buffer()
    stream(staged, source, size)
    stream(target, staged, size)
    finish()
    return staged


@numba_jit()
def fetched(address: Any) -> Any:
    prefetch(address)
    return address


def test_any_address_may_be_fetched() -> None:
    for address in (0, 1, -1, 2**47, -(2**63), np.zeros(1).ctypes.data):
        assert fetched(address) == address


def test_every_place_and_no_other_is_written() -> None:
    """Sizes around one and two lines, from every offset to the start of a line."""
    source = np.arange(1, 1025).astype(np.int16)
    for start in range(70):
        for size in (0, 1, 5, 31, 32, 33, 63, 64, 65, 100, 900):
            target = np.zeros(1100, np.int16)
            staged = streamed(target.ctypes.data + 2 * start, source[start:].ctypes.data, 2 * size)
            assert staged % streaming.LINE == 0
            assert (target[start : start + size] == source[start : start + size]).all()
            assert not target[:start].any()
            assert not target[start + size :].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gate_is_the_same_streamed(monkeypatch: pytest.MonkeyPatch, case: str, dtype: torch.dtype) -> None:
    x, loc, dy, dim = example(case, dtype)
    expected = gate("numba", x, loc, dy, seed=7, dim=dim)
    monkeypatch.setattr(streaming, "LEAST", 0)
    for a, b in zip(gate("numba", x, loc, dy, seed=7, dim=dim), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_is_the_same_streamed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 37, 41, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = perturb(x, 0.1, seed=7)
    monkeypatch.setattr(streaming, "LEAST", 0)
    assert torch.equal(perturb(x, 0.1, seed=7), expected)


def test_only_large_results_that_replace_no_input_are_streamed() -> None:
    large, small = torch.empty(streaming.LEAST // 4), torch.empty(streaming.LEAST // 4 - 1)
    fitting = streaming.BUFFER // 4
    assert streaming.worthwhile(fitting, torch.empty_like(large), large)
    assert not streaming.worthwhile(fitting + 1, torch.empty_like(large), large)
    assert not streaming.worthwhile(fitting, large, large)
    assert not streaming.worthwhile(fitting, torch.empty_like(small), small)


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
