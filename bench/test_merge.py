"""A training step of the wide student with gates, against the same wide network without, in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pyassemble as pa
from bench.interleaved import medians, peak_memory, smoke_run

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
from cifar_resnet import CifarResNet

# Architecture, batch and size of the images.
NETWORKS = [("resnet20", 128, 32), ("resnet18", 8, 224), ("mobilenetv2_100", 8, 160), ("vit_tiny_patch16_224", 8, 224)]
SMOKE_SIZES = {"resnet20": 32, "vit_tiny_patch16_224": 224}


def _teacher(name: str) -> nn.Module:
    if name == "resnet20":
        return CifarResNet(20).eval()
    import timm

    network: nn.Module = timm.create_model(name, num_classes=10)
    return network.eval()


def _students(name: str, size: int, device: str) -> dict[str, pa.WideStudent]:
    """Both are the wide student; one is run with all gates open, which its graph then only passes through."""
    torch.manual_seed(0)
    teachers = [_teacher(name).to(device) for _ in range(2)]
    example = torch.randn(2, 3, size, size, device=device)
    return {kind: pa.merge(teachers, example).train() for kind in ("gates", "no gates")}


def _compare(record: Any, name: str, batch: int, size: int, device: str, rounds: int) -> None:
    students = _students(name, size, device)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def step(student: pa.WideStudent, optimizer: torch.optim.Optimizer, gated: bool) -> None:
        loss = F.cross_entropy(student(images), labels)
        if gated:
            loss = loss + 0.05 * student.sparsity_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def without(student: pa.WideStudent, optimizer: torch.optim.Optimizer) -> None:
        with student.opened():
            step(student, optimizer, False)

    gated, plain = students["gates"], students["no gates"]
    with_gates = torch.optim.SGD(
        [{"params": gated.weight_parameters()}, {"params": gated.gate_parameters(), "lr": 0.2}], lr=1e-3, momentum=0.9
    )
    alone = torch.optim.SGD(plain.weight_parameters(), lr=1e-3, momentum=0.9)
    functions: dict[str, Any] = {
        "gates": lambda: step(gated, with_gates, True),
        "no gates": lambda: without(plain, alone),
    }
    # What is timed is what it says: gates get gradients in the one, and take no part in the other.
    for function in functions.values():
        function()
    assert all(loc.grad is not None for loc in gated.gate_parameters())
    assert all(loc.grad is None for loc in plain.gate_parameters())
    took = medians(functions, device, rounds)
    what = f"wide student's step, 2 × {name}, {batch} × {size}×{size}, {device}"
    record(what, took["gates"], "s", peer="the same without gates", peer_value=took["no gates"])
    record(f"{what}: of the step without gates", took["gates"] / took["no gates"], "×")
    if device == "cuda":
        for kind, function in functions.items():
            record(f"{what}: peak memory, {kind}", peak_memory(function, device) / 2**20, "MiB")


@pytest.mark.parametrize(("name", "batch", "size"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_step_on_the_cpu(record: Any, request: pytest.FixtureRequest, name: str, batch: int, size: int) -> None:
    smoke = smoke_run(request.config)
    if smoke:
        batch, size = 2, SMOKE_SIZES.get(name, 64)
    _compare(record, name, batch, size, "cpu", 1 if smoke else 15)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "batch", "size"), NETWORKS, ids=[name for name, _, _ in NETWORKS])
def test_step_on_cuda(record: Any, name: str, batch: int, size: int) -> None:
    _compare(record, name, 16 * batch, size, "cuda", 50)
