"""Does similarity rank the sources of one target better than their size does?

For each of a few targets, every source of a small zoo is transferred onto it and trained briefly on CIFAR-10: the
CIFAR ResNets as published, and small timm networks that this script trains first. The gain of a source is the accuracy
it leads to, divided by that of random initialization. Every finished run is kept in OUT/runs.csv: the same command
goes on where it stopped. On a CPU, MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the
environment makes the training up to a third faster.

    python bench/experiments/source_ranking.py                   one CPU core, about an hour
    python bench/experiments/source_ranking.py --report-only     tables and plot again from the CSV files
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from brief_sources import BriefSources, Recipe
from cifar10 import Images, Normalize, read
from cifar_resnet import MEAN, STD, pretrained
from provenance import ROOT, device_name
from ranking_report import write_report
from ranking_scores import pair_scores, write_scores
from rich.console import Console
from small_networks import CIFAR_RESNETS, build, depth_of, parameter_count
from torch import nn
from transfer_runs import RANDOM, Row, Run, RunFile, refuse_mixture
from transfer_training import Circumstances, accuracy, train_and_measure, untrained_row

import pyassemble as pa

if TYPE_CHECKING:
    from collections.abc import Iterable

SECTION = "ranking"
PUBLISHED, BRIEF = "elsewhere", "brief"
MARGIN = 1.1


@dataclass(frozen=True)
class Conditions:
    """How much of everything."""

    images: int
    test_images: int
    epochs: int
    seeds: int
    batch_size: int
    source_images: int
    source_epochs: int
    targets: tuple[str, ...]
    published: tuple[str, ...]
    brief: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.images, self.source_images, self.source_epochs, self.batch_size)


ALL = Conditions(
    images=3200,
    test_images=1000,
    epochs=2,
    seeds=2,
    batch_size=64,
    source_images=8000,
    source_epochs=3,
    # The quick ones first: where a budget ends within a repetition, the noisiest targets have it.
    targets=("mobilenetv3_small_050", "lcnet_050", "regnetx_002", "resnet20_cifar", "resnet18_narrow"),
    published=CIFAR_RESNETS,
    # Every family has more than one size, and families overlap in size: neither tells the other.
    brief=(
        "resnet14_cifar",
        "resnet18_narrow",
        "resnet34_narrow",
        "regnetx_004",
        "regnety_002",
        "lcnet_035",
        "mobilenetv3_small_100",
        "mobilenetv2_035",
    ),
)
SMOKE = replace(
    ALL,
    images=128,
    test_images=100,
    epochs=1,
    seeds=1,
    source_images=128,
    source_epochs=1,
    targets=("resnet20_cifar", "lcnet_050"),
    published=("resnet32_cifar",),
    brief=("resnet14_cifar", "lcnet_035"),
)


def planned_runs(conditions: Conditions) -> list[Run]:
    """All runs, seeds outermost: a budget that ends early cuts off repetitions, not pairs.

    A target's own architecture is no candidate: the question is where a new architecture should start from.
    """
    sources = [(name, PUBLISHED) for name in conditions.published] + [(name, BRIEF) for name in conditions.brief]
    return [
        Run(SECTION, target, source, how, seed)
        for seed in range(conditions.seeds)
        for target in conditions.targets
        for source, how in [(RANDOM, ""), *sources]
        if source != target
    ]


class Experiment:
    """Data, sources and settings that all runs share."""

    def __init__(self, conditions: Conditions, data: Path, weights: Path, out: Path, at: Circumstances) -> None:
        self.conditions = conditions
        self.data = data
        self.weights = weights
        self.out = out
        self.at = at
        self.normalize = Normalize(MEAN, STD)
        self.brief = BriefSources(out / "sources", out / "sources.csv", conditions.recipe)
        self._sources: dict[tuple[str, str], nn.Module] = {}
        self._accuracies: dict[tuple[str, str], float] = {}

    def settings(self, section: str) -> tuple[object, ...]:
        """What rows must say to be compared with the ones to come."""
        c = self.conditions
        return (c.images, c.test_images, c.epochs, c.batch_size, c.source_images, device_name(self.at.device))

    def images(self, split: str, count: int) -> Images:
        return read(self.data, split, count).to(self.at.device)

    def train_images(self) -> Images:
        recipe = self.conditions.recipe
        return self.images("train", recipe.skipped + recipe.images)

    def source(self, name: str, scenario: str) -> nn.Module:
        key = (name, scenario)
        if key not in self._sources:
            device = self.at.device
            published = scenario == PUBLISHED
            network = pretrained(depth_of(name), self.weights) if published else self.brief.load(name, device)
            self._sources[key] = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._sources[key]

    def source_accuracy(self, name: str, scenario: str) -> float:
        key = (name, scenario)
        if key not in self._accuracies:
            test = self.images("test", self.conditions.test_images)
            self._accuracies[key] = accuracy(self.source(name, scenario), test, self.normalize)
        return self._accuracies[key]

    def perform(self, run: Run) -> list[Row]:
        """Trains one target and says what it was worth after each epoch."""
        c = self.conditions
        train, test = self.train_images().first(c.images), self.images("test", c.test_images)
        target = build(run.target, run.seed, self.at.device)
        before = untrained_row(run, target, c.images, c.test_images, c.epochs, self.at)
        if run.source != RANDOM:
            source = self.source(run.source, run.scenario)
            start = time.perf_counter()
            report = pa.transfer(source, target, seed=run.seed)
            before = replace(
                before,
                transfer_seconds=time.perf_counter() - start,
                similarity=pa.similarity(source, target),
                directed=pa.similarity(source, target, directed=True),
                coverage=report.coverage,
                source_parameters=parameter_count(source),
                source_accuracy=self.source_accuracy(run.source, run.scenario),
            )
        return train_and_measure(target, train, test, before, self.normalize)


def score_all(runs: Iterable[Run], path: Path) -> None:
    """Writes the scores of all pairs: they need architectures only, so they stand before the first run ends."""
    pairs = dict.fromkeys((run.target, run.source) for run in runs if run.source != RANDOM)
    names = dict.fromkeys(name for pair in pairs for name in pair)
    networks = {name: build(name, 0, torch.device("cpu")) for name in names}
    write_scores((pair_scores(t, networks[t], s, networks[s]) for t, s in pairs), path)


def train_sources(experiment: Experiment, console: Console) -> None:
    """Trains the brief sources that are not in the folder yet."""
    test = experiment.images("test", experiment.conditions.test_images)
    for name in experiment.conditions.brief:
        if not experiment.brief.checkpoint(name).exists():
            trained = experiment.brief.train(name, experiment.train_images(), test, experiment.normalize)
            console.print(f"source {name}: {100 * trained.accuracy:.1f} %, {trained.seconds:.0f} s", highlight=False)


def perform_all(experiment: Experiment, file: RunFile, deadline: float, console: Console) -> None:
    """Performs what is not in the file yet, until the next run would end after the deadline."""
    done = file.runs()
    left = [run for run in planned_runs(experiment.conditions) if run not in done]
    longest: dict[str, float] = {}
    for number, run in enumerate(left):
        start = time.monotonic()
        if start + MARGIN * longest.get(run.target, 0.0) > deadline:
            console.print(f"{len(left) - number} runs did not fit into the budget; the same command goes on with them")
            return
        rows = experiment.perform(run)
        file.append(rows)
        longest[run.target] = max(longest.get(run.target, 0.0), time.monotonic() - start)
        accuracies = " ".join(f"{100 * row.accuracy:.1f}" for row in rows)
        minutes = (deadline - time.monotonic()) / 60
        console.print(
            f"[{number + 1}/{len(left)}] {run}: {accuracies} %, {rows[-1].seconds:.0f} s, {minutes:.0f} minutes left",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if not left:
        console.print("every planned run is in runs.csv already")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with the images, or with cifar10/")
    add("--weights", type=Path, help="folder with resnet{20,32,44,56}.safetensors (default: DATA/cifar_resnets)")
    add("--out", type=Path, default=ROOT / "bench/results/source_ranking")
    add(
        "--earlier",
        type=Path,
        default=ROOT / "bench/results/transfer_cifar10/runs.csv",
        help="runs of the transfer experiment, whose gains are ranked as well",
    )
    add("--seeds", type=int, default=ALL.seeds)
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--budget-minutes", type=float, default=60.0, help="no run is started that would end after this")
    add("--smoke", action="store_true", help="a tiny form of everything, under a minute")
    add("--report-only", action="store_true", help="write tables and plot again from the CSV files in OUT")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = _arguments(argv)
    deadline = time.monotonic() + 60 * options.budget_minutes
    console = Console()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    file = RunFile(options.out / "runs.csv")
    earlier = RunFile(options.earlier)
    conditions = SMOKE if options.smoke else replace(ALL, seeds=options.seeds)
    if not options.report_only:
        experiment = Experiment(
            conditions,
            data=options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data,
            weights=options.weights or options.data / "cifar_resnets",
            out=options.out,
            at=Circumstances(
                batch_size=conditions.batch_size,
                tuning_images=conditions.source_images,
                device=torch.device(options.device),
                threads=options.threads,
                workers=1,
                budget_minutes=options.budget_minutes,
            ),
        )
        refuse_mixture(file, experiment.settings)
        score_all([*planned_runs(conditions), *earlier.runs()], options.out / "scores.csv")
        try:
            train_sources(experiment, console)
            perform_all(experiment, file, deadline, console)
        except KeyboardInterrupt:
            console.print(f"stopped; finished runs are in {file.path}, the same command goes on from there")
            return 130
    write_report(file, earlier, options.out, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
