"""Chains of modules that begin alike run their beginning once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyassemble.assemble.prefixes import Executions, Step, refuse_non_finite, run_chains
from pyassemble.errors import TensorError


class Counted:
    """A step's function that counts how often it runs."""

    def __init__(self, factor: float) -> None:
        self.factor, self.runs = factor, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.runs += 1
        return torch.sin(x * self.factor)


def steps(letters: str, functions: dict[str, Counted]) -> list[Step]:
    """One step a letter; lower-case ones are stitches."""
    return [Step(c, functions.setdefault(c, Counted(ord(c) / 70)), c, counts=c.isupper()) for c in letters]


def test_equal_beginnings_run_once() -> None:
    functions: dict[str, Counted] = {}
    words = ["AxBC", "AxBD", "AyBC", "EBC", "AxBC", "Ax"]
    chains = [steps(word, functions) for word in words]
    x = torch.randn(3)
    outputs, executions = run_chains(chains, x)
    for word, output in zip(words, outputs, strict=True):
        expected = x
        for c in word:
            expected = torch.sin(expected * (ord(c) / 70))
        assert torch.equal(output, expected)
    # A x B C D / y B C / E B C; B behind x, behind y and behind E are three different things.
    assert {c: f.runs for c, f in functions.items()} == {"A": 1, "x": 1, "B": 3, "C": 3, "D": 1, "y": 1, "E": 1}
    assert executions == Executions(requested=3 + 3 + 3 + 3 + 3 + 1, executed=9)
    assert executions.saved == 7


def test_modules_that_work_in_place_spoil_nothing() -> None:
    relu, double = nn.ReLU(inplace=True), nn.Threshold(0.5, 7.0, inplace=True)
    x = torch.randn(50)
    before = x.clone()
    chains = [
        [Step("r", relu, "r"), Step("d", double, "d")],
        [Step("d", double, "d")],
        [Step("r", relu, "r")],
        [Step("r", relu, "r"), Step("n", torch.neg, "n")],
    ]
    outputs, _ = run_chains(chains, x)
    assert torch.equal(x, before)
    first = torch.relu(before)
    expected = [nn.Threshold(0.5, 7.0)(first), nn.Threshold(0.5, 7.0)(before), first, -first]
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_none() -> None:
    assert run_chains([], torch.ones(1)) == ([], Executions())


def test_the_first_step_that_is_not_finite_is_named() -> None:
    chain = [Step("s", torch.sin, "block s"), Step("l", torch.log, "block l"), Step("n", torch.neg, "block n")]
    refuse_non_finite(chain, torch.ones(2, 3))
    with pytest.raises(TensorError, match=r"block l: 2 of 3 elements of its output \(3,\) are NaN or infinite"):
        refuse_non_finite(chain, torch.tensor([1.0, 0.0, -1.0]))
    with pytest.raises(TensorError, match="the input: 1 of 1"):
        refuse_non_finite(chain, torch.tensor([math.nan]))
