"""The ranking experiment: its statistics, scores, pools, report on fabricated runs, resumption, and a smoke run."""

from __future__ import annotations

import csv
import io
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "bench" / "experiments"
SHARED = Path(os.environ.get("PYASSEMBLE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def experiments_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def array(*values: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


class TestKendall:
    @pytest.mark.parametrize("seed", range(5))
    def test_against_scipy_with_ties(self, seed: int) -> None:
        from ranking_statistics import kendall

        score, gain = np.random.default_rng(seed).integers(6, size=(2, 12)).astype(np.float64)
        assert kendall(score, gain) == pytest.approx(stats.kendalltau(score, gain).statistic)

    def test_by_hand(self) -> None:
        from ranking_statistics import kendall, pair_counts

        # Pairs: (1, 2) and (1, 3) concordant, (2, 3) tied in score.
        assert pair_counts(array(1, 2, 2), array(1, 2, 3)) == (2, 2, 3)
        assert kendall(array(1, 2, 2), array(1, 2, 3)) == pytest.approx(2 / math.sqrt(6))
        assert math.isnan(kendall(array(1, 1, 1), array(1, 2, 3)))

    def test_copies_of_a_candidate_are_ties(self) -> None:
        from ranking_statistics import pair_counts

        score, gain = np.random.default_rng(0).random((2, 8))
        copies = np.array([2, 0, 1, 3, 0, 1, 1, 0])
        repeated = stats.kendalltau(np.repeat(score, copies), np.repeat(gain, copies)).statistic
        assert pair_counts(score, gain, copies).tau == pytest.approx(repeated)
        both = pair_counts(score, np.stack([gain, gain]), np.stack([copies, np.ones(8, dtype=int)])).tau
        assert both == pytest.approx([repeated, stats.kendalltau(score, gain).statistic])

    def test_targets_are_not_compared_with_each_other(self) -> None:
        from ranking_statistics import kendall, pair_counts, total

        # Within each target the order is wrong; all together, the second target has more of both.
        score, gain = array(1, 2, 11, 12), array(2, 1, 12, 11)
        assert kendall(score, gain) == pytest.approx(1 / 3)
        assert total([pair_counts(score[:2], gain[:2]), pair_counts(score[2:], gain[2:])]).tau == -1.0


class TestRegret:
    def test_by_hand(self) -> None:
        from ranking_statistics import random_regret, regret

        gain = array(1.0, 4.0, 2.0)
        assert regret(array(0, 1, 0), gain) == 0
        assert regret(array(0, 1, 2), gain) == 2.0
        assert regret(array(5, 1, 5), gain) == pytest.approx(4 - 1.5)
        every_choice = [regret(choice, gain) for choice in np.eye(3)]
        assert random_regret(gain) == pytest.approx(np.mean(every_choice))

    def test_only_what_was_drawn_can_be_chosen_or_missed(self) -> None:
        from ranking_statistics import random_regret, regret

        gain, copies = np.tile(array(1.0, 4.0, 2.0), (2, 1)), np.array([[2, 0, 1], [0, 2, 1]])
        assert regret(array(9, 5, 1), gain, copies).tolist() == [1.0, 0.0]
        # The first choice is tied with a candidate that was not drawn.
        assert regret(array(5, 5, 1), gain[:1], np.array([[1, 0, 2]])).tolist() == [1.0]
        assert random_regret(gain, copies) == pytest.approx([2 - 4 / 3, 4 - 10 / 3])


class TestBootstrap:
    def test_seeds_and_candidates_are_redrawn(self) -> None:
        from ranking_statistics import resample

        gain, copies = resample([array(1, 3), array(5)], 2000, np.random.default_rng(0))
        assert [np.mean(gain[:, 0] == wanted) for wanted in (1, 2, 3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
        assert set(gain[:, 1]) == {5.0}
        seen = [np.mean((copies == wanted).all(1)) for wanted in ((2, 0), (1, 1), (0, 2))]
        assert seen == pytest.approx([0.25, 0.5, 0.25], abs=0.04)

    def test_interval_against_scipy(self) -> None:
        from ranking_statistics import interval, resample

        values = np.random.default_rng(1).normal(size=30)
        gain, copies = resample([array(v) for v in values], 3000, np.random.default_rng(2))
        means = (gain * copies).sum(1) / copies.sum(1)
        known = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=3000, rng=3).confidence_interval
        assert interval(means) == pytest.approx((known.low, known.high), abs=0.04)

    def test_interval_leaves_out_what_is_undefined(self) -> None:
        from ranking_statistics import interval

        assert interval([float("nan"), *np.linspace(0, 1, 101)]) == pytest.approx((0.025, 0.975))
        assert all(map(math.isnan, interval([float("nan")])))

    def test_random_orders_centre_on_zero_with_the_known_spread(self) -> None:
        from ranking_statistics import random_orders

        taus = random_orders([np.arange(10.0)], 2000, seed=0)
        assert abs(taus.mean()) < 0.03
        assert taus.std() == pytest.approx(math.sqrt(2 * 25 / (9 * 10 * 9)), rel=0.06)


class TestScores:
    def test_by_hand(self) -> None:
        from ranking_scores import chain, depth_coverage, unbroken

        assert depth_coverage([1.0, 0.0]) == pytest.approx(1 / 1.5)
        assert depth_coverage([0.0, 1.0]) == pytest.approx(0.5 / 1.5)
        assert chain([1.0, 0.5, 0.0, 1.0]) == pytest.approx((1 + 0.5) / 4)
        # Neighbours 0-1 hold; 1-2 skips a source layer, 2-3 repeats one, 3-4 has no partner.
        assert unbroken([1.0, 0.25, 1.0, 1.0, 0.0], [0, 1, 3, 3, None]) == pytest.approx(0.5 / 4)

    def test_layers_are_taken_along_the_target(self) -> None:
        from ranking_scores import pair_scores

        def network(*widths: int) -> nn.Sequential:
            return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())))

        same = pair_scores("t", network(4, 8, 2), "s", network(4, 8, 2))
        assert (same.symmetric, same.coverage, same.depth_coverage, same.chain, same.unbroken) == (1, 1, 1, 1, 1)
        assert same.size_nearness == 0
        half = pair_scores("t", network(4, 8, 2), "s", network(4, 4, 2))
        assert half.chain == pytest.approx((0.5 + 0.25) / 2)
        assert half.size_nearness == pytest.approx(-math.log(58 / 30))

    def test_file(self, tmp_path: Path) -> None:
        from ranking_scores import read_scores, write_scores

        write_scores([pair("t", "s", 0.1, 7)], tmp_path / "scores.csv")
        assert read_scores(tmp_path / "scores.csv") == {("t", "s"): pair("t", "s", 0.1, 7)}

    def test_similarity_and_size_are_joined_by_rank(self) -> None:
        from ranking_candidates import SCORES, Candidate

        score = next(one for one in SCORES if one.name == "similarity and size")
        pairs = [pair("t", "a", 0.9, 10), pair("t", "b", 0.2, 10_000), pair("t", "c", 0.8, 100)]
        candidates = [Candidate(one, "brief", 0.5, 0.1, array(0.5), array(1.0)) for one in pairs]
        assert score.of(candidates).tolist() == [2.0, 2.0, 2.0]


