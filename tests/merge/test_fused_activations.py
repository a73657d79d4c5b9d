"""Activations done by the gates after them: the same numbers as one after the other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import pyassemble as pa
from pyassemble.merge import student as student_module
from pyassemble.merge.gates import GateSite

if TYPE_CHECKING:
    from collections.abc import Callable


class Steps(nn.Module):
    """Activations as functions and methods, one of them used twice, one after a view, one as a module in place."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 if k else 3, 4, 3, padding=1) for k in range(6))
        self.narrow = nn.ModuleList(nn.Conv2d(2, 4, 1) for _ in range(2))
        self.cut = nn.Hardtanh(-0.5, 0.25, inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](x))
        x = self.convs[1](x).relu_()
        x = F.relu6(self.convs[2](x), inplace=True)
        x = self.cut(self.convs[3](x))
        y = torch.relu(self.convs[4](x))  # two users
        left, right = self.convs[5](y).chunk(2, 1)
        z = self.narrow[0](F.relu(left)) + self.narrow[1](right) + y
        return self.head(z.mean((2, 3)))


class Aliased(nn.Module):
    """What an activation is done to is, without a copy, what is changed in place afterwards."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4 if k else 3, 4, 3, padding=1) for k in range(3))
        self.norm = nn.BatchNorm2d(4)
        self.first = first
        self.last = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.convs[0](x))
        y = self.convs[1](F.relu(self.first(x)))
        z = self.convs[2](self.last(x))
        return self.head((z + y).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how many gates do an activation
    "steps": (Steps, 4),
    "identity": (lambda: Aliased(nn.Identity()), 0),
    "dropout": (lambda: Aliased(nn.Dropout(0.0)), 0),
    "resnet18": (lambda: timm.create_model("resnet18", num_classes=3), 11),
    "mobilenetv2_050": (lambda: timm.create_model("mobilenetv2_050", num_classes=3), 17),  # ends of norms
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=3), 17),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), 11),
    "convnext_atto": (lambda: timm.create_model("convnext_atto", num_classes=3), 0),
}


def students(monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module]) -> list[pa.WideStudent]:
    """The student, and one whose activations are steps of their own."""
    torch.manual_seed(0)
    teachers = [make().eval() for _ in range(2)]
    example = torch.randn(2, 3, 64, 64)
    ours = pa.merge(teachers, example, seed=5)
    monkeypatch.setattr(student_module, "fuse_activations", lambda network: None)
    return [ours, pa.merge(teachers, example, seed=5)]


def taken_in(student: nn.Module) -> int:
    return sum(isinstance(m, GateSite) and m.bounds != (-math.inf, math.inf) for m in student.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_same_numbers_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make, count = NETWORKS[name]
    pair = students(monkeypatch, make)
    assert [taken_in(student) for student in pair] == [count, 0]
    x = torch.randn(4, 3, 64, 64)
    found = []
    for student in pair:
        torch.manual_seed(1)  # dropout
        outputs = [student.train()(x)]
        gradients = torch.autograd.grad(
            outputs[0].square().sum(),
            [*student.gate_parameters(), *student.weight_parameters()],
            materialize_grads=True,
        )
        outputs.append(student.eval()(x))
        with student.opened():
            outputs.append(student(x))
        found.append([*outputs, *gradients])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max() + 1e-30))
    monkeypatch.undo()
    torch.testing.assert_close(pair[0].compress()(x), pair[1].compress()(x))


def test_layers_that_one_tensor_enters_share_its_gates() -> None:
    """The first convolution of a block and the one on its shortcut."""
    teachers = [timm.create_model("resnet18", num_classes=3).eval() for _ in range(2)]
    student = pa.merge(teachers, torch.randn(2, 3, 64, 64))
    by_name = {node.name: node for node in student.graph.graph.nodes}
    first, shortcut = by_name["layer2_0_conv1"], by_name["layer2_0_downsample_0"]
    assert first.all_input_nodes == shortcut.all_input_nodes
    assert isinstance(student.graph.get_submodule(str(first.all_input_nodes[0].target)), GateSite)


def test_activation_of_a_norm_is_seen_in_neither_the_state_nor_the_teachers() -> None:
    teachers = [timm.create_model("mobilenetv2_050", num_classes=3).eval() for _ in range(2)]
    student = pa.merge(teachers, torch.randn(2, 3, 64, 64))
    assert isinstance(teachers[0].bn2.act, nn.ReLU6)
    compressed = student.compress()
    assert isinstance(compressed, type(teachers[0]))
    assert compressed.state_dict().keys() == teachers[0].state_dict().keys()
    assert all(isinstance(m.bn1.act, nn.ReLU6) for m in compressed.blocks[1])
