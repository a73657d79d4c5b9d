"""An optimizer's state goes through named tensors unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pyassemble.errors import TensorError
from pyassemble.training.optimizer_state import load_optimizer_tensors, optimizer_tensors


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
    ],
)
def test_goes_on_the_same(kind: Any, options: dict[str, Any]) -> None:
    x, y = torch.randn(16, 4), torch.randn(16, 2)

    def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(x), y).backward()
            optimizer.step()

    net, again = nn.Linear(4, 2), nn.Linear(4, 2)
    optimizer = kind(net.parameters(), lr=0.01, **options)
    train(net, optimizer, 3)
    saved = {
        name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, dict(net.named_parameters())).items()
    }
    again.load_state_dict(net.state_dict())
    fresh = kind(again.parameters(), lr=0.01, **options)
    load_optimizer_tensors(fresh, dict(again.named_parameters()), saved)
    train(net, optimizer, 3)
    train(again, fresh, 3)
    assert torch.equal(net.weight, again.weight)
    assert torch.equal(net.bias, again.bias)


def test_a_stranger_is_named() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(TensorError, match=r"'w/exp_avg' \(3,\): no parameter 'w'"):
        load_optimizer_tensors(
            torch.optim.Adam(net.parameters()), dict(net.named_parameters()), {"w/exp_avg": torch.zeros(3)}
        )
