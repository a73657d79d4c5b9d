"""The operations by backend: numba and Triton's interpreter on CPU tensors, Triton on CUDA where there is one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyassemble.kernels import frobenius, frobenius_score, hard_concrete_gate, perturb, perturbation
from pyassemble.kernels.hard_concrete import cuda
from pyassemble.kernels.hard_concrete.reference import Draw
from pyassemble.kernels.layout import layout

HAS_CUDA = torch.cuda.is_available()
BACKENDS = [
    "numba",
    pytest.param("interpreter", marks=pytest.mark.skipif(HAS_CUDA, reason="Triton compiles for the GPU instead")),
    pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")]),
]
NO_BOUNDS = -math.inf, math.inf
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def gate(
    backend: str,
    x: torch.Tensor,
    loc: torch.Tensor,
    dy: torch.Tensor,
    *,
    seed: Any,
    dim: int = 1,
    offset: int = 0,
    bounds: tuple[float, float] = NO_BOUNDS,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output, grad x and grad loc."""
    if backend == "interpreter":
        return _interpreted(x, loc, dy, seed, dim, offset, bounds)
    device = "cuda" if backend == "cuda" else "cpu"
    x, loc = x.detach().to(device).requires_grad_(), loc.detach().to(device).requires_grad_()
    seed = seed.to(device) if isinstance(seed, torch.Tensor) else seed
    y = hard_concrete_gate(x, loc, seed=seed, dim=dim, sample_offset=offset, low=bounds[0], high=bounds[1])
    dx, dloc = torch.autograd.grad(y, (x, loc), dy.to(device))
    return y.detach().cpu(), dx.cpu(), dloc.cpu()


def _interpreted(
    x: torch.Tensor, loc: torch.Tensor, dy: torch.Tensor, seed: Any, dim: int, offset: int, bounds: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    in_memory = isinstance(seed, torch.Tensor)
    draw = Draw(seed if in_memory else None, 0 if in_memory else seed, offset, 2 / 3, -0.1, 1.1, *bounds)
    y, dx = torch.empty_like(x), torch.empty_like(x)
    if not x.numel():  # decided before any kernel is chosen
        return y, dx, torch.zeros_like(loc)
    shape = layout(x, dim % x.ndim)
    assert shape is not None
    cuda.forward(y, x, loc, shape, draw)
    dloc = cuda.backward(dx, dy, x, loc, shape, draw)
    return y, dx, dloc.to(loc.dtype)


def scores(backend: str, clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> torch.Tensor:
    if backend == "interpreter":
        return frobenius._triton(clean, perturbed)
    device = "cuda" if backend == "cuda" else "cpu"
    return frobenius_score([c.to(device) for c in clean], [p.to(device) for p in perturbed]).cpu()


def noisy(backend: str, x: torch.Tensor, alpha: float, seed: int) -> torch.Tensor:
    if backend == "interpreter":
        y = torch.empty_like(x)
        order = perturbation._order(y)
        assert order is not None
        perturbation._triton(y, x, alpha, None, seed, *order)
        return y
    return perturb(x.to("cuda" if backend == "cuda" else "cpu"), alpha, seed=seed).cpu()


def assert_as_good_as_eager(
    ours: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, what: str, terms: torch.Tensor | None = None
) -> None:
    """The largest error is at most twice that of eager in the same type.

    Eager is now and then exact, or nearly so, on a few numbers; so some roundings of the largest value are allowed, or
    of what a sum's terms come to without their signs, where these are given. Nothing is more exact than float64.
    """
    assert ours.dtype == eager.dtype, what
    assert ours.shape == exact.shape, what
    if not exact.numel():
        return
    mine = (ours.double() - exact).abs().max().item()
    theirs = (eager.double() - exact).abs().max().item()
    roundings = {torch.float64: 16, torch.float32: 4}.get(ours.dtype, 1)
    floor = roundings * torch.finfo(ours.dtype).eps / 2 * (exact if terms is None else terms).abs().max().item()
    assert mine <= max(2 * theirs, floor), (what, mine, theirs)
