"""Noise: the draws, their rounding and their independence of the layout."""

from __future__ import annotations

import math

import pytest
import torch

from pyassemble.kernels import perturb, perturb_reference, philox
from tests.kernels.backends import BACKENDS, DTYPES, assert_as_good_as_eager, noisy


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 32), (3, 5, 7, 11), (1,), (2, 3, 37)])
def test_error_is_at_most_twice_that_of_eager(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    u = philox.noise_draws(3, x.numel(), x.device).view(shape)
    exact = perturb_reference(x.double(), 0.01, u.double())
    assert_as_good_as_eager(noisy(backend, x, 0.01, 3), perturb_reference(x, 0.01, u.to(dtype)), exact, "y")


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_has_the_bits_of_eager(backend: str) -> None:
    x = torch.randn(7, 1013)
    u = philox.noise_draws(3, x.numel(), x.device).view(x.shape)
    assert torch.equal(noisy(backend, x, 0.3, 3), perturb_reference(x, 0.3, u))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("shape", "memory_format"), [((3, 5, 7, 6), torch.channels_last), ((2, 3, 4, 5, 6), torch.channels_last_3d)]
)
def test_the_layout_does_not_matter(backend: str, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    x = torch.randn(shape)
    last = noisy(backend, x.contiguous(memory_format=memory_format), 0.5, 8)
    assert last.is_contiguous(memory_format=memory_format)
    assert torch.equal(last, noisy(backend, x, 0.5, 8))


def test_any_other_layout_and_no_elements() -> None:
    x = torch.randn(6, 4, 10)
    for view in (x.permute(2, 0, 1), x[::2, :, 1:7:3], x[:, :1].expand(6, 4, 10)):
        y = perturb(view, 0.5, seed=8)
        assert torch.equal(y, perturb(view.contiguous(), 0.5, seed=8))
        assert y.stride() == torch.empty_like(view).stride()
    assert perturb(torch.empty(3, 0), 0.5, seed=8).shape == (3, 0)
    assert perturb(torch.tensor(1.0), 0.5, seed=8).shape == ()


def test_distribution_and_seeds() -> None:
    n = 10**6
    u = perturb(torch.zeros(n), 1.0, seed=1).double()
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert torch.equal(perturb(torch.zeros(n), 1.0, seed=torch.tensor(1)).double(), u)
    assert abs(((perturb(torch.zeros(n), 1.0, seed=2).double() - 0.5) * (u - 0.5)).mean()) < 5 / 12 / math.sqrt(n)


def test_gradient_and_special_values() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: perturb(a, 0.1, seed=3), (x,))
    y = perturb(torch.tensor([math.nan, math.inf, -math.inf]), 0.1, seed=3)
    assert torch.equal(
        torch.nan_to_num(y, nan=7.0), torch.nan_to_num(torch.tensor([math.nan, math.inf, -math.inf]), nan=7.0)
    )


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    x = torch.zeros(2**31 + 2**10, dtype=torch.bfloat16)
    y = perturb(x, 1.0, seed=1)
    block = torch.tensor(2**31 // 4)
    expected = philox.uniform(torch.stack(philox.words(1, (block, 0, 0, philox.NOISE))))
    assert torch.equal(y[2**31 : 2**31 + 4], expected.to(torch.bfloat16))
