"""``pa.assemble`` from end to end: the result, its history, checkpoints, resuming after a kill, bad input."""

from __future__ import annotations

import json
import math
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
from torch.utils.data import DataLoader, TensorDataset

import pyassemble as pa
from pyassemble.assemble.epoch_record import EpochRecord
from pyassemble.errors import ArgumentTypeError, CheckpointError, OutOfRangeError, TensorError, UnknownOptionError
from pyassemble.training.metrics import measure_quality
from tests.assemble.small import CLASSES, problem, repository, shared_repository
from tests.assemble.test_search import QUICK

ROOT = Path(__file__).parents[2]


def run(**options: Any) -> pa.Assembly:
    choices: dict[str, Any] = {
        "num_classes": CLASSES,
        "blocks": 3,
        "epochs": 2,
        "settings": QUICK,
        "repository": shared_repository(),
        "train": problem(128),
        **options,
    }
    return pa.assemble(choices.pop("repository"), choices.pop("train"), **choices)


def outputs(assembly: pa.Assembly) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = assembly(problem(8, seed=9)[0])
    return found


class TestResult:
    @pytest.mark.parametrize("select", ["validation", "score"])
    def test_is_an_ordinary_network_with_a_history(self, select: str, tmp_path: Path) -> None:
        assembly = run(select=select)
        assert isinstance(assembly, torch.nn.Module)
        assert not assembly.training
        assert outputs(assembly).shape == (8, CLASSES)
        *epochs, result = assembly.history
        assert [entry["epoch"] for entry in epochs] == [1, 2]
        assert [EpochRecord.of(entry).document() | {"kind": "epoch"} for entry in epochs] == epochs
        assert result["select"] == select
        chosen = result["best"][select]
        assert [(b.network, b.first, b.last) for b in assembly.recipe.blocks] == [tuple(b) for b in chosen["blocks"]]
        assert result["cost"]["total"] == assembly.num_parameters == chosen["parameters"]
        assert 0 < result["cost"]["trainable"] == assembly.num_trainable_parameters < assembly.num_parameters
        assert result["cost"]["flops"] > 10_000
        assert 0 <= result["validation"]["auroc"] <= 1
        assert result["validation"]["images"] == 64
        assert result["blocks_saved"] == result["blocks_requested"] - result["blocks_executed"] > 0
        json.dumps(assembly.history)

    def test_folded_factors_give_the_accuracy_that_was_selected(self) -> None:
        # All of the validation half is looked at in the selection too.
        images, labels = problem(64, seed=3)
        assembly = run(validation=(images, labels), settings=replace(QUICK, selection_images=64))
        chosen = assembly.history[-1]["best"]["validation"]
        found = measure_quality(assembly, [(images, labels)], CLASSES)
        assert found.accuracy == pytest.approx(chosen["accuracy"])
        assert found.loss == pytest.approx(chosen["loss"], rel=1e-4)
        assert all(factor < 1 for factor in chosen["factors"])

    def test_same_seed_same_bits(self) -> None:
        one, other = run(), run()
        assert torch.equal(outputs(one), outputs(other))
        assert one.history == other.history
        assert not torch.equal(outputs(one), outputs(run(seed=1)))

    def test_data_in_any_form(self) -> None:
        images, labels = problem(128)
        expected = run()
        for data in (TensorDataset(images, labels), DataLoader(TensorDataset(images, labels), 16)):
            assert torch.equal(outputs(run(train=data)), outputs(expected))

    def test_learns_better_than_chance(self) -> None:
        settings = replace(QUICK, mixup=0.0, cutmix=0.0, weights_rate=0.01)
        assembly = run(train=problem(256), epochs=8, settings=settings)
        assert assembly.history[-1]["validation"]["accuracy"] > 0.6

    def test_an_ordinary_size_only_ranking_is_reported(self) -> None:
        assembly = run(epochs=1)
        tau = assembly.history[-1]["score_against_size"]
        assert tau is None or -1 <= tau <= 1


