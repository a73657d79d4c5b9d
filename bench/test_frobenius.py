"""The ragged Frobenius score against the publication's form, good eager, torch.compile, and a copy, in one run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.interleaved import CUDA_BYTES, medians, peak_memory, smoke_run
from pyassemble.kernels import frobenius_score, frobenius_score_reference

Pairs = tuple[list[torch.Tensor], list[torch.Tensor]]


def published(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> torch.Tensor:
    """Eq. 4 as it is printed: a norm per sample, their mean, its logarithm, candidate by candidate."""
    scores = []
    for c, p in zip(clean, perturbed, strict=True):
        norms = [torch.norm(a - b, p="fro") for a, b in zip(c.flatten(1), p.flatten(1), strict=True)]
        scores.append(torch.stack(norms).mean().log())
    return torch.stack(scores)


def one(c: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return (c.float() - p.float()).flatten(1).square().sum(1).sqrt().mean().log()


def candidates(count: int, total: int, batch: int, device: str, dtype: torch.dtype) -> Pairs:
    """Ragged: 7 × 7 to 28 × 28 maps whose channels share the total evenly."""
    sides = [7, 14, 28, 10, 8, 20, 13, 16]
    both = []
    for k in range(count):
        side = sides[k % len(sides)]
        channels = max(1, total // (count * batch * side * side))
        both.append(torch.randn(2 * batch, channels, side, side, device=device).to(dtype))
    return [b[:batch] for b in both], [b[batch:] for b in both]


def compare(
    record: Any, what: str, clean: list[torch.Tensor], perturbed: list[torch.Tensor], device: str, rounds: int
) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(one, dynamic=True)
    forms = {
        "pyassemble": lambda: frobenius_score(clean, perturbed),
        "published": lambda: published(clean, perturbed),
        "eager": lambda: frobenius_score_reference(clean, perturbed),
        "compiled": lambda: torch.stack([compiled(c, p) for c, p in zip(clean, perturbed, strict=True)]),
    }
    exact = frobenius_score_reference([c.double() for c in clean], [p.double() for p in perturbed])
    torch.testing.assert_close(forms["pyassemble"]().double(), exact, rtol=0, atol=1e-5)
    # The copy moves as many bytes as the scores read: half of them in, half out.
    source = torch.cat([c.flatten() for c in clean])
    target = torch.empty_like(source)
    took = medians({**forms, "copy": lambda: target.copy_(source)}, device, rounds)
    for peer in ("published", "eager", "compiled"):
        record(what, took["pyassemble"], "s", peer=peer, peer_value=took[peer])
    record(f"{what}: of copy bandwidth", 100 * took["copy"] / took["pyassemble"], "%")
    if device == "cuda":
        for name, form in forms.items():
            record(f"{what}: peak memory, {name}", peak_memory(form, device) / 2**20, "MiB")


@pytest.mark.parametrize(
    ("name", "count", "total", "batch"), [("32 ragged", 32, 2**25, 64), ("12 small", 12, 2**16, 8)]
)
def test_scores_on_the_cpu(
    record: Any, request: pytest.FixtureRequest, name: str, count: int, total: int, batch: int
) -> None:
    smoke = smoke_run(request.config)
    clean, perturbed = candidates(2 if smoke else count, total // 64 if smoke else total, batch, "cpu", torch.float32)
    compare(record, f"Frobenius score, {name} candidates, float32, cpu", clean, perturbed, "cpu", 1 if smoke else 40)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", CUDA_BYTES)
def test_scores_on_cuda(record: Any, size: int, dtype: torch.dtype) -> None:
    if torch.cuda.mem_get_info()[0] < 12 * size:
        pytest.skip(f"needs {12 * size / 2**30:.0f} GiB of free memory for the float64 check")
    clean, perturbed = candidates(32, size // (2 * dtype.itemsize), 64, "cuda", dtype)
    what = f"Frobenius score, 32 ragged candidates of {size >> 20} MiB, {str(dtype)[6:]}, cuda"
    compare(record, what, clean, perturbed, "cuda", 50)
