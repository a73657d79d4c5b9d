"""Merging on CIFAR-10: the strategies' budgets, and the whole in its smallest form on made-up images."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

EXPERIMENTS = Path(__file__).resolve().parents[2] / "bench" / "experiments"


@pytest.fixture(autouse=True)
def experiments_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def images(count: int) -> Any:
    from merge_strategies import Data

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=generator)
    pixels = torch.randn(count, 3, 32, 32, generator=generator)
    return Data(pixels, labels, pixels[:20], labels[:20])


def test_averaged_weights_and_buffers() -> None:
    from merge_strategies import Budget, averaged, train
    from small_vgg import SmallVGG

    data, budget = images(24), Budget(6, batch_size=12)
    first, second = SmallVGG(), SmallVGG()
    for seed, teacher in enumerate((first, second)):
        train(teacher, data, 1, budget, seed)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    outcome = averaged([first, second], data, budget, 0, lambda: None)
    expected = SmallVGG()
    states = first.state_dict(), second.state_dict()
    mean = {n: (v + states[1][n]) / 2 if v.is_floating_point() else v for n, v in states[0].items()}
    expected.load_state_dict(mean)
    assert outcome.on_the_way["averaged"] == data.accuracy(expected)
    assert (outcome.epochs, outcome.compute) == (6, 6)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_distilling_costs_what_merging_costs() -> None:
    from merge_strategies import Budget, distilled
    from small_vgg import SmallVGG

    data = images(24)
    epochs: list[int] = []
    teachers = [SmallVGG().eval() for _ in range(2)]
    states = [{n: v.clone() for n, v in teacher.state_dict().items()} for teacher in teachers]
    student = SmallVGG()
    start = student.linear.weight.detach().clone()
    outcome = distilled(teachers, data, Budget(12), 0, student, 4.0, lambda: epochs.append(1))
    merging = 2 * 4 + 2 * (1 + 4.0)
    assert outcome.compute == pytest.approx(merging)
    assert len(epochs) == 6
    assert not torch.equal(student.linear.weight, start)
    for teacher, state in zip(teachers, states, strict=True):
        assert all(torch.equal(value, state[n]) for n, value in teacher.state_dict().items())


def test_relative_cost() -> None:
    from merge_strategies import relative_cost

    import pyassemble as pa

    networks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval() for _ in range(2)]
    x = torch.rand(2, 8)
    assert relative_cost(pa.merge(networks, x), networks[0], x) == pytest.approx(2)


@pytest.mark.slow
def test_smallest_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from merge_cifar10 import main
    from merge_cifar10_report import STRATEGIES

    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for name in "ab":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    out = tmp_path / "out"
    arguments = ["--data", str(tmp_path / "data"), "--out", str(out), "--images", "10", "--test-images", "4"]
    arguments += ["--epochs", "6", "--seeds", "1", "--batch-size", "5", "--architectures", "small_vgg"]
    assert main([*arguments, "--minutes", "0"]) == 1
    assert main([*arguments, "--strategies", "merged", "distilled"]) == 0
    assert main(arguments) == 0
    with (out / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["strategy"] for row in rows) == sorted(STRATEGIES)
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    text = (out / "summary.md").read_text()
    assert all(f"| small_vgg | {strategy} |" in text for strategy in STRATEGIES)
    assert "budget 6 epochs a strategy" in text
    with pytest.raises(SystemExit, match="another budget"):
        main([*arguments, "--epochs", "12"])