def pair(target: str, source: str, similarity: float, parameters: int) -> Any:
    from ranking_scores import PairScores

    return PairScores(target, source, similarity, similarity, parameters, 20, 0.5, 0.5, 0.5, 0.5)


def rows_of(run: Any, accuracies: Sequence[float], source_accuracy: float = 0.5) -> list[Any]:
    from transfer_runs import Row

    return [
        Row(
            section=run.section,
            target=run.target,
            source=run.source,
            scenario=run.scenario,
            seed=run.seed,
            epoch=epoch,
            accuracy=accuracy,
            loss=1.0,
            seconds=float(epoch),
            transfer_seconds=0.0,
            similarity=0.5,
            directed=0.5,
            coverage=0.5,
            source_accuracy=source_accuracy,
            source_parameters=10,
            target_parameters=20,
            images=128,
            test_images=100,
            epochs=len(accuracies) - 1,
            batch_size=64,
            tuning_images=128,
            precision="float32",
            device="cpu",
            threads=1,
            workers=1,
            budget_minutes=1.0,
            torch="x",
            timm="x",
            commit="x",
        )
        for epoch, accuracy in enumerate(accuracies)
    ]


class TestPools:
    def test_complete_seeds_of_other_architectures(self) -> None:
        from ranking_pools import groups_of
        from transfer_runs import Run

        finished = {"random": (0, 1, 2), "t": (0, 1, 2), "a": (0, 1, 2), "b": (0, 1), "c": (0, 1, 2)}
        runs = {}
        for source, seeds in finished.items():
            for seed in seeds:
                run = Run("ranking", "t", source, "" if source == "random" else "brief", seed)
                level = 0.1 * (1 + seed) * {"random": 1, "t": 9, "a": 2, "b": 3, "c": 4}[source]
                runs[run] = rows_of(run, [0.1, level / 2, level])
        runs[Run("ranking", "t", "d", "elsewhere", 0)] = rows_of(Run("ranking", "t", "d", "elsewhere", 0), [0, 0, 0])
        scores = {("t", name): pair("t", name, 0.5, 10) for name in "abcd"}
        (group,) = groups_of(runs, scores, section="ranking", scenarios=("brief",), epoch=-1)
        assert [c.pair.source for c in group.candidates] == ["a", "b", "c"]
        assert group.seeds == (0, 1)
        assert group.gain.tolist() == pytest.approx([2, 3, 4])
        assert group.candidates[0].accuracies.tolist() == pytest.approx([0.2, 0.4])
        assert groups_of(runs, scores, section="grid", scenarios=("brief",), epoch=-1) == []

    def test_nothing_before_random_initialization_has_run(self) -> None:
        from ranking_pools import groups_of
        from transfer_runs import Run

        runs = {run: rows_of(run, [0.1, 0.2]) for run in (Run("ranking", "t", name, "brief", 0) for name in "abc")}
        assert groups_of(runs, {}, section="ranking", scenarios=("brief",), epoch=-1) == []


