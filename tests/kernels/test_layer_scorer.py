"""The scorer through forward hooks."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from pyassemble.errors import OutOfRangeError, TensorError
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
    constant = nn.Sequential(nn.Linear(3, 4))
    nn.init.zeros_(constant[0].weight)
    assert LayerScorer(constant, "0")(torch.randn(2, 3)) == -math.inf
