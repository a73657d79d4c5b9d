"""The sine experiment: vectorized training is training, it goes on after a stop, and the whole in its smallest form."""

from __future__ import annotations

import copy
import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyassemble as pa
from pyassemble.kernels.philox import gate_draws
from pyassemble.training.seeding import derived_generator

EXPERIMENTS = Path(__file__).resolve().parents[2] / "bench" / "experiments"


@pytest.fixture(autouse=True)
def experiments_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def networks(count: int, hidden: int = 6) -> list[nn.Module]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return [nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1)).eval() for _ in range(count)]


def data(count: int, samples: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, samples, generator=generator)
    return x, torch.sin(5 * x)


@pytest.mark.parametrize("shuffled", [False, True])
def test_training_side_by_side_is_training_one_by_one(tmp_path: Path, shuffled: bool) -> None:
    from sine_networks import Phase, train

    x, y = data(3)
    together = networks(3)
    alone = copy.deepcopy(together)
    train(together, x, y, Phase("p", 4, 2, shuffled), seed=5, state=tmp_path / "s", after_epoch=lambda done: None)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9) for network in alone]
    for epoch in range(4):
        generator = derived_generator(5, "p", epoch)
        orders = [torch.randperm(80, generator=generator) if shuffled else torch.arange(80) for _ in range(3)]
        for network, optimizer, order, inputs, targets in zip(alone, optimizers, orders, x, y, strict=True):
            optimizer.param_groups[0]["lr"] = 0.01 if epoch < 2 else 0.001
            for batch in order.split(32):
                loss = nn.functional.mse_loss(network(inputs[batch, None]), targets[batch, None])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b)


def test_gates_from_given_draws_are_the_kernels() -> None:
    from sine_networks import Drawn, Penalized

    student = pa.merge(networks(2), torch.rand(4, 1), seed=3)
    x = torch.rand(9, 1)
    expected_student = copy.deepcopy(student).train()
    expected = expected_student(x)
    bank = expected_student.gates
    penalized = Penalized(student)
    (site,) = [module for module in penalized.modules() if isinstance(module, Drawn)]
    site.u = gate_draws(int(bank.seed(0)), torch.arange(9), 12).float()
    torch.testing.assert_close(penalized(x)[0], expected)
    torch.testing.assert_close(penalized(x)[1], student.sparsity_loss())


@pytest.mark.parametrize("wide", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    import sine_networks
    from sine_networks import Phase, train

    monkeypatch.setattr(sine_networks, "CHECKPOINT_EVERY", 1)
    x, y = data(2)

    def start() -> list[Any]:
        teachers = networks(4)
        pairs = [pa.merge(teachers[2 * n : 2 * n + 2], x[0, :4, None], seed=n) for n in range(2)]
        return pairs if wide else teachers[:2]

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    whole, first, second = start(), start(), start()
    train(whole, x, y, Phase("p", 4), seed=5, state=tmp_path / "whole", after_epoch=lambda done: None)
    with pytest.raises(KeyboardInterrupt):
        train(first, x, y, Phase("p", 4), seed=5, state=tmp_path / "s", after_epoch=stop)
    train(second, x, y, Phase("p", 4), seed=5, state=tmp_path / "s", after_epoch=lambda done: None)
    for one, other in zip(whole, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(ValueError, match="another --out is needed"):
        train(second, x, y, Phase("p", 4), seed=6, state=tmp_path / "s", after_epoch=lambda done: None)


def test_comparison() -> None:
    from sine_report import compare

    losses = {
        "low": [0.05 + 0.001 * n for n in range(20)],
        "high": [0.08 + 0.002 * n for n in range(20)],
        "one": [0.1, 0.3] * 10,
        "other": [0.3, 0.1] * 10,
    }
    lower = compare(losses, "low", "high")
    assert lower.holds
    assert (lower.merged, lower.other, lower.lower_in) == ("low", "high", 20)
    assert lower.difference == pytest.approx(-0.0395)
    assert not compare(losses, "one", "other").holds
    higher = compare(losses, "high", "low")
    assert higher.wilcoxon < 0.01
    assert not higher.holds


@pytest.mark.slow
def test_smallest_form(tmp_path: Path) -> None:
    from merge_sine import main

    arguments = ["--out", str(tmp_path), "--runs", "2", "--samples", "64", "--share", "0.02"]
    assert main([*arguments, "--strategies", "merged", "merged, our settings", "one long run"]) == 0
    assert not (tmp_path / "summary.md").exists()
    assert main([*arguments, "--strategies", "best of three"]) == 0
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    results = [(row["strategy"], row["run"]) for row in rows if row["stage"] == "result"]
    strategies = ("merged", "merged, our settings", "best of three", "one long run")
    assert sorted(results) == sorted((name, run) for name in strategies for run in "01")
    of_three = [float(row["loss"]) for row in rows if row["strategy"] == "best of three" and row["run"] == "1"]
    assert of_three[-1] == min(of_three[:-1])
    for row in rows:
        if row["strategy"].startswith("merged") and row["stage"] == "result":
            assert sum(map(int, row["units"].split("+"))) == 100
    summary = (tmp_path / "summary.md").read_text()
    assert "18 epochs in all" in summary
    before = (tmp_path / "runs.csv").read_bytes()
    assert main([*arguments, "--report-only"]) == 0
    assert (tmp_path / "runs.csv").read_bytes() == before
    # The rows of a strategy whose state is gone are those kept with the results; other conditions are refused.
    shutil.rmtree(tmp_path / "state")
    assert main([*arguments, "--report-only"]) == 0
    assert (tmp_path / "runs.csv").read_bytes() == before
    assert (tmp_path / "summary.md").read_text() == summary.split("\n\n## Runs that miss")[0] + "\n\n"
    other = ["--strategies", "one long run", "--seed", "1"]
    with pytest.raises(ValueError, match="strategies of different seed"):
        main([*arguments, *other])


def test_missed_half_waves() -> None:
    from sine_report import missed_half_waves

    x = torch.linspace(0, 1, 501)
    sine = torch.sin(10 * torch.pi * x)
    straight = torch.where(x > 0.85, 1 - (x - 0.85) * 14, sine)  # never turns at 0.95
    assert missed_half_waves(torch.stack([sine, straight, sine + 0.2])) == [0] * 9 + [1]
    assert missed_half_waves((straight - 0.5)[None]) == [1] * 10


def test_every_strategy_has_as_many_epochs() -> None:
    from merge_sine import PLANS

    for plan in PLANS.values():
        assert 2 * plan.teachers[0] + plan.importance + plan.finetuning[0] == 900
