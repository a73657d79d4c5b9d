"""The scorer through forward hooks."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError
from pyassemble.kernels import LayerScorer, perturb


def test_is_the_formula() -> None:
    network = timm.create_model("resnet18", num_classes=3).eval()
    x = torch.randn(3, 3, 32, 32)
    score = LayerScorer(network, "layer2", alpha=0.05, seed=4)(x)
    outputs = []
    with network.layer2.register_forward_hook(lambda m, i, o: outputs.append(o)), torch.no_grad():
        network(x)
        network(perturb(x, 0.05, seed=4))
    distance = (outputs[0] - outputs[1]).double().flatten(1).norm(dim=1).mean().log().item()
    assert score == pytest.approx(distance, abs=1e-3)


def test_a_later_layer_may_work_in_place() -> None:
    linear, x = nn.Linear(3, 4), torch.randn(5, 3)
    alone = LayerScorer(nn.Sequential(linear), "0", alpha=0.5)(x)
    assert LayerScorer(nn.Sequential(linear, nn.ReLU(inplace=True)), "0", alpha=0.5)(x) == alone


def test_the_last_of_several_runs_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.linear(x[:1])
            return self.linear(self.linear(x))

    network, x = Twice(), torch.randn(5, 3)
    straight = LayerScorer(nn.Sequential(network.linear, network.linear), "", alpha=0.5)(x)
    assert LayerScorer(network, "linear", alpha=0.5)(x) == straight


def test_leaves_the_module_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    network[2].eval()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    scorer, x = LayerScorer(network, "2"), torch.randn(2, 3, 5, 5)
    assert scorer(x) == scorer(x)
    assert [m.training for m in network] == [True, True, False]
    assert network.training
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert not network[2]._forward_hooks


def test_says_what_is_wrong() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 2))
    with pytest.raises(OutOfRangeError, match=r"no layer 'head'; known: .*0, 1"):
        LayerScorer(network, "head")
    with pytest.raises(TensorError, match="layer 1 gave tuple"):
        LayerScorer(network, "1")(torch.randn(2, 3))
    with pytest.raises(ArgumentTypeError, match=r"module must be a .*Module, not int"):
        LayerScorer(1, "0")  # type: ignore[arg-type]
    with pytest.raises(OutOfRangeError, match="seed must be in"):
        LayerScorer(network, "0", seed=-1)
    with pytest.raises(TensorError, match=r"x of shape \(\).*accepted: \(B, ...\)"):
        LayerScorer(network, "0")(torch.tensor(1.0))
    constant = nn.Sequential(nn.Linear(3, 4))
    nn.init.zeros_(constant[0].weight)
    assert LayerScorer(constant, "0")(torch.randn(2, 3)) == -math.inf