class TestCheckpoint:
    def test_resumed_is_the_same_as_in_one_go(self, tmp_path: Path) -> None:
        whole = run(epochs=3)
        run(epochs=1, checkpoint=tmp_path / "c")
        assert {p.name for p in (tmp_path / "c").iterdir()} == {"search.json", "epoch-0001.safetensors"}
        run(epochs=2, checkpoint=tmp_path / "c")
        resumed = run(epochs=3, checkpoint=str(tmp_path / "c"))
        assert torch.equal(outputs(resumed), outputs(whole))
        assert resumed.history == whole.history
        assert {p.name for p in (tmp_path / "c").iterdir()} == {"search.json", "epoch-0003.safetensors"}
        # Nothing is left to do, and the other selection can still be had.
        again = run(epochs=3, checkpoint=tmp_path / "c", select="score")
        assert again.history[:-1] == whole.history[:-1]
        assert torch.equal(outputs(again), outputs(run(epochs=3, select="score")))

    def test_interrupted_within_an_epoch(self, tmp_path: Path) -> None:
        def interrupt(record: EpochRecord) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path, after_epoch=interrupt)
        assert torch.equal(outputs(run(checkpoint=tmp_path)), outputs(run()))

    @pytest.mark.slow
    def test_killed(self, tmp_path: Path) -> None:
        script = f"""
import sys, torch
sys.path.insert(0, {str(ROOT)!r})
torch.set_num_threads(1)
from pathlib import Path
from tests.assemble.test_assemble import run
run(epochs=50, checkpoint=Path({str(tmp_path)!r}))
"""
        process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "search.json").exists() and time.monotonic() < deadline:
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        epoch = json.loads((tmp_path / "search.json").read_text())["state"]["epoch"]
        assert torch.equal(outputs(run(epochs=epoch + 1, checkpoint=tmp_path)), outputs(run(epochs=epoch + 1)))

    def test_refused(self, tmp_path: Path) -> None:
        run(epochs=1, checkpoint=tmp_path)
        changed = repository()
        next(changed["deep"].segments[3].parameters()).data.add_(1)
        for options, words in [
            ({"seed": 1}, "with seed 0, now 1"),
            ({"blocks": 4}, "with blocks 3, now 4"),
            ({"settings": replace(QUICK, clip=0.1)}, r"settings.clip 0.2, now 0.1"),
            ({"train": problem(100)}, "train images 64, now 50"),
            ({"repository": changed}, r"networks.deep "),
        ]:
            with pytest.raises(CheckpointError, match=words):
                run(epochs=2, checkpoint=tmp_path, **options)
        file = tmp_path / "epoch-0001.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=r"search.json is damaged"):
            run(epochs=2, checkpoint=tmp_path)
        (tmp_path / "search.json").write_text("{")
        with pytest.raises(CheckpointError, match="damaged"):
            run(epochs=2, checkpoint=tmp_path)
        (tmp_path / "search.json").write_text('{"format": "x"}')
        with pytest.raises(CheckpointError, match=r"accepted: pyassemble\.search version 1"):
            run(epochs=2, checkpoint=tmp_path)
        with pytest.raises(CheckpointError, match="is a file"):
            run(checkpoint=file)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "kind", "words"),
        [
            ({"select": "size"}, UnknownOptionError, "known: validation, score"),
            ({"blocks": 8}, OutOfRangeError, "blocks 8; accepted: 2 to 7"),
            ({"blocks": 6}, OutOfRangeError, "network 'wide' has 4 cut points"),
            ({"epochs": 0}, OutOfRangeError, "epochs 0; accepted: at least 1"),
            ({"num_classes": 1}, OutOfRangeError, "num_classes 1"),
            ({"num_classes": "3"}, ArgumentTypeError, "num_classes must be an int, not str"),
            ({"num_classes": 2}, TensorError, "accepted: 0 to 1, for num_classes=2"),
            ({"train": (torch.zeros(0, 3, 8, 8), torch.zeros(0).long())}, TensorError, "train is empty"),
            ({"train": problem(1)}, TensorError, "at least two"),
            ({"train": problem(32, size=16)}, TensorError, r"\(16, 3, 16, 16\); accepted: \(B, 3, 8, 8\)"),
            ({"validation": (problem(8)[0], torch.arange(8))}, TensorError, "validation: label"),
            ({"train": [1]}, ArgumentTypeError, "train is a list"),
            ({"mixed_precision": "int8"}, UnknownOptionError, "known: no, bf16, fp16"),
        ],
    )
    def test_refused(self, options: dict[str, Any], kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words) as caught:
            run(**options)
        assert isinstance(caught.value, pa.PyAssembleError)
        assert "\n" not in str(caught.value)

    def test_nan_images(self) -> None:
        images, labels = problem(32)
        images[:, 0] = math.nan
        with pytest.raises(TensorError, match="the input: "):
            run(train=(images, labels))


