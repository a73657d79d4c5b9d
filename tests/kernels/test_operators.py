"""The operators inside PyTorch: registration, torch.compile, autocast, DDP, CUDA graphs, imports."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pyassemble.kernels import (
    L0Gate2d,
    frobenius_score,
    hard_concrete_gate,
    hard_concrete_gate_,
    hard_concrete_values,
    perturb,
)

if TYPE_CHECKING:
    from pathlib import Path

OPS = torch.ops.pyassemble
# What Dynamo and Inductor warn of in their own code.
quiet = pytest.mark.filterwarnings("ignore")


@quiet
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("seed", [(None, 5), (torch.tensor(5), 0)], ids=["int", "tensor"])
def test_opcheck(memory_format: torch.memory_format, seed: tuple[torch.Tensor | None, int]) -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    loc = torch.randn(3, requires_grad=True)
    plain = (*seed, 1, 0, 2 / 3, -0.1, 1.1)
    numbers = (*plain, 0.0, math.inf)
    torch.library.opcheck(OPS.hard_concrete_gate.default, (x, loc, *numbers))
    frozen = x.detach(), loc.detach()
    torch.library.opcheck(OPS.hard_concrete_gate_backward.default, (frozen[0].clone(), *frozen, *numbers))
    torch.library.opcheck(OPS.hard_concrete_gate_.default, (*frozen, *plain))
    torch.library.opcheck(OPS.perturb.default, (x, 0.1, *seed))
    clean = [frozen[0], torch.randn(2, 7)]
    torch.library.opcheck(OPS.frobenius_score.default, (clean, [2 * c for c in clean]))


@quiet
def test_compiled_whole() -> None:
    conv = nn.Conv2d(3, 4, 3)
    loc = torch.randn(4, requires_grad=True)

    def step(x: torch.Tensor, seed: Any) -> torch.Tensor:
        y = hard_concrete_gate(conv(perturb(x, 0.1, seed=seed)).relu(), loc, seed=seed)
        return y.mean() + frobenius_score([y[:1]], [y[1:]]).sum() + hard_concrete_values(loc, 2, seed=seed).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 8)
    for seed in (3, 4, torch.tensor(5)):
        expected = step(x, seed)
        result = compiled(x, seed)
        torch.testing.assert_close(result, expected)
        wanted = torch.autograd.grad(expected, (loc, conv.weight))
        for a, b in zip(torch.autograd.grad(result, (loc, conv.weight)), wanted, strict=True):
            torch.testing.assert_close(a, b)


@quiet
@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    gate = L0Gate2d(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), gate, nn.Conv2d(4, 2, 1))
    compiled = torch.compile(network, fullgraph=True)
    x = torch.randn(2, 3, 8, 8)
    for _ in range(3):
        gate.seed.fill_(7)
        expected = network(x)
        gate.seed.fill_(7)
        torch.testing.assert_close(compiled(x), expected)
        assert gate.seed == 8


@quiet
def test_compiled_in_place() -> None:
    loc = torch.randn(3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        hard_concrete_gate_(y, loc, seed=3)
        return y * 2

    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(step(x), 2 * hard_concrete_gate(x + 1, loc, seed=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_types(dtype: torch.dtype) -> None:
    linear, loc = nn.Linear(5, 4), torch.randn(4, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        hidden = linear(torch.randn(3, 5))
        y = hard_concrete_gate(hidden, loc, seed=1)
        score = frobenius_score([y], [hidden])
    assert y.dtype == dtype
    assert score.dtype == torch.float32
    y.float().sum().backward()
    assert loc.grad is not None
    assert loc.grad.dtype == torch.float32
    expected = hidden.detach().float() * hard_concrete_values(loc.detach(), 3, seed=1)
    torch.testing.assert_close(y.float(), expected, rtol=torch.finfo(dtype).eps, atol=0)


WORKER = """
import sys, torch
from torch import nn
from pyassemble.kernels import L0Gate1d
rank, world = int(sys.argv[1]), 2
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=world)
torch.manual_seed(0)
gate = L0Gate1d(6)
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(6, 6), gate))
before = gate.seed.clone()
y = model(torch.ones(3, 6))
y.sum().backward()
torch.save([gate.loc.grad, gate.seed, gate.values(3, before)], sys.argv[3] + str(rank))
torch.distributed.barrier()  # without it, torch 2.14 aborted one exit in eight: a thread of the group still ran
torch.distributed.destroy_process_group()
"""


def test_ddp_ranks_draw_differently_and_agree_on_gradients(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    files = [str(tmp_path / "rendezvous"), str(tmp_path / "rank")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, str(rank), *files], env=environment) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    grads, seeds, values = zip(*(torch.load(f"{files[1]}{rank}") for rank in range(2)), strict=True)
    assert torch.equal(grads[0], grads[1])
    assert grads[0].abs().sum() > 0
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.isclose(values[0], values[1]).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph_draws_anew_at_each_replay() -> None:
    x, loc = torch.randn(4, 5, 6, device="cuda"), torch.randn(5, device="cuda", requires_grad=True)
    seed = torch.tensor(0, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        y = hard_concrete_gate(x, loc, seed=seed)
        (dloc,) = torch.autograd.grad(y.sum(), loc)
        score = frobenius_score([y, x[:, 0]], [perturb(y, 0.1, seed=seed), x[:, 1]])
        seed.add_(1)
        return y, dloc, score

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for n in (10, 11):
        seed.fill_(n)
        expected = [t.clone() for t in step()]
        seed.fill_(n)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compilers_are_imported_on_first_use() -> None:
    found = python(
        "import sys, torch, pyassemble\n"
        "from pyassemble.kernels import hard_concrete_gate, frobenius_score, perturb, L0Gate2d, LayerScorer\n"
        "held = [m in sys.modules for m in ('numba', 'triton', 'torch._dynamo')]\n"
        "hard_concrete_gate(torch.ones(2, 3), torch.zeros(3), seed=1)\n"
        "print(*held, *[m in sys.modules for m in ('numba', 'triton', 'torch._dynamo')])"
    )
    assert found.split() == ["False", "False", "False", "True", "False", "False"]


def test_only_the_exceptions_are_taken_from_the_rest_of_the_package() -> None:
    found = python(
        "import importlib.util, sys, types\n"
        "bare = types.ModuleType('pyassemble')\n"
        "bare.__path__ = list(importlib.util.find_spec('pyassemble').submodule_search_locations)\n"
        "sys.modules['pyassemble'] = bare\n"
        "from pyassemble.kernels import L0Gate2d, LayerScorer\n"
        "print(*{m for m in sys.modules if m.startswith('pyassemble.')} - {m for m in sys.modules if '.kernels' in m})"
    )
    assert found.split() == ["pyassemble.errors"]


def test_a_forked_process_computes() -> None:
    """A data loader's worker, after the parent has used its threads. NumPy makes and compares the arrays, because
    PyTorch's own threads do not survive a fork.
    """
    found = python(
        "import os, numpy, torch\n"
        "from pyassemble.kernels import perturb\n"
        "torch.set_num_threads(2)\n"
        "x = torch.from_numpy(numpy.zeros(10**6, numpy.float32))\n"
        "y = perturb(x, 1.0, seed=1).numpy()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if (perturb(x, 1.0, seed=1).numpy() == y).all() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert found.strip() == "0"


def test_a_read_only_installation_computes(tmp_path: Path) -> None:
    """Neither beside the source nor in a user's folder can machine code be cached."""
    code = (
        "import numba.core.caching as caching\n"
        "caching.CompileResultCacheImpl._locator_classes = []\n"
        "import torch\n"
        "from pyassemble.kernels import perturb\n"
        "assert perturb(torch.zeros(4), 1.0, seed=1).min() > 0\n"
    )
    python(code)
