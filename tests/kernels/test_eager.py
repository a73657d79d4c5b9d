"""The way past the dispatcher: for ordinary tensors only, and the same bits as by the operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from pyassemble.kernels import hard_concrete_gate
from pyassemble.kernels.hard_concrete import eager
from tests.kernels.test_hard_concrete import CASES, example


def results(
    x: torch.Tensor, loc: torch.Tensor, dy: torch.Tensor, dim: int, seed: Any = 3, **bounds: float
) -> list[torch.Tensor]:
    x, loc = x.detach().requires_grad_(), loc.detach().requires_grad_()
    y = hard_concrete_gate(x, loc, seed=seed, dim=dim, sample_offset=2, **bounds)
    return [y.detach(), *torch.autograd.grad(y, (x, loc), dy)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_same_as_by_the_operators(monkeypatch: pytest.MonkeyPatch, case: str, dtype: torch.dtype) -> None:
    x, loc, dy, dim = example(case, dtype)
    found = [*results(x, loc, dy, dim, low=-1.0), *results(x, loc, dy, dim, torch.tensor(5))]
    monkeypatch.setattr(eager, "ordinary", lambda *_: False)
    expected = [*results(x, loc, dy, dim, low=-1.0), *results(x, loc, dy, dim, torch.tensor(5))]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


class Seen(TorchDispatchMode):
    """Names of the operators that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_modes_see_the_operators() -> None:
    x, loc = torch.randn(2, 3, 4), torch.randn(3, requires_grad=True)
    with Seen() as seen:
        hard_concrete_gate(x, loc, seed=1).sum().backward()
    assert {"pyassemble::hard_concrete_gate", "pyassemble::hard_concrete_gate_backward"} <= set(seen.names)
    y = hard_concrete_gate(x, loc, seed=1)
    with Seen() as seen:  # backward alone
        y.sum().backward()
    assert "pyassemble::hard_concrete_gate_backward" in seen.names


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:FutureWarning")  # of torch.autograd.forward_ad itself
def test_what_is_not_ordinary_takes_the_general_way() -> None:
    x, loc = torch.randn(2, 3, 4), torch.randn(3)
    negated = torch._neg_view(-x)  # type: ignore[attr-defined]
    assert negated.is_neg()
    assert torch.equal(hard_concrete_gate(negated, loc, seed=1), hard_concrete_gate(x, loc, seed=1))
    assert hard_concrete_gate(x.to("meta"), loc.to("meta"), seed=1).device.type == "meta"
    with torch.inference_mode():
        assert torch.equal(hard_concrete_gate(x.clone(), loc, seed=1), hard_concrete_gate(x, loc, seed=1))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises((NotImplementedError, RuntimeError)):
            hard_concrete_gate(dual, loc, seed=1)


def test_several_gradients_at_once() -> None:
    x, loc = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    y = hard_concrete_gate(x, loc, seed=1)
    dy = torch.randn(5, 2, 3, 4)
    found = torch.autograd.grad(y, (x, loc), dy, is_grads_batched=True, retain_graph=True)
    for v in range(5):
        one = torch.autograd.grad(y, (x, loc), dy[v], retain_graph=True)
        assert all(torch.equal(a[v], b) for a, b in zip(found, one, strict=True))


def test_checkpointed() -> None:
    x, loc = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    y = checkpoint(lambda a, b: hard_concrete_gate(a, b, seed=1), x, loc, use_reentrant=False)
    expected = torch.autograd.grad(hard_concrete_gate(x, loc, seed=1).square().sum(), (x, loc))
    assert all(
        torch.equal(a, b) for a, b in zip(torch.autograd.grad(y.square().sum(), (x, loc)), expected, strict=True)
    )


def test_numbers_are_told_apart_by_type() -> None:
    x, loc = torch.randn(2, 3, 4), torch.randn(3)
    hard_concrete_gate(x, loc, seed=1, dim=1)
    with pytest.raises(TypeError, match="dim must be a number"):
        hard_concrete_gate(x, loc, seed=1, dim=True)
    with pytest.raises(TypeError, match="dim must be a number"):
        hard_concrete_gate(x, loc, seed=1, dim=1.0)  # type: ignore[arg-type]