class TestFinetune:
    def test_stitches_only(self) -> None:
        assembly = run(epochs=1)
        blocks = {name: tensor.clone() for name, tensor in assembly.blocks.state_dict().items()}
        learned = {name: p.detach().clone() for name, p in assembly.named_parameters() if p.requires_grad}
        seen: list[dict[str, Any]] = []
        entries = assembly.finetune(
            problem(128), validation=problem(32, seed=2), epochs=2, batch_size=32, after_epoch=seen.append
        )
        assert entries == seen == assembly.history[-2:]
        assert [entry["epoch"] for entry in entries] == [1, 2]
        assert entries[0]["validation"]["images"] == 32
        assert all(torch.equal(tensor, blocks[name]) for name, tensor in assembly.blocks.state_dict().items())
        assert all(not torch.equal(p, learned[name]) for name, p in assembly.named_parameters() if name in learned)
        assert not any(module.training for module in assembly.modules())
        json.dumps(assembly.history)

    def test_full_leaves_the_repository_alone(self) -> None:
        networks = repository()
        before = {name: networks[name].features(problem(4)[0]).clone() for name in networks.names}
        assembly = run(repository=networks, epochs=1)
        first = outputs(assembly)
        blocks = {name: p.detach().clone() for name, p in assembly.blocks.named_parameters()}
        assembly.finetune(problem(64), epochs=1, mode="full")
        assert not torch.equal(outputs(assembly), first)
        assert any(not torch.equal(p, blocks[name]) for name, p in assembly.blocks.named_parameters())
        for name, features in before.items():
            assert torch.equal(networks[name].features(problem(4)[0]), features)
        assert not any(p.requires_grad for p in assembly.blocks.parameters())

    @pytest.mark.parametrize("mode", ["stitches", "full"])
    def test_learns_and_repeats_itself(self, mode: str) -> None:
        results = []
        for _ in range(2):
            assembly = run(epochs=1)
            start = measure_quality(assembly, [problem(64, seed=2)], CLASSES)
            assembly.finetune(
                problem(256), epochs=4, mode=mode, learning_rate=0.01, batch_size=32, mixup=0, cutmix=0, smoothing=0
            )
            results.append(outputs(assembly))
        end = measure_quality(assembly, [problem(64, seed=2)], CLASSES)
        assert end.auroc > 0.9 > start.auroc
        assert end.loss < start.loss
        assert torch.equal(*results)

    def test_bfloat16(self) -> None:
        assembly, seen = run(epochs=1, mixed_precision="bf16"), set()
        assembly.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        assembly.finetune(problem(64), epochs=1, mixed_precision="bf16")
        assert seen == {torch.bfloat16}
        assert {p.dtype for p in assembly.parameters()} == {torch.float32}
        seen.clear()
        assembly.finetune(problem(64), epochs=1, mixed_precision="no")
        assert seen == {torch.float32}

    def test_interrupted_leaves_modes(self) -> None:
        assembly = run(epochs=1)

        def interrupt(entry: dict[str, Any]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            assembly.finetune(problem(32), epochs=2, mode="full", after_epoch=interrupt)
        assert not any(module.training for module in assembly.modules())
        assert not assembly.blocks_trained

    def test_bad_input(self) -> None:
        assembly = run(epochs=1)
        for options, words in [
            ({"mode": "all"}, "known: stitches, full"),
            ({"epochs": 0}, "epochs 0"),
            ({"learning_rate": -1.0}, "learning_rate -1.0"),
        ]:
            with pytest.raises(pa.PyAssembleError, match=words):
                assembly.finetune(problem(32), **{"epochs": 1, **options})
        with pytest.raises(TensorError, match="accepted: 0 to 2"):
            assembly.finetune((problem(8)[0], torch.arange(8)), epochs=1)
        with pytest.raises(TensorError, match=r"images have shape \(16, 3, 4, 4\)"):
            assembly.finetune(problem(16, size=4), epochs=1)
        assembly._own_blocks()
        next(assembly.blocks[1].parameters()).data.fill_(math.nan)
        with pytest.raises(TensorError, match=r"block 1 .*not finite.*of network '(wide|deep)'"):
            assembly.finetune(problem(32), epochs=1)
        assert not assembly.training
        assert not assembly.check_finite
