"""One process's settings, and several processes that agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pyassemble.errors import ArgumentTypeError, UnknownOptionError
from pyassemble.training.accelerated import average_gradients, make_accelerator, mean_over_processes

ROOT = Path(__file__).parents[2]


def test_precision_can_change_from_call_to_call() -> None:
    # None is accelerate's own setting, not what the call before asked for.
    for precision in ("no", "bf16", None, "bf16", "no"):
        accelerator = make_accelerator("cpu", mixed_precision=precision)
        assert accelerator.mixed_precision == (precision or "no")
        with accelerator.autocast():
            found = nn.Linear(2, 2)(torch.zeros(1, 2)).dtype
        assert found is (torch.bfloat16 if precision == "bf16" else torch.float32)
    with pytest.raises(UnknownOptionError, match="known: no, bf16, fp16"):
        make_accelerator(mixed_precision="int8")


def test_a_callers_accelerator_is_not_overruled() -> None:
    code = """
import accelerate, torch
accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
from pyassemble.training.accelerated import make_accelerator
assert make_accelerator("cpu").mixed_precision == "bf16"
try:
    make_accelerator("cpu", mixed_precision="no")
except TypeError as error:
    print(error)
assert accelerator.mixed_precision == "bf16"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "already set up otherwise in this process" in done.stdout
    assert issubclass(ArgumentTypeError, TypeError)


def test_one_process_changes_nothing() -> None:
    accelerator, layer = make_accelerator("cpu"), nn.Linear(2, 2)
    layer(torch.ones(1, 2)).sum().backward()
    before = layer.weight.grad
    average_gradients(accelerator, layer.parameters())
    assert layer.weight.grad is before
    values = torch.ones(2, requires_grad=True)
    assert not mean_over_processes(accelerator, values).requires_grad


WORKER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from pyassemble.training.accelerated import average_gradients, make_accelerator, mean_over_processes
from torch import nn
accelerator = make_accelerator("cpu")
rank = accelerator.process_index
assert accelerator.num_processes == 2
torch.manual_seed(0)
layer = nn.Linear(3, 2)
layer(torch.full((1, 3), float(rank))).sum().backward()
if rank == 0:
    layer.bias.grad = None
average_gradients(accelerator, layer.parameters())
assert torch.allclose(layer.weight.grad, torch.full((2, 3), 0.5)), layer.weight.grad
assert torch.allclose(layer.bias.grad, torch.full((2,), 0.5)), layer.bias.grad
assert mean_over_processes(accelerator, torch.tensor([2.0 * rank])).item() == 1.0

from tests.assemble.test_assemble import run, outputs, problem
assembly = run(epochs=1)
found = outputs(assembly)
everyone = accelerator.gather(found[None])
assert torch.equal(everyone[0], everyone[1])
assembly.finetune(problem(50), validation=problem(30, seed=4), epochs=1, mode="full", batch_size=8)
assert assembly.history[-1]["validation"]["images"] == 30
everyone = accelerator.gather(outputs(assembly)[None])
assert torch.equal(everyone[0], everyone[1])
Path({folder!r}, f"done {{rank}}").touch()
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_agree(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    # Files, since the lines of two processes on one stdout can be mixed.
    assert {file.name for file in tmp_path.glob("done *")} == {"done 0", "done 1"}
