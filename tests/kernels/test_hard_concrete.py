"""Hard-concrete gates against float64, on every backend, layout and type."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from pyassemble.kernels import (
    gate_open_probability,
    hard_concrete_eval,
    hard_concrete_eval_,
    hard_concrete_gate,
    hard_concrete_gate_,
    hard_concrete_gate_reference,
    hard_concrete_values,
    philox,
)
from pyassemble.kernels.layout import layout
from tests.kernels.backends import BACKENDS, DTYPES, NO_BOUNDS, assert_as_good_as_eager, gate

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = {  # shape, dimension of the channels, memory format
    "images": ((4, 8, 16, 16), 1, torch.contiguous_format),
    "odd": ((5, 7, 11, 13), 1, torch.contiguous_format),
    "prime": ((3, 31, 37), 1, torch.contiguous_format),
    "one": ((1, 1, 1), 1, torch.contiguous_format),
    "volume": ((2, 3, 4, 5, 6), 1, torch.contiguous_format),
    "channels last": ((3, 13, 7, 9), 1, torch.channels_last),
    "volume, channels last": ((2, 5, 3, 4, 3), 1, torch.channels_last_3d),
    "features": ((41, 19), 1, torch.contiguous_format),
    "tokens": ((3, 17, 23), 2, torch.contiguous_format),
    "tokens, negative": ((3, 17, 23), -1, torch.contiguous_format),
    "channels in the middle": ((3, 4, 5, 6), 2, torch.contiguous_format),
    "long rows": ((1, 2, 20011), 1, torch.contiguous_format),
    "many channels": ((2, 700, 3, 3), 1, torch.channels_last),
    "samples that share units, channels last": ((5, 96, 13, 11), 1, torch.channels_last),
    "no samples": ((0, 3, 4, 4), 1, torch.contiguous_format),
    "no space": ((2, 3, 0), 1, torch.contiguous_format),
    "no channels": ((2, 0, 3), 1, torch.contiguous_format),
}

ACTIVATIONS: dict[tuple[float, float], Callable[[torch.Tensor], torch.Tensor]] = {
    NO_BOUNDS: nn.Identity(),
    (0.0, math.inf): nn.ReLU(),
    (0.0, 6.0): nn.ReLU6(),
    (-math.inf, 0.5): lambda x: torch.where(x >= 0.5, 0.5, x),
    (-1.0, 1.0): nn.Hardtanh(),
}


def example(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    shape, dim, memory_format = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    loc = (1 + torch.randn(shape[dim], generator=generator)).to(dtype)
    return x.contiguous(memory_format=memory_format), loc, dy.contiguous(memory_format=memory_format), dim


def eager(
    x: torch.Tensor,
    loc: torch.Tensor,
    dy: torch.Tensor,
    seed: int,
    dim: int,
    dtype: torch.dtype,
    bounds: tuple[float, float] = NO_BOUNDS,
) -> tuple[torch.Tensor, ...]:
    """With the activation that has these bounds before the gate."""
    x, loc = x.to(dtype).requires_grad_(), loc.to(dtype).requires_grad_()
    u = philox.gate_draws(seed, torch.arange(x.shape[0]), loc.shape[0])
    y = hard_concrete_gate_reference(ACTIVATIONS[bounds](x), loc, u.to(dtype), dim=dim)
    return (y.detach(), *torch.autograd.grad(y, (x, loc), dy.to(dtype)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_error_is_at_most_twice_that_of_eager(backend: str, dtype: torch.dtype, case: str) -> None:
    x, loc, dy, dim = example(case, dtype)
    ours = gate(backend, x, loc, dy, seed=7, dim=dim)
    same = eager(x.clone(), loc.clone(), dy, 7, dim, dtype)
    exact = eager(x.double(), loc.double(), dy, 7, dim, torch.float64)
    for what, a, b, c in zip(("y", "grad x", "grad loc"), ours, same, exact, strict=True):
        assert_as_good_as_eager(a, b, c, what)
    assert ours[0].stride() == x.stride()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ["odd", "channels last", "tokens", "features", "channels in the middle", "no space"])
@pytest.mark.parametrize("bounds", list(ACTIVATIONS)[1:])
def test_bounds_are_those_of_an_activation(
    backend: str, dtype: torch.dtype, case: str, bounds: tuple[float, float]
) -> None:
    x, loc, dy, dim = example(case, dtype)
    numbers = torch.arange(x.numel()).reshape(x.shape)
    x = torch.where(numbers % 3 == 0, torch.tensor([0.0, 6.0, -1.0, 0.5])[numbers % 4].to(dtype), 3 * x)
    x = x.contiguous(memory_format=CASES[case][2])
    ours = gate(backend, x, loc, dy, seed=7, dim=dim, bounds=bounds)
    same = eager(x.clone(), loc.clone(), dy, 7, dim, dtype, bounds)
    exact = eager(x.double(), loc.double(), dy, 7, dim, torch.float64, bounds)
    terms = (dy.double() * ACTIVATIONS[bounds](x.double())).abs().sum([d for d in range(x.ndim) if d != dim])
    for what, a, b, c, of in zip(("y", "grad x", "grad loc"), ours, same, exact, (None, None, terms), strict=True):
        assert_as_good_as_eager(a, b, c, what, of)
    assert (ours[1][(x <= bounds[0]) | (x >= bounds[1])] == 0).all()


@pytest.mark.parametrize("case", ["images", "channels last", "tokens", "features"])
def test_interpreter_and_numba_agree(case: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU instead")
    x, loc, dy, dim = example(case, torch.float32)
    seed = torch.tensor(2**40 + 3)
    ours, others = (gate(backend, x, loc, dy, seed=seed, dim=dim) for backend in ("numba", "interpreter"))
    for a, b in zip(ours, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=2e-6)


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    """Two samples, 2^31 + 2^17 elements in bfloat16: 4 GiB in and 4 GiB out."""
    space = 2**30 // 3 + 2**16
    x = torch.ones(2, 3, space, dtype=torch.bfloat16)
    loc = torch.tensor([0.0, 0.5, 1.0])
    y = hard_concrete_gate(x, loc, seed=3)
    g = hard_concrete_values(loc, 2, seed=3).to(torch.bfloat16)
    assert torch.equal(y[:, :, 0], g)
    assert torch.equal(y[:, :, -1], g)
    del x
    assert (y == g[:, :, None]).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("last", [False, True])
def test_more_elements_than_32_bits_count_on_cuda(last: bool) -> None:
    x = torch.ones(2, 3, 2**15 + 1, 2**14, dtype=torch.bfloat16, device="cuda")
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    loc = torch.tensor([0.0, 0.5, 1.0], device="cuda")
    y = hard_concrete_gate(x.requires_grad_(), loc, seed=3)
    g = hard_concrete_values(loc, 2, seed=3).to(torch.bfloat16)
    assert (y == g[:, :, None, None]).all()
    y.backward(y.detach())
    assert (x.grad[:, :, -1, -1] == g * g).all()


def test_gradcheck_of_the_reference() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    loc = torch.randn(4, dtype=torch.float64, requires_grad=True)
    u = 0.2 + 0.6 * torch.rand(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: hard_concrete_gate_reference(a, b, u), (x, loc))


def test_gradcheck_of_the_operator() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    loc = torch.randn(4, dtype=torch.float64, requires_grad=True)
    for low, high in ACTIVATIONS:
        assert torch.autograd.gradcheck(lambda a, b: hard_concrete_gate(a, b, seed=5, low=low, high=high), (x, loc))  # noqa: B023


@pytest.mark.parametrize("bounds", ACTIVATIONS)
def test_second_derivative(bounds: tuple[float, float]) -> None:
    """By x with fixed gates, as a penalty on gradients asks for; otherwise refused, not left out."""
    x, loc, dy, _ = example("odd", torch.float64)
    x.requires_grad_()
    u = philox.gate_draws(5, torch.arange(x.shape[0]), loc.shape[0]).double()
    ours = hard_concrete_gate(x, loc, seed=5, low=bounds[0], high=bounds[1])
    theirs = hard_concrete_gate_reference(ACTIVATIONS[bounds](x), loc, u)
    penalties = []
    for y in (ours, theirs):
        (gradient,) = torch.autograd.grad((y.square() * dy).sum(), x, create_graph=True)
        penalties.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*penalties)
    assert penalties[0].abs().sum() > 0
    y = hard_concrete_gate(x, loc.requires_grad_(), seed=5, low=bounds[0], high=bounds[1])
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


@pytest.mark.parametrize("loc", [-2.0, 0.0, 1.0, 3.0])
def test_distribution_has_the_closed_form(loc: float) -> None:
    """Shares of exact zeros and ones, and the mean, of 400 000 gates."""
    g = hard_concrete_values(torch.full((400,), loc), 1000, seed=11).double()
    n = g.numel()
    closed = 1 - gate_open_probability(torch.tensor(loc)[None]).item()
    open_fully = 1 / (1 + math.exp(2 / 3 * math.log(1.1 / 0.1) - loc))  # P[s >= 1] = P[sigmoid >= 1.1 / 1.2]
    for measured, expected in (((g == 0).sum() / n, closed), ((g == 1).sum() / n, open_fully)):
        assert abs(measured - expected) < 5 * math.sqrt(expected * (1 - expected) / n)
    u = (torch.arange(10**6, dtype=torch.float64) + 0.5) / 10**6
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + loc) / (2 / 3)) * 1.2 - 0.1
    assert abs(g.mean() - s.clamp(0, 1).mean()) < 5 * s.clamp(0, 1).std() / math.sqrt(n)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["odd", "channels last", "features", "channels in the middle"])
@pytest.mark.parametrize("bounds", ACTIVATIONS)
def test_nan_and_infinity_go_where_eager_sends_them(backend: str, case: str, bounds: tuple[float, float]) -> None:
    x, loc, dy, dim = example(case, torch.float32)
    x[..., -1] = math.inf
    x[0].select(dim - 1, 0).fill_(math.nan)
    x[1].select(dim - 1, 1).fill_(-math.inf)
    dy[2].select(dim - 1, 2).fill_(math.inf)
    loc[0], loc[1], loc[2] = -math.inf, math.inf, -9.0
    loc[3] = math.nan
    ours = gate(backend, x, loc, dy, seed=7, dim=dim, bounds=bounds)
    theirs = eager(x.clone(), loc.clone(), dy, 7, dim, torch.float32, bounds)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_linked_places_share_draws(backend: str) -> None:
    """One seed: the same gates for every spatial size, layout, type and number of dimensions."""
    loc = torch.randn(12)
    expected = hard_concrete_values(loc, 3, seed=9)
    for shape, dim, dtype in (
        ((3, 12), 1, torch.float32),
        ((3, 12, 7), 1, torch.float32),
        ((3, 12, 2, 5), 1, torch.bfloat16),
        ((3, 4, 12), 2, torch.float16),
    ):
        ones = torch.ones(shape, dtype=dtype)
        y, _, _ = gate(backend, ones, loc, ones, seed=9, dim=dim)
        g = y.movedim(dim, 1).flatten(2)[..., 0] if len(shape) > 2 else y
        torch.testing.assert_close(g, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["odd", "channels last", "features"])
def test_parts_of_a_batch_draw_what_the_whole_draws(backend: str, case: str) -> None:
    x, loc, dy, dim = example(case, torch.float32)
    y, dx, dloc = gate(backend, x, loc, dy, seed=1, dim=dim)
    parts = [gate(backend, x[a:b], loc, dy[a:b], seed=1, dim=dim, offset=a) for a, b in ((0, 1), (1, x.shape[0]))]
    assert torch.equal(torch.cat([p[0] for p in parts]), y)
    assert torch.equal(torch.cat([p[1] for p in parts]), dx)
    torch.testing.assert_close(parts[0][2] + parts[1][2], dloc, rtol=1e-5, atol=1e-5)


def test_seed_tensor_and_int_are_the_same() -> None:
    x, loc = torch.randn(3, 4, 5), torch.randn(4)
    for seed in (0, 1, 2**63 - 1):
        by_tensor = hard_concrete_gate(x, loc, seed=torch.tensor(seed))
        assert torch.equal(hard_concrete_gate(x, loc, seed=seed), by_tensor)


def test_other_layouts_are_read_through_a_copy() -> None:
    whole, loc = torch.randn(6, 8, 10), torch.randn(4)
    for x in (whole[::2, 1:8:2], whole[:, :4].transpose(0, 2), torch.randn(1, 4, 5).expand(6, 4, 5)):
        assert layout(x, 1) is None
        y = hard_concrete_gate(x, loc, seed=2)
        assert torch.equal(y, hard_concrete_gate(x.contiguous(), loc, seed=2))
        assert y.stride() == torch.empty_like(x).stride()


def test_gradient_in_another_layout_than_x() -> None:
    x = torch.randn(2, 3, 4, 5).requires_grad_()
    loc = torch.randn(3, requires_grad=True)
    dy = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    a = torch.autograd.grad(hard_concrete_gate(x, loc, seed=2), (x, loc), dy)
    b = torch.autograd.grad(hard_concrete_gate(x, loc, seed=2), (x, loc), dy.contiguous())
    assert all(torch.equal(m, n) for m, n in zip(a, b, strict=True))
    total = hard_concrete_gate(x, loc, seed=2).sum()  # its gradient is one element, expanded
    torch.testing.assert_close(torch.autograd.grad(total, x)[0][:, :, 0, 0], hard_concrete_values(loc, 2, seed=2))


def test_only_what_needs_a_gradient_is_kept() -> None:
    x, loc = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = hard_concrete_gate(x, loc, seed=3)
        assert [t.shape for t in kept] == [loc.shape]
        kept.clear()
        both = hard_concrete_gate(x, loc.requires_grad_(), seed=3)
        assert {t.data_ptr() for t in kept} == {x.data_ptr(), loc.data_ptr()}
        kept.clear()
        bounded = hard_concrete_gate(x, loc.detach(), seed=3, low=0.0)
        assert {t.data_ptr() for t in kept} == {x.data_ptr(), loc.data_ptr()}
    dy = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(both, x, dy)[0])
    expected = torch.autograd.grad(hard_concrete_gate(x.relu(), loc.detach(), seed=3), x, dy)[0]
    assert torch.equal(torch.autograd.grad(bounded, x, dy)[0], expected)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    x, loc, dy = torch.randn(9, 37, 51, 51), torch.randn(37), torch.randn(9, 37, 51, 51)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results += [gate("numba", x, loc, dy, seed=4), gate("numba", x, loc, dy, seed=4)]
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_seed_changed_before_the_backward_pass_is_refused() -> None:
    seed = torch.tensor(3)
    y = hard_concrete_gate(torch.randn(2, 3), torch.randn(3, requires_grad=True), seed=seed)
    seed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("case", ["odd", "channels last", "tokens", "no space"])
def test_in_place(case: str) -> None:
    x, loc, _, dim = example(case, torch.float32)
    expected = hard_concrete_gate(x, loc, seed=5, dim=dim)
    held, version = x.clone(memory_format=torch.preserve_format), x._version
    assert hard_concrete_gate_(x, loc, seed=5, dim=dim) is x
    assert torch.equal(x, expected)
    assert x._version > version
    expected = hard_concrete_eval(held, loc, dim=dim)
    assert hard_concrete_eval_(held, loc, dim=dim) is held
    assert torch.equal(held, expected)
    gap = torch.randn(4, 6, 8)[:, ::2]
    expected = hard_concrete_gate(gap, torch.zeros(3), seed=5)
    assert torch.equal(hard_concrete_gate_(gap, torch.zeros(3), seed=5), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evaluation(dtype: torch.dtype) -> None:
    x, loc = torch.randn(2, 5, 3).to(dtype), torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0])
    expected = x.double() * (torch.sigmoid(loc.double()) * 1.2 - 0.1).clamp(0, 1)[:, None]
    y = hard_concrete_eval(x, loc)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert (y[:, 0] == 0).all()
    assert torch.equal(y[:, 4], x[:, 4])


def test_values_are_differentiable_by_loc() -> None:
    loc = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: hard_concrete_values(a, 5, seed=2, sample_offset=3), (loc,))
    assert torch.autograd.gradcheck(gate_open_probability, (loc,))
