"""Noise in one pass against the eager form, torch.compile of it, and a copy, in one run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.interleaved import CUDA_BYTES, medians, peak_memory, smoke_run
from pyassemble.kernels import perturb, perturb_reference, philox

ALPHA = 0.01


def eager(x: torch.Tensor) -> torch.Tensor:
    """Eq. 4's perturbed input as one writes it."""
    return x + ALPHA * torch.rand_like(x)


def fused(x: torch.Tensor) -> torch.Tensor:
    return perturb(x, ALPHA, seed=3)


def compare(record: Any, shape: tuple[int, ...], device: str, dtype: torch.dtype, last: bool, rounds: int) -> None:
    memory_format = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=memory_format)
    part = x[:1].contiguous()  # the same numbers as eager's of the same draws, before any timing
    u = philox.noise_draws(3, part.numel(), x.device).view(part.shape)
    expected = perturb_reference(part.float(), ALPHA, u).to(dtype)
    torch.testing.assert_close(fused(x)[:1].contiguous(), expected, rtol=torch.finfo(dtype).eps, atol=0)
    torch._dynamo.reset()
    target = torch.empty_like(x)
    forms = {"pyassemble": fused, "eager": eager, "compiled": torch.compile(eager)}
    functions: dict[str, Any] = {name: (lambda form=form: form(x)) for name, form in forms.items()}
    took = medians({**functions, "copy": lambda: target.copy_(x)}, device, rounds)
    layout = "channels last" if last else "contiguous"
    what = f"perturb, {'×'.join(map(str, shape))} {str(dtype)[6:]} {layout}, {device}"
    for peer in ("eager", "compiled"):
        record(what, took["pyassemble"], "s", peer=peer, peer_value=took[peer])
    record(f"{what}: of copy bandwidth", 100 * took["copy"] / took["pyassemble"], "%")
    if device == "cuda":
        for name, function in functions.items():
            record(f"{what}: peak memory, {name}", peak_memory(function, device) / 2**20, "MiB")


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
def test_perturb_on_the_cpu(record: Any, request: pytest.FixtureRequest, last: bool) -> None:
    smoke = smoke_run(request.config)
    shape = (2, 3, 8, 8) if smoke else (64, 3, 224, 224)
    compare(record, shape, "cpu", torch.float32, last, 1 if smoke else 40)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", CUDA_BYTES)
def test_perturb_on_cuda(record: Any, size: int, dtype: torch.dtype, last: bool) -> None:
    if torch.cuda.mem_get_info()[0] < 8 * size:
        pytest.skip(f"needs {8 * size / 2**30:.0f} GiB of free memory for eager's intermediates")
    batch = max(1, size // (3 * 224 * 224 * dtype.itemsize))
    compare(record, (batch, 3, 224, 224), "cuda", dtype, last, 50)
