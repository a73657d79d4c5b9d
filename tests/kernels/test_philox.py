"""Philox-4x32-10: known answers, and the same bits from every implementation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyassemble.kernels import hard_concrete_values, philox
from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.philox import numba_words
from tests.kernels.backends import BACKENDS, gate, noisy

# Of the generator's authors' own test vectors (Random123, kat_vectors): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@numba_jit()
def words(seed: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    return numba_words(seed, c0, c1, c2, c3)


def signed(key: tuple[int, int]) -> int:
    value = key[0] | key[1] << 32
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    eager = philox.words(torch.tensor(signed(key)), tuple(torch.tensor(c) for c in counter))
    assert tuple(int(w) for w in eager) == expected
    assert tuple(int(w) for w in words(np.int64(signed(key)), *counter)) == expected


def test_u_is_open_symmetric_and_has_finite_logarithms() -> None:
    u = philox.uniform(torch.tensor([0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000]))
    assert u.dtype == torch.float32
    assert u[0].item() == 2**-24
    assert u[1].item() == 1 - 2**-24
    assert u[2].item() + u[3].item() == 1.0
    assert torch.isfinite(torch.log(u)).all()
    assert torch.isfinite(torch.log(1 - u)).all()


def test_first_draws_are_pinned() -> None:
    """A change of these numbers changes what every seed means."""
    words = torch.stack(philox.words(5, (0, 3, 0, philox.GATE)))
    assert torch.equal(philox.gate_draws(5, torch.tensor([3]), 4)[0], philox.uniform(words))
    words = torch.stack(philox.words(5, (1, 0, 0, philox.NOISE)))
    assert torch.equal(philox.noise_draws(5, 8, torch.device("cpu"))[4:], philox.uniform(words))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (2**63 - 1, 2**33 + 5), (2**32 + 17, 1)])
def test_same_u_in_gates(backend: str, seed: int, offset: int) -> None:
    """The gates of float64 input give u back through the inverse of the gate."""
    samples, channels = 3, 11
    ones = torch.ones(samples, channels, dtype=torch.float64)
    loc = torch.zeros(channels, dtype=torch.float64)
    g, _, _ = gate(backend, ones, loc, ones, seed=seed, offset=offset)
    s = (g + 0.1) / 1.2
    u = philox.gate_draws(seed, torch.arange(samples) + offset, channels).double()
    between = (g > 0) & (g < 1)
    assert between.sum() > 10
    back = torch.sigmoid(2 / 3 * (torch.log(s) - torch.log1p(-s)))
    assert (back - u)[between].abs().max() < 1e-12  # a step of u is 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, 2**62 + 12345])
def test_same_u_in_noise(backend: str, seed: int) -> None:
    x = torch.zeros(5, 1001)
    expected = philox.noise_draws(seed, x.numel(), x.device).view(x.shape)
    assert torch.equal(noisy(backend, x, 1.0, seed), expected)


def test_uniform_and_uncorrelated() -> None:
    u = philox.gate_draws(1, torch.arange(512), 256).double()
    n = u.numel()
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    for other in (u.roll(1, 0), u.roll(1, 1), philox.gate_draws(2, torch.arange(512), 256).double()):
        assert abs(((u - 0.5) * (other - 0.5)).mean()) < 5 / 12 / math.sqrt(n)


def test_seeds_and_operations_draw_differently() -> None:
    loc = torch.zeros(64)
    assert not torch.equal(hard_concrete_values(loc, 8, seed=1), hard_concrete_values(loc, 8, seed=2))
    noise = philox.noise_draws(1, 64, torch.device("cpu"))
    assert not torch.isin(noise, philox.gate_draws(1, torch.arange(1), 64)).any()
