"""``torch.vmap`` and ``torch.func.grad`` over the operations: bit for bit what a Python loop gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pyassemble.errors import TensorError
from pyassemble.kernels import (
    frobenius_score,
    hard_concrete_gate,
    hard_concrete_gate_,
    hard_concrete_values,
    perturb,
)

if TYPE_CHECKING:
    from collections.abc import Callable

V, B, C = 3, 4, 5
SEEDS = torch.tensor([7, 2**40, 9])
Dims = tuple[int | None, int | None, int | None]
# Dimensions of x, loc and seed that are mapped over.
DIMS: list[Dims] = [(0, 0, None), (0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (2, 1, 0), (-1, -1, 0)]


def batched(dims: Dims, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """x, loc and seed with V elements on the dimensions given."""
    generator = torch.Generator().manual_seed(1)
    x, loc = (torch.randn(V, *shape, generator=generator) for shape in ((B, C, 6, 7), (C,)))
    x, loc = (
        t[0] if dim is None else t.movedim(0, dim).contiguous() for t, dim in zip((x, loc), dims[:2], strict=True)
    )
    return x.to(dtype), loc, 7 if dims[2] is None else SEEDS


def looped(function: Callable[..., Any], dims: Dims, arguments: tuple[Any, Any, Any]) -> list[Any]:
    """The function of each element."""
    return [
        function(*(a if dim is None else a.select(dim, v) for a, dim in zip(arguments, dims, strict=True)))
        for v in range(V)
    ]


def gated(x: torch.Tensor, loc: torch.Tensor, seed: Any) -> torch.Tensor:
    return hard_concrete_gate(x, loc, seed=seed, sample_offset=3, high=1.5)


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gate(dims: Dims, dtype: torch.dtype) -> None:
    arguments = batched(dims, dtype)
    expected = looped(gated, dims, arguments)
    assert torch.equal(torch.vmap(gated, in_dims=dims)(*arguments), torch.stack(expected))
    assert torch.equal(torch.vmap(gated, in_dims=dims, out_dims=2)(*arguments), torch.stack(expected, 2))


@pytest.mark.parametrize("dims", DIMS, ids=str)
@pytest.mark.parametrize("wanted", [(0, 1), (0,), (1,)], ids=str)
def test_gradients_of_each(dims: Dims, wanted: tuple[int, ...]) -> None:
    """vmap(grad(f)): one backward pass for each element."""
    arguments = batched(dims)
    dy = torch.randn(B, C, 6, 7)

    def loss(x: torch.Tensor, loc: torch.Tensor, seed: Any) -> torch.Tensor:
        return (gated(x, loc, seed) * dy).sum()

    gradients = torch.func.grad(loss, argnums=wanted)
    found = torch.func.vmap(gradients, in_dims=dims)(*arguments)
    expected = looped(gradients, dims, arguments)
    x, loc, seed = (a if dim is None else a.select(dim, 0) for a, dim in zip(arguments, dims, strict=True))
    leaves = x.clone().requires_grad_(), loc.clone().requires_grad_()
    plain = torch.autograd.grad(loss(*leaves, seed), leaves)
    for place, argument in enumerate(wanted):
        assert torch.equal(found[place], torch.stack([e[place] for e in expected]))
        assert torch.equal(found[place][0], plain[argument])
        assert found[place].abs().sum() > 0


def test_gradient_through_vmap() -> None:
    """grad(vmap(f)), by torch.func and by the tape, and inside a network with mapped weights."""
    x, loc, seeds = batched((0, 0, 0))
    weight = torch.randn(V, 2, C)

    def network(x: torch.Tensor, loc: torch.Tensor, weight: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(gated(perturb(x, 0.1, seed=seed), loc, seed)).mean((2, 3))
        return (hidden @ weight.T).square().mean()

    def total(*arguments: torch.Tensor) -> torch.Tensor:
        return torch.vmap(network)(*arguments, seeds).sum()

    leaves = [t.clone().requires_grad_() for t in (x, loc, weight)]
    expected = torch.autograd.grad(sum(network(*(t[v] for t in leaves), seeds[v]) for v in range(V)), leaves)
    for found in (torch.autograd.grad(total(*leaves), leaves), torch.func.grad(total, argnums=(0, 1, 2))(*leaves)):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_jacobian() -> None:
    x, loc, _ = batched((None, None, None))

    def sums(loc: torch.Tensor) -> torch.Tensor:
        return gated(x, loc, 7).sum((0, 2, 3))

    found = torch.func.jacrev(sums)(loc)
    leaf = loc.clone().requires_grad_()
    rows = [torch.autograd.grad(sums(leaf)[c], leaf)[0] for c in range(C)]
    torch.testing.assert_close(found, torch.stack(rows))
    assert found.diag().abs().min() > 0


def test_one_seed_draws_alike_and_several_draw_their_own() -> None:
    loc = torch.zeros(V, C)
    same = torch.vmap(lambda loc: hard_concrete_values(loc, 8, seed=7))(loc)
    assert torch.equal(same[0], same[1])
    own = torch.vmap(lambda loc, seed: hard_concrete_values(loc, 8, seed=seed))(loc, SEEDS)
    assert torch.equal(own[0], same[0])
    assert not torch.isclose(own[0], own[1]).all()
    assert not torch.isclose(own[1], own[2]).all()


def test_the_other_operations() -> None:
    x = torch.randn(V, B, C, 6)
    noisy = torch.vmap(lambda x, seed: perturb(x, 0.5, seed=seed))(x, SEEDS)
    assert torch.equal(noisy, torch.stack([perturb(x[v], 0.5, seed=SEEDS[v]) for v in range(V)]))
    scores = torch.vmap(lambda a, b: frobenius_score([a, x[0]], [b, x[1]]))(x, noisy)
    assert torch.equal(scores, torch.stack([frobenius_score([x[v], x[0]], [noisy[v], x[1]]) for v in range(V)]))


def test_in_place() -> None:
    x, loc, seeds = batched((0, 0, 0))
    expected = torch.stack([hard_concrete_gate(x[v], loc[v], seed=seeds[v], sample_offset=3) for v in range(V)])
    y = x.clone()
    torch.vmap(lambda x, loc, seed: hard_concrete_gate_(x, loc, seed=seed, sample_offset=3))(y, loc, seeds)
    assert torch.equal(y, expected)
    with pytest.raises(TensorError, match=r"x of shape \(4, 5, 6, 7\).*accepted: x batched too"):
        torch.vmap(lambda loc: hard_concrete_gate_(y[0], loc, seed=1))(loc)
    assert torch.equal(y, expected)


def test_nested_and_empty() -> None:
    x, loc, seeds = batched((0, 0, 0))
    both = torch.vmap(torch.vmap(gated, in_dims=(None, None, 0)), in_dims=(0, 0, None))(x, loc, seeds)
    for v in range(V):
        for w in range(V):
            assert torch.equal(both[v, w], gated(x[v], loc[v], seeds[w]))
    assert torch.vmap(gated)(x[:0], loc[:0], seeds[:0]).shape == (0, B, C, 6, 7)


@pytest.mark.filterwarnings("ignore")  # what Dynamo warns of in its own code
def test_compiled() -> None:
    arguments = batched((0, 0, 0))
    compiled = torch.compile(torch.vmap(gated), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), torch.vmap(gated)(*arguments))
