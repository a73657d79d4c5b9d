"""Gates as modules."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from pyassemble.errors import ArgumentTypeError, OutOfRangeError
from pyassemble.kernels import L0Gate1d, L0Gate2d, gate_open_probability, hard_concrete_eval


def test_starts_at_the_published_distribution() -> None:
    gate = L0Gate2d(10000)
    assert gate.loc.mean().item() == pytest.approx(1.0, abs=1e-3)
    assert gate.loc.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(L0Gate1d(5, seed=3).loc, L0Gate1d(5, seed=3).loc)
    assert not torch.equal(L0Gate1d(5, seed=3).loc, L0Gate1d(5, seed=4).loc)


def test_draws_anew_in_training_and_not_in_evaluation() -> None:
    gate, x = L0Gate2d(8), torch.ones(4, 8, 2, 3)
    first, second = gate(x), gate(x)
    assert not torch.equal(first, second)
    assert gate.seed == 2
    gate.eval()
    assert torch.equal(gate(x), hard_concrete_eval(x, gate.loc))
    assert torch.equal(gate(x), gate(x))
    assert gate.seed == 2


def test_places_that_share_a_draw() -> None:
    gate = L0Gate1d(8)
    seed = gate.draw()
    tokens = gate(torch.ones(4, 5, 8), seed)
    features = gate(torch.ones(4, 8), seed)
    assert torch.equal(tokens[:, 2], features)
    assert torch.equal(gate.values(4, seed), features)
    assert not torch.equal(gate(torch.ones(4, 8)), features)


def test_saved_and_loaded_goes_on_with_the_same_draws() -> None:
    gate, x = L0Gate2d(8), torch.ones(4, 8, 2, 3)
    gate(x)
    other = L0Gate2d(8, seed=9)
    other.load_state_dict(gate.state_dict())
    assert torch.equal(gate(x), other(x))


def test_loss_and_importance() -> None:
    gate = L0Gate1d(3)
    with torch.no_grad():
        gate.loc.copy_(torch.tensor([-5.0, 0.0, 5.0]))
    assert torch.equal(gate.open_probability(), gate_open_probability(gate.loc))
    assert gate.l0_loss(0.25).item() == pytest.approx((0.25 - gate.open_probability().mean().item()) ** 2)
    torch.testing.assert_close(gate.importance(), torch.tensor([0.0, 0.5, 1.0]))
    gate.l0_loss().backward()
    assert gate.loc.grad is not None
    assert (gate.loc.grad != 0).all()


def test_training_closes_a_useless_channel() -> None:
    """Only the first of two features predicts; half the gates may stay open."""
    torch.manual_seed(0)
    gate, head = L0Gate1d(2), nn.Linear(2, 1)
    gates = torch.optim.SGD(gate.parameters(), lr=0.2, momentum=0.9)
    weights = torch.optim.SGD(head.parameters(), lr=0.05)
    for _ in range(300):
        x = torch.randn(64, 2)
        loss = (head(gate(x)) - x[:, :1]).square().mean() + 0.5 * gate.l0_loss()
        gates.zero_grad(), weights.zero_grad()
        loss.backward()
        gates.step(), weights.step()
    assert gate.loc[0] > gate.loc[1] + 1
    assert gate.importance()[0] > 0.9


def test_copies_and_bad_arguments() -> None:
    gate = copy.deepcopy(L0Gate2d(4))
    assert "4, beta=0.6667, gamma=-0.1, zeta=1.1" in repr(gate)
    with pytest.raises(OutOfRangeError, match="learned temperature"):
        L0Gate2d(4, fix_temp=False)
    with pytest.raises(OutOfRangeError, match="beta 0"):
        L0Gate2d(4, beta=0)
    for seed in (-1, 2**63, 2**70):
        with pytest.raises(OutOfRangeError, match=r"seed must be in \[0, 2\*\*63\)"):
            L0Gate1d(4, seed=seed)
    with pytest.raises(OutOfRangeError, match="n_channels must be in"):
        L0Gate2d(-1)
    with pytest.raises(ArgumentTypeError, match="n_channels must be an int, not float"):
        L0Gate2d(4.0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="loc_mean must be a number"):
        L0Gate2d(4, loc_mean="1")  # type: ignore[arg-type]
    for arguments in ({"n_channels": 0}, {"loc_sd": -0.1}, {"loc_sd": math.inf}, {"loc_mean": math.nan}):
        with pytest.raises(OutOfRangeError, match="accepted: at least one channel"):
            L0Gate2d(**{"n_channels": 4, **arguments})  # type: ignore[arg-type]
    for keep in (math.nan, -0.1, 1.1):
        with pytest.raises(OutOfRangeError, match=r"keep must be in \[0, 1\]"):
            gate.l0_loss(keep)
    with pytest.raises(ArgumentTypeError, match="keep must be a number"):
        gate.l0_loss("half")  # type: ignore[arg-type]
