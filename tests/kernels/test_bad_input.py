"""Bad input: an exception of the package's own that names the tensor, its shape and what is accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from pyassemble.errors import ArgumentTypeError, OutOfRangeError, PyAssembleError, TensorError
from pyassemble.kernels import (
    frobenius_score,
    gate_open_probability,
    hard_concrete_eval,
    hard_concrete_eval_,
    hard_concrete_gate,
    hard_concrete_gate_,
    hard_concrete_values,
    perturb,
)

X, LOC = torch.randn(2, 3, 4), torch.randn(3)

GATES: list[tuple[dict[str, Any], type[PyAssembleError], str]] = [
    ({"loc": torch.randn(3, device="meta")}, TensorError, r"loc of shape \(3,\).*meta; accepted: both on one device"),
    ({"loc": torch.randn(4)}, TensorError, r"x of shape \(2, 3, 4\).*has 3 channels on dimension 1.*for 4"),
    ({"loc": torch.randn(3, 1)}, TensorError, r"loc of shape \(3, 1\).*accepted: one dimension"),
    ({"x": torch.ones(2, 3, dtype=torch.int64)}, TensorError, r"x of shape \(2, 3\), torch.int64.*accepted: dense"),
    ({"x": torch.ones(2, 3, dtype=torch.complex64)}, TensorError, r"torch.complex64"),
    ({"loc": torch.ones(3, dtype=torch.int32)}, TensorError, r"loc of shape \(3,\), torch.int32"),
    ({"x": X.to_sparse()}, TensorError, "torch.sparse_coo"),
    ({"x": [1.0]}, ArgumentTypeError, "x must be a tensor, not list"),
    ({"x": torch.randn(3)}, TensorError, r"x of shape \(3,\).*has no channels on dimension 1"),
    ({"dim": 0}, TensorError, "no channels on dimension 0"),
    ({"dim": 3}, TensorError, "no channels on dimension 3"),
    ({"dim": -3}, TensorError, "no channels on dimension -3"),
    ({"dim": 1.0}, ArgumentTypeError, r"dim must be a number \(int\), not float"),
    ({"beta": torch.tensor(0.5)}, ArgumentTypeError, r"beta must be a number \(int or float\), not Tensor"),
    ({"zeta": None}, ArgumentTypeError, "zeta must be a number.*not NoneType"),
    ({"beta": 0.0}, OutOfRangeError, "beta 0.0.*accepted: .*beta > 0"),
    ({"beta": math.nan}, OutOfRangeError, "beta nan"),
    ({"beta": math.inf}, OutOfRangeError, "beta inf"),
    ({"gamma": 0.0}, OutOfRangeError, "gamma 0.0.*gamma < 0"),
    ({"zeta": 1.0}, OutOfRangeError, "zeta 1.0.*zeta > 1"),
]
SEEDS: list[tuple[dict[str, Any], type[PyAssembleError], str]] = [
    ({"seed": -1}, OutOfRangeError, r"seed must be in \[0, 2\*\*63\), not -1"),
    ({"seed": 2**63}, OutOfRangeError, r"seed must be in \[0, 2\*\*63\)"),
    ({"seed": 1.0}, ArgumentTypeError, "seed must be an int, not float"),
    ({"seed": True}, ArgumentTypeError, "seed must be an int, not bool"),
    ({"seed": torch.tensor([1])}, TensorError, r"seed of shape \(1,\).*0-d int64 tensor on cpu"),
    ({"seed": torch.tensor(1, dtype=torch.int32)}, TensorError, "seed.*torch.int32"),
    ({"seed": torch.tensor(1, device="meta")}, TensorError, "seed.*meta"),
]
OFFSETS: list[tuple[dict[str, Any], type[PyAssembleError], str]] = [
    ({"sample_offset": -1}, OutOfRangeError, "sample_offset must be in"),
    ({"sample_offset": 1.5}, ArgumentTypeError, "sample_offset must be an int"),
]
BOUNDS: list[tuple[dict[str, Any], type[PyAssembleError], str]] = [
    ({"low": 1.0, "high": 1.0}, OutOfRangeError, "low 1.0, high 1.0; accepted: low < high"),
    ({"low": math.nan}, OutOfRangeError, "low nan"),
    ({"high": "6"}, ArgumentTypeError, "high must be a number"),
    ({"high": 10**400}, OutOfRangeError, "high of 1329 bits is larger than any float"),
]


@pytest.mark.parametrize(("change", "error", "message"), BOUNDS)
def test_bounds(change: dict[str, Any], error: type[PyAssembleError], message: str) -> None:
    with pytest.raises(error, match=message):
        hard_concrete_gate(X, LOC, seed=1, **change)


@pytest.mark.parametrize(("change", "error", "message"), GATES + SEEDS + OFFSETS)
@pytest.mark.parametrize("function", [hard_concrete_gate, hard_concrete_gate_])
def test_gates(function: Any, change: dict[str, Any], error: type[PyAssembleError], message: str) -> None:
    arguments = {"x": X, "loc": LOC, "seed": 1, **change}
    with pytest.raises(error, match=message):
        function(arguments.pop("x"), arguments.pop("loc"), **arguments)


@pytest.mark.parametrize(("change", "error", "message"), GATES)
@pytest.mark.parametrize("function", [hard_concrete_eval, hard_concrete_eval_])
def test_evaluation(function: Any, change: dict[str, Any], error: type[PyAssembleError], message: str) -> None:
    arguments = {"x": X, "loc": LOC, **change}
    with pytest.raises(error, match=message):
        function(arguments.pop("x"), arguments.pop("loc"), **arguments)


@pytest.mark.parametrize(("change", "error", "message"), SEEDS)
def test_noise(change: dict[str, Any], error: type[PyAssembleError], message: str) -> None:
    with pytest.raises(error, match=message):
        perturb(X, 0.1, **change)


def test_noise_and_values() -> None:
    with pytest.raises(TensorError, match="int64"):
        perturb(torch.arange(3), 0.1, seed=1)
    with pytest.raises(OutOfRangeError, match="alpha must be finite, not nan"):
        perturb(X, math.nan, seed=1)
    with pytest.raises(ArgumentTypeError, match="alpha must be a number, not Tensor"):
        perturb(X, torch.tensor(1.0), seed=1)  # type: ignore[arg-type]
    with pytest.raises(OutOfRangeError, match="batch must be in"):
        hard_concrete_values(LOC, -1, seed=1)
    with pytest.raises(TensorError, match="loc of shape"):
        gate_open_probability(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("function", [hard_concrete_gate_, hard_concrete_eval_])
def test_in_place_under_autograd(function: Any) -> None:
    seed = {"seed": 1} if function is hard_concrete_gate_ else {}
    with pytest.raises(TensorError, match="would be overwritten"):
        function(X.clone(), LOC.clone().requires_grad_(), **seed)
    with torch.no_grad():
        function(X.clone(), LOC.clone().requires_grad_(), **seed)


def test_candidates() -> None:
    a, b = torch.randn(3, 4), torch.randn(2, 4)
    with pytest.raises(TensorError, match=r"clean\[1\] of shape \(2, 4\).*beside clean\[0\].*one batch size"):
        frobenius_score([a, b], [a, b])
    with pytest.raises(TensorError, match=r"clean\[0\] of shape \(3, 4\).*perturbed\[0\] of shape \(2, 4\)"):
        frobenius_score([a], [b])
    with pytest.raises(TensorError, match="float64"):
        frobenius_score([a], [a.double()])
    with pytest.raises(TensorError, match="2 clean and 1 perturbed"):
        frobenius_score([a, a], [a])
    with pytest.raises(TensorError, match=r"perturbed\[0\].*torch.int64"):
        frobenius_score([a], [torch.ones(3, 4, dtype=torch.int64)])
    with pytest.raises(TensorError, match=r"shape \(\)"):
        frobenius_score([torch.tensor(1.0)], [torch.tensor(1.0)])
    with pytest.raises(ArgumentTypeError, match="clean must be a list of tensors"):
        frobenius_score(a, a)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"clean\[0\] must be a tensor, not int"):
        frobenius_score([1], [a])  # type: ignore[list-item]
