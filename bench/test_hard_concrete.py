"""The gate against the publication's eager form, a good eager form, torch.compile of it, and a copy, in one run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench.interleaved import CUDA_BYTES, medians, peak_memory, smoke_run
from pyassemble.kernels import hard_concrete_gate, hard_concrete_gate_reference, hard_concrete_values

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
CPU_SHAPES = [(64, 64, 32, 32)]

Form = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def published(x: torch.Tensor, loc: torch.Tensor) -> torch.Tensor:
    """The formulation of Merging's authors: x is permuted to meet the (B, C) gates, and back."""
    u = torch.rand(x.shape[0], x.shape[1], device=x.device)
    s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + loc) / BETA) * (ZETA - GAMMA) + GAMMA
    g = torch.min(torch.max(s, torch.zeros_like(s)), torch.ones_like(s)).to(x.dtype)
    return (x.permute(2, 3, 0, 1) * g).permute(2, 3, 0, 1)


def eager(x: torch.Tensor, loc: torch.Tensor) -> torch.Tensor:
    """The same by broadcasting."""
    ones = torch.ones(x.shape[0], x.shape[1], device=x.device)
    g = hard_concrete_gate_reference(ones, loc, torch.rand_like(ones).clamp(2**-24, 1 - 2**-24))
    return x * g.to(x.dtype)[:, :, None, None]


def fused(x: torch.Tensor, loc: torch.Tensor) -> torch.Tensor:
    return hard_concrete_gate(x, loc, seed=3)


def fused_after_relu(x: torch.Tensor, loc: torch.Tensor) -> torch.Tensor:
    return hard_concrete_gate(x, loc, seed=3, low=0.0)


def after_relu(form: Form) -> Form:
    return lambda x, loc: form(x.relu(), loc)


def compare(
    record: Any, shape: tuple[int, ...], device: str, dtype: torch.dtype, last: bool, relu: bool, rounds: int
) -> None:
    memory_format = torch.channels_last if last else torch.contiguous_format
    x, dy = (torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=memory_format) for _ in range(2))
    loc = torch.randn(shape[1], device=device, requires_grad=True)
    # The same numbers, before any timing.
    values = hard_concrete_values(loc.detach(), shape[0], seed=3).to(dtype)
    expected = (x.relu() if relu else x) * values[:, :, None, None]
    ours = fused_after_relu if relu else fused
    torch.testing.assert_close(ours(x, loc.detach()), expected, rtol=2e-2, atol=1e-6)
    del values, expected
    torch._dynamo.reset()
    peers = {name: after_relu(form) if relu else form for name, form in (("published", published), ("eager", eager))}
    forms = {"pyassemble": ours, **peers, "compiled": torch.compile(peers["eager"])}
    target = torch.empty_like(x)
    for backward in (False, True):
        source = x.detach().requires_grad_(backward)

        def run(form: Any, source: torch.Tensor = source, backward: bool = backward) -> None:
            if backward:
                torch.autograd.grad(form(source, loc), (source, loc), dy)
            else:
                with torch.no_grad():
                    form(source, loc)

        functions: dict[str, Any] = {name: (lambda form=form: run(form)) for name, form in forms.items()}
        functions["copy"] = lambda: target.copy_(x)
        took = medians(functions, device, rounds)
        # One read and one write for a copy; the backward pass reads two tensors and writes one.
        share = took["copy"] * (2.5 if backward else 1) / took["pyassemble"]
        kind = "forward + backward" if backward else "forward"
        layout = "channels last" if last else "contiguous"
        what = (
            f"{'ReLU and ' if relu else ''}gate {kind}, {'×'.join(map(str, shape))} {str(dtype)[6:]} {layout}, {device}"
        )
        for peer in ("published", "eager", "compiled"):
            record(what, took["pyassemble"], "s", peer=peer, peer_value=took[peer])
        record(f"{what}: of copy bandwidth", 100 * share, "%")
        if device == "cuda":
            for name in forms:
                record(f"{what}: peak memory, {name}", peak_memory(functions[name], device) / 2**20, "MiB")


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("relu", [False, True], ids=["gate", "ReLU and gate"])
@pytest.mark.parametrize("shape", CPU_SHAPES, ids=str)
def test_gate_on_the_cpu(
    record: Any, request: pytest.FixtureRequest, shape: tuple[int, ...], relu: bool, last: bool
) -> None:
    smoke = smoke_run(request.config)
    compare(record, (2, 4, 8, 8) if smoke else shape, "cpu", torch.float32, last, relu, 1 if smoke else 60)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("relu", [False, True], ids=["gate", "ReLU and gate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", CUDA_BYTES)
def test_gate_on_cuda(record: Any, size: int, dtype: torch.dtype, relu: bool, last: bool) -> None:
    if torch.cuda.mem_get_info()[0] < 12 * size:
        pytest.skip(f"needs {12 * size / 2**30:.0f} GiB of free memory for eager's intermediates")
    batch = size // (256 * 32 * 32 * dtype.itemsize)
    compare(record, (batch, 256, 32, 32), "cuda", dtype, last, relu, 50)


FIRST = """
import time, torch
x, loc = torch.randn(64, 64, 32, 32), torch.randn(64)
from pyassemble.kernels import hard_concrete_gate
start = time.perf_counter()
hard_concrete_gate(x, loc, seed=1)
print(time.perf_counter() - start)
"""


@pytest.mark.parametrize("cached", [False, True], ids=["cold", "cached"])
def test_first_call_on_the_cpu(
    record: Any, request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: Any, cached: bool
) -> None:
    """Import of numba included; the cold call compiles into an empty folder."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    rounds = 1 if smoke_run(request.config) else 5
    seconds = []
    for n in range(rounds + cached):
        if not cached:
            monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / str(n)))
        done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))
    taken = sorted(seconds[cached:])[rounds // 2]
    record(f"gate, first call, {'cached' if cached else 'cold'}, cpu", taken, "s")