class TestReport:
    NAMES = "abcdefgh"

    def write(self, out: Path, similarity: Callable[[int], float], parameters: Callable[[int], int]) -> str:
        """A report on two targets where candidate number i has the gain 1 + i / 2."""
        from ranking_report import write_report
        from ranking_scores import write_scores
        from rich.console import Console
        from transfer_runs import Run, RunFile

        file = RunFile(out / "runs.csv")
        for target in "tu":
            for seed in (0, 1):
                base = Run("ranking", target, "random", "", seed)
                rows = rows_of(base, [0.1, 0.1, 0.125])
                for i, name in enumerate(self.NAMES):
                    run = Run("ranking", target, name, "brief", seed)
                    rows += rows_of(run, [0.1, 0.1, 0.125 * (1 + i / 2)], source_accuracy=0.25)
                file.append(rows)
        names = list(enumerate(self.NAMES))
        write_scores(
            (pair(target, name, similarity(i), parameters(i)) for target in "tu" for i, name in names),
            out / "scores.csv",
        )
        write_report(file, RunFile(out / "none.csv"), out, Console(file=io.StringIO()))
        return (out / "summary.md").read_text(encoding="utf-8")

    def test_similarity_beats_size(self, tmp_path: Path) -> None:
        summary = self.write(tmp_path, lambda i: i / 10, lambda i: 100 - i)
        assert (
            "symmetric similarity **order better than size's, first choice better than size's** (tau-b +1.00)"
            in summary
        )
        assert "Size has one first choice for every target, a:" in summary
        assert "| symmetric similarity | asked for | +1.00 [+1.00, +1.00] | +2.00 [+2.00, +2.00] | 0.00 [" in summary
        # The largest is the worst: 3.5 of gain lost; a choice at random loses 3.5 / 2 on average.
        assert "| parameters of the source | asked for | -1.00 [-1.00, -1.00] | — | 3.50 [" in summary
        assert "| random | baseline | 0 [" in summary
        with (tmp_path / "summary.csv").open(newline="") as file:
            rows = {(row["target"], row["score"], row["pool"][:29]): row for row in csv.DictReader(file)}
        main = "all candidates, after the las"
        assert float(rows["all", "parameters of the source", main]["regret"]) == 3.5
        assert rows["u", "parameters of the source", main]["choice"] == "a"
        assert rows["t", "symmetric similarity", main]["choice"] == "h"
        assert float(rows["t", "similarity × accuracy", main]["tau"]) == 1.0
        assert rows["t", "coverage", main]["tau"] == "nan"
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

    def test_similarity_loses_to_size(self, tmp_path: Path) -> None:
        summary = self.write(tmp_path, lambda i: -i, lambda i: 1 + i)
        assert (
            "symmetric similarity **order worse than size's, first choice worse than size's** (tau-b -1.00)" in summary
        )

    def test_similarity_like_size(self, tmp_path: Path) -> None:
        summary = self.write(tmp_path, lambda i: i % 4, lambda i: 10 + (i + 1) % 4)
        assert "symmetric similarity **order not told apart from size's, first choice not told" in summary

    def test_no_intervals_for_few_candidates(self) -> None:
        from ranking_candidates import Candidate
        from ranking_evaluation import evaluate_pool
        from ranking_pools import Group
        from ranking_report import verdict

        def group(count: int) -> Group:
            pairs = [pair("t", str(i), i, 10 - i) for i in range(count)]
            gains = [array(i, i) for i in range(count)]
            candidates = [Candidate(p, "brief", 0.5, 0.1, g, g) for p, g in zip(pairs, gains, strict=True)]
            return Group("t", tuple(candidates), seeds=(0, 1))

        few = evaluate_pool([group(5)]).named("symmetric similarity")
        assert few.tau.value == few.taus["t"].value == 1.0
        assert all(map(math.isnan, few.tau.interval + few.regret_beyond_size.interval))
        assert verdict(few) == "too few candidates to tell"
        assert verdict(evaluate_pool([group(6)]).named("symmetric similarity")).startswith("order better")

    def test_too_few_runs(self, tmp_path: Path) -> None:
        from ranking_report import write_report
        from ranking_scores import write_scores
        from rich.console import Console
        from transfer_runs import RunFile

        write_scores([], tmp_path / "scores.csv")
        said = io.StringIO()
        write_report(RunFile(tmp_path / "runs.csv"), RunFile(tmp_path / "none.csv"), tmp_path, Console(file=said))
        assert "nothing to report" in said.getvalue()
        assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


