"""pa.train_merged: the three stages, going on after a stop or a kill, and what it refuses."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyassemble as pa
from pyassemble.training import random_flip

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 3
QUICK = pa.MergeSettings(learning_rate=0.05, finetune_rate=0.05, decay="cosine")


class Small(nn.Module):
    """A residual block, so that one group has several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


def problem(count: int = 96) -> tuple[Tensor, Tensor]:
    """Noise, with one of the pictures of the classes under it."""
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(CLASSES, 2, 6, 6, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return 2 * pictures[labels] + torch.randn(count, 2, 6, 6, generator=generator), labels


def teachers(count: int = 2) -> list[nn.Module]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return [Small().eval() for _ in range(count)]


def student(**options: Any) -> pa.WideStudent:
    return pa.merge(teachers(options.pop("count", 2)), problem(2)[0], **options)


def run(wide: pa.WideStudent | None = None, **options: Any) -> pa.MergeResult:
    given = {"train": problem(), "validation": problem(32), "epochs": 4, "batch_size": 24, "settings": QUICK} | options
    return pa.train_merged(wide or student(), **given)


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in history]


def same(one: pa.MergeResult, other: pa.MergeResult) -> bool:
    a, b = one.network.state_dict(), other.network.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


class TestStages:
    def test_the_task_is_learned_by_a_network_of_the_teachers_class(self) -> None:
        given = teachers()
        before = [copy.deepcopy(teacher.state_dict()) for teacher in given]
        wide = pa.merge(given, problem(2)[0])
        result = run(wide, epochs=16)
        assert type(result.network) is Small
        assert not result.network.training
        Small().load_state_dict(result.network.state_dict())
        with torch.no_grad():
            images, labels = problem()
            assert (result.network(images).argmax(1) == labels).float().mean() > 0.9
        for teacher, state in zip(given, before, strict=True):
            assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())

    def test_history(self) -> None:
        wide = student()
        result = run(wide, epochs=5)
        stages = [(entry["stage"], entry["epoch"]) for entry in result.history]
        assert stages == [
            ("start", 0),
            ("importance", 1),
            ("importance", 2),
            ("compressed", 2),
            ("fine-tuning", 3),
            ("fine-tuning", 4),
            ("fine-tuning", 5),
        ]
        schedule = pa.SparsitySchedule(QUICK.first_lambda)
        learning = [entry for entry in result.history if entry["stage"] == "importance"]
        assert [entry["lambda"] for entry in learning] == [schedule.step(), schedule.step()]
        assert learning[-1]["open"] == wide.open_gates()
        assert result.history[3]["kept"] == result.kept
        sizes = {name: len(group.loc) // 2 for name, group in wide.gate_groups.items()}
        assert {name: sum(counts) for name, counts in result.kept.items()} == sizes
        assert {name: kept.tolist() for name, kept in result.selection.items()} == {
            name: kept.tolist() for name, kept in wide.selection().items()
        }
        assert all(entry["validation"]["images"] == 32 for entry in result.history)
        assert json.loads(json.dumps(result.history)) == result.history

    def test_the_start_is_the_mean_of_the_teachers(self) -> None:
        given = teachers()
        result = run(pa.merge(given, problem(2)[0]))
        images, labels = problem(32)
        with torch.no_grad():
            mean = torch.stack([teacher(images) for teacher in given]).mean(0)
        start = result.history[0]["validation"]
        assert start["loss"] == pytest.approx(float(nn.functional.cross_entropy(mean, labels)), rel=1e-5)
        assert start["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).float().mean()))

    def test_gates_and_weights_learn_at_rates_of_their_own(self) -> None:
        wide = student()
        before = [gates.detach().clone() for gates in wide.gate_parameters()]
        weights = [weight.detach().clone() for weight in wide.weight_parameters()]
        run(wide, settings=replace(QUICK, learning_rate=0.0, weight_decay=0.0), epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(weights, wide.weight_parameters(), strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(before, wide.gate_parameters(), strict=True))
        wide = student()
        run(wide, settings=replace(QUICK, gate_rate=0.0), epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(before, wide.gate_parameters(), strict=True))

    def test_the_sparsity_loss_closes_gates(self) -> None:
        # A group's gates fall towards the share that is kept once lambda weighs more than the task.
        heavy = run(settings=replace(QUICK, first_lambda=50.0, gate_rate=0.5), epochs=12)
        learning = [entry for entry in heavy.history if entry["stage"] == "importance"]
        assert learning[-1]["sparsity"] < 0.2 * learning[0]["sparsity"]

    def test_another_ratio_and_more_teachers(self) -> None:
        result = run(student(count=3, keep=0.5), epochs=2)
        assert all(len(counts) == 3 for counts in result.kept.values())
        assert result.network(problem(2)[0]).shape == (2, CLASSES)

    def test_rates(self) -> None:
        step = pa.MergeSettings(finetune_rate=1.0, drop=0.5)
        assert [step.finetuning_rate(done) for done in (0, 0.49, 0.5, 0.99)] == [1.0, 1.0, 0.1, 0.1]
        cosine = pa.MergeSettings(finetune_rate=1.0, decay="cosine")
        assert cosine.finetuning_rate(0) == 1.0
        assert cosine.finetuning_rate(0.5) == pytest.approx(0.5)
        assert [pa.MergeSettings(importance_share=s).importance_epochs(10) for s in (0, 0.5, 0.99)] == [1, 5, 9]

    def test_mixed_precision(self) -> None:
        exact, mixed = run(epochs=2), run(epochs=2, mixed_precision="bf16")
        assert all(value.dtype in (torch.float32, torch.int64) for value in mixed.network.state_dict().values())
        assert all(entry.get("loss", 0) < 5 for entry in mixed.history)
        assert not same(mixed, exact)
        assert same(run(epochs=2), exact)  # nothing of it stays


WORKER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from accelerate import Accelerator
from tests.merge.test_train import problem, run
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
result = run(epochs=16)
for value in result.network.state_dict().values():
    everyone = accelerator.gather(value[None].float())
    assert torch.equal(everyone[0], everyone[1])
accuracy = result.history[-1]["validation"]["accuracy"]
assert accuracy > 0.7 and result.history[-1]["validation"]["images"] == 32, result.history
Path({folder!r}, f"done {{accelerator.process_index}}").touch()
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


@pytest.fixture(scope="module")
def whole() -> pa.MergeResult:
    """What a run that nobody interrupts gives."""
    return run(augment=random_flip)


class TestGoingOn:
    def test_same_seed_same_bits(self) -> None:
        options = {"augment": random_flip}
        one, two, other = run(**options), run(**options), run(seed=1, **options)
        assert same(one, two)
        assert without_times(one.history) == without_times(two.history)
        assert not same(one, other)

    @pytest.mark.parametrize("entries", [1, 2, 4, 5])
    def test_interrupted(self, tmp_path: Path, entries: int, whole: pa.MergeResult) -> None:
        seen: list[dict[str, Any]] = []

        def interrupt(entry: dict[str, Any]) -> None:
            seen.append(entry)
            if len(seen) == entries:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path, augment=random_flip, after_epoch=interrupt)
        resumed = run(checkpoint=str(tmp_path), augment=random_flip)
        assert same(resumed, whole)
        assert without_times(resumed.history) == without_times(whole.history)
        assert not list(tmp_path.glob("*.pt"))

    def test_the_interrupted_student_goes_on_itself(self, tmp_path: Path) -> None:
        def interrupt(entry: dict[str, Any]) -> None:
            if entry["epoch"] == 1:
                raise KeyboardInterrupt

        wide = student()
        with pytest.raises(KeyboardInterrupt):
            run(wide, checkpoint=tmp_path, after_epoch=interrupt)
        assert same(run(wide, checkpoint=tmp_path), run())

    def test_killed(self, tmp_path: Path) -> None:
        script = f"""
import torch
torch.set_num_threads(1)
from tests.merge.test_train import run
run(epochs=400, checkpoint={str(tmp_path)!r})
"""
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "merge.json").exists() and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        saved = json.loads((tmp_path / "merge.json").read_text())["state"]
        assert saved["history"]
        with pytest.raises(pa.CheckpointError, match="epochs 400, now 4"):
            run(checkpoint=tmp_path)
        after: list[int] = []

        def stop(entry: dict[str, Any]) -> None:
            after.append(entry["epoch"])
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(epochs=400, checkpoint=tmp_path, after_epoch=stop)
        assert after == [saved["epoch"] + 1]

    def test_another_run_is_refused(self, tmp_path: Path) -> None:
        run(epochs=2, checkpoint=tmp_path)
        for options, words in [
            ({"seed": 1}, "seed 0, now 1"),
            ({"settings": replace(QUICK, momentum=0.5)}, r"settings.momentum 0.9, now 0.5"),
            ({"train": problem(50)}, "train images 96, now 50"),
            ({"wide": student(count=3)}, r"units of each group\.\w+ 16, now 24"),
        ]:
            with pytest.raises(pa.CheckpointError, match=words):
                run(**{"epochs": 2, "checkpoint": tmp_path, **options})


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"epochs": 1}, pa.OutOfRangeError, "epochs 1; accepted: at least 2"),
            ({"epochs": 2.0}, pa.ArgumentTypeError, "epochs must be an int"),
            ({"seed": -1}, pa.OutOfRangeError, "seed -1"),
            ({"train": (problem()[0], problem()[1] + 1)}, pa.TensorError, "0 to 2, for num_classes=3"),
            ({"train": problem()[0]}, pa.ArgumentTypeError, "a tuple"),
            (
                {"train": (problem()[0][:, :1], problem()[1])},
                pa.TensorError,
                r"an image \(1, 6, 6\) of train",
            ),
            ({"mixed_precision": "fp8"}, pa.UnknownOptionError, "no, bf16, fp16"),
        ],
    )
    def test_arguments(self, options: dict[str, Any], error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            run(**options)

    def test_no_student(self) -> None:
        with pytest.raises(pa.ArgumentTypeError, match="student is a Small; accepted: what pyassemble"):
            pa.train_merged(Small(), problem(), epochs=2)  # type: ignore[arg-type]

    def test_diverging(self) -> None:
        with pytest.raises(pa.TensorError, match=r"the loss is (nan|inf) in epoch"):
            run(settings=replace(QUICK, learning_rate=1e20))

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ({"decay": "linear"}, "unknown decay 'linear'; known: step, cosine"),
            ({"learning_rate": -1.0}, r"learning_rate -1.0; accepted: a finite number >= 0"),
            ({"importance_share": 1.0}, r"importance_share 1.0; accepted: \[0, 1\)"),
            ({"growth": float("nan")}, "growth nan"),
        ],
    )
    def test_settings(self, setting: dict[str, Any], words: str) -> None:
        with pytest.raises(pa.PyAssembleError, match=words):
            pa.MergeSettings(**setting)

    def test_outputs_that_are_no_scores(self) -> None:
        networks = [nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval() for _ in range(2)]
        wide = pa.merge(networks, problem(2)[0])
        with pytest.raises(pa.TensorError, match=r"gives \(1, 2, 2, 2\) for one image"):
            run(wide)