class TestPlan:
    def test_candidates(self) -> None:
        from source_ranking import ALL, planned_runs

        runs = planned_runs(ALL)
        for target in ALL.targets:
            of_target = {run.source for run in runs if run.target == target}
            assert target not in of_target
            assert len(of_target - {"random"}) >= 10
        assert len(runs) == len(set(runs))
        assert all(run.baseline in runs for run in runs)
        first_seed = len(runs) // ALL.seeds
        assert {run.seed for run in runs[:first_seed]} == {0}


class Interrupted:
    """An experiment without training that is stopped after some runs."""

    def __init__(self, conditions: Any, runs: int) -> None:
        self.conditions = conditions
        self.left = runs
        self.performed: list[Any] = []

    def perform(self, run: Any) -> list[Any]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.performed.append(run)
        return rows_of(run, [0.1, 0.2])


class TestResumption:
    def test_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        from rich.console import Console
        from source_ranking import SMOKE, perform_all, planned_runs
        from transfer_runs import RunFile

        console, far = Console(file=io.StringIO()), time.monotonic() + 1000
        first, second = Interrupted(SMOKE, 3), Interrupted(SMOKE, 100)
        with pytest.raises(KeyboardInterrupt):
            perform_all(first, RunFile(tmp_path / "runs.csv"), far, console)  # type: ignore[arg-type]
        perform_all(second, RunFile(tmp_path / "runs.csv"), far, console)  # type: ignore[arg-type]
        assert first.performed + second.performed == planned_runs(SMOKE)
        assert set(RunFile(tmp_path / "runs.csv").runs()) == set(planned_runs(SMOKE))

    def test_budget(self, tmp_path: Path) -> None:
        from rich.console import Console
        from source_ranking import SMOKE, perform_all
        from transfer_runs import RunFile

        said = io.StringIO()
        experiment = Interrupted(SMOKE, 100)
        perform_all(experiment, RunFile(tmp_path / "runs.csv"), time.monotonic() - 1, Console(file=said))  # type: ignore[arg-type]
        assert not experiment.performed
        assert "8 runs did not fit" in said.getvalue()

    def test_other_conditions_are_refused(self, tmp_path: Path) -> None:
        from transfer_runs import Run, RunFile, refuse_mixture

        file = RunFile(tmp_path / "runs.csv")
        file.append(rows_of(Run("ranking", "t", "random", "", 0), [0.1, 0.2]))
        refuse_mixture(file, lambda section: (128, 100, 1, 64, 128, "cpu"))
        with pytest.raises(SystemExit, match="other conditions"):
            refuse_mixture(file, lambda section: (129, 100, 1, 64, 128, "cpu"))

    def test_sources_are_made_again_from_their_seed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import small_networks
        from brief_sources import BriefSources, Recipe, read_trained
        from cifar10 import Images, Normalize

        def tiny() -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10))

        monkeypatch.setitem(small_networks.NETWORKS, "tiny", tiny)
        pixels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        images, normalize = Images(pixels, torch.arange(20) % 10), Normalize((0.5,) * 3, (0.5,) * 3)
        recipe = Recipe(skipped=4, images=16, epochs=1, batch_size=8)
        weights = []
        for attempt in ("first", "again"):
            sources = BriefSources(tmp_path / attempt, tmp_path / "sources.csv", recipe)
            sources.train("tiny", images, images, normalize)
            weights.append(sources.load("tiny", torch.device("cpu")).state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert [row["name"] for row in read_trained(tmp_path / "sources.csv")] == ["tiny"]
        # What a target will be trained on has no part in the source.
        seen = recipe.chosen(images)
        assert torch.equal(seen.pixels, pixels[4:])
        changed = Images(torch.cat([255 - pixels[:4], pixels[4:]]), images.labels)
        sources = BriefSources(tmp_path / "changed", tmp_path / "sources.csv", recipe)
        sources.train("tiny", changed, images, normalize)
        assert torch.equal(sources.load("tiny", torch.device("cpu")).state_dict()["3.weight"], weights[0]["3.weight"])
        with pytest.raises(ValueError, match="21 training images wanted, 20 there"):
            replace(recipe, skipped=5).chosen(images)

    def test_trained_sources_are_kept(self, tmp_path: Path) -> None:
        from rich.console import Console
        from source_ranking import SMOKE, Experiment, train_sources
        from transfer_training import Circumstances

        at = Circumstances(64, 128, torch.device("cpu"), threads=1, workers=1, budget_minutes=1)
        experiment = Experiment(SMOKE, tmp_path, tmp_path, tmp_path, at)
        experiment.images = lambda split, count: None  # type: ignore[method-assign,assignment,return-value]
        trained = []
        experiment.brief.train = lambda name, *rest: trained.append(name) or one  # type: ignore[method-assign,func-returns-value]
        from brief_sources import Trained

        one = Trained("x", 1, 0.5, 1, 1, 1, 1, 0, 1.0, "x")
        experiment.brief.checkpoint(SMOKE.brief[0]).parent.mkdir()
        experiment.brief.checkpoint(SMOKE.brief[0]).touch()
        train_sources(experiment, Console(file=io.StringIO()))
        assert trained == list(SMOKE.brief[1:])


@pytest.mark.slow
def test_smoke_on_the_real_data(tmp_path: Path) -> None:
    if not (SHARED / "data" / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 at {SHARED}/data/cifar10; PYASSEMBLE_SHARED names another folder")
    pytest.importorskip("pyarrow")
    from transfer_runs import RunFile

    # This interpreter's import path, so that the script finds the package that is under test.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = str(EXPERIMENTS / "source_ranking.py")
    command = [sys.executable, script, "--smoke", "--data", str(SHARED / "data"), "--out", str(tmp_path)]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    rows = RunFile(tmp_path / "runs.csv").rows
    published = next(row for row in rows if row.source == "resnet32_cifar" and row.target == "resnet20_cifar")
    assert published.source_accuracy > 0.7
    assert published.coverage == 1.0
    assert {"summary.md", "summary.csv", "plot.png", "sources.csv"} <= {p.name for p in tmp_path.iterdir()}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "every planned run is in runs.csv already" in again.stdout
