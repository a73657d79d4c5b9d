"""Transfer against random initialization on CIFAR-10: how much does a pretrained source help another architecture?

Sources are CIFAR ResNets, as pretrained elsewhere and after fine-tuning on the target data; targets are those
architectures and timm ones adapted to 32×32. Every finished run is kept in OUT/runs.csv: the same command goes on where
it stopped. On a CPU, glibc gives large blocks back to the system after every step unless told otherwise; with
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment the training is up to a third
faster.

    python bench/experiments/transfer_cifar10.py                      two CPU cores, under an hour
    python bench/experiments/transfer_cifar10.py --device cuda --pairs full
    python bench/experiments/transfer_cifar10.py --report-only        tables and plot again from runs.csv
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cifar10 import Images, Normalize, read
from cifar_resnet import MEAN, STD, load_weights, pretrained
from provenance import ROOT, device_name
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file
from small_networks import CIFAR_RESNETS, build, depth_of, parameter_count, precision_for
from torch import nn
from transfer_report import write_report
from transfer_runs import RANDOM, Row, Run, RunFile, refuse_mixture
from transfer_training import LEARNING_RATE, Circumstances, accuracy, train_and_measure, untrained_row

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.training import fit, random_flip

ELSEWHERE, TUNED = "elsewhere", "fine-tuned"
GRID, ONE_EPOCH = "grid", "one-epoch"
# Room that an estimate leaves for other load on the machine before a run is left out of the budget.
MARGIN = 1.1


@dataclass(frozen=True)
class Conditions:
    """How much of everything."""

    images: int
    test_images: int
    epochs: int
    tuning_images: int
    one_epoch_images: int
    one_epoch_test_images: int
    seeds: int
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    ends: tuple[str, ...] = ()
    """Targets that are run with the shallowest and the deepest source only."""
    batch_size: int = 128


FULL_TARGETS = (
    *CIFAR_RESNETS,
    "resnet18_narrow",
    "resnet14t_narrow",
    "resnet18",
    "regnetx_002",
    "regnety_004",
    "lcnet_050",
    "mobilenetv3_small_050",
    "mobilenetv2_050",
    "mnasnet_small",
    "efficientnet_lite0",
    "densenet121",
)
REDUCED = Conditions(
    images=3200,
    test_images=2000,
    epochs=4,
    tuning_images=10_000,
    one_epoch_images=20_000,
    one_epoch_test_images=10_000,
    seeds=2,
    targets=(
        "resnet20_cifar",
        "resnet32_cifar",
        "resnet18_narrow",
        "regnetx_002",
        "lcnet_050",
        "resnet56_cifar",
    ),
    sources=CIFAR_RESNETS,
    ends=("resnet56_cifar",),
)
FULL = replace(REDUCED, images=20_000, test_images=10_000, tuning_images=50_000, seeds=5, targets=FULL_TARGETS, ends=())
SMOKE = Conditions(
    images=128,
    test_images=100,
    epochs=2,
    tuning_images=128,
    one_epoch_images=128,
    one_epoch_test_images=100,
    seeds=1,
    targets=("resnet20_cifar", "lcnet_050"),
    sources=("resnet20_cifar",),
)


def planned_runs(conditions: Conditions) -> list[Run]:
    """All runs, the most important first: a budget that ends early cuts off seeds and large targets, not questions."""
    runs = []
    for seed in range(conditions.seeds):
        runs += _one_epoch_runs(conditions, seed)
        for target in conditions.targets:
            ends = (conditions.sources[0], conditions.sources[-1])
            sources = ends if target in conditions.ends else conditions.sources
            runs.append(Run(GRID, target, RANDOM, "", seed))
            runs += [Run(GRID, target, source, how, seed) for how in (ELSEWHERE, TUNED) for source in sources]
    return runs


def _one_epoch_runs(conditions: Conditions, seed: int) -> list[Run]:
    """The comparison with the published code."""
    shallow, next_one, deepest = "resnet20_cifar", "resnet32_cifar", conditions.sources[-1]
    runs = [Run(ONE_EPOCH, target, RANDOM, "", seed) for target in (shallow, next_one)]
    runs += [Run(ONE_EPOCH, target, shallow, ELSEWHERE, seed) for target in (shallow, next_one)]
    if deepest != shallow:
        runs.append(Run(ONE_EPOCH, shallow, deepest, ELSEWHERE, seed))
    return runs


@dataclass
class Experiment:
    """Data, sources and settings that all runs share."""

    conditions: Conditions
    data: Path
    weights: Path
    out: Path
    device: torch.device
    budget_minutes: float
    threads: int
    workers: int
    normalize: Normalize = field(default_factory=lambda: Normalize(MEAN, STD))
    _accuracies: dict[tuple[str, str, int], float] = field(default_factory=dict)
    _similarities: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    @property
    def circumstances(self) -> Circumstances:
        return Circumstances(
            batch_size=self.conditions.batch_size,
            tuning_images=self.conditions.tuning_images,
            device=self.device,
            threads=self.threads,
            workers=self.workers,
            budget_minutes=self.budget_minutes,
        )

    def amounts(self, section: str) -> tuple[int, int, int]:
        """Training images, test images and epochs of a section."""
        if section == ONE_EPOCH:
            return self.conditions.one_epoch_images, self.conditions.one_epoch_test_images, 1
        return self.conditions.images, self.conditions.test_images, self.conditions.epochs

    def settings(self, section: str) -> tuple[object, ...]:
        """What the rows of a section must say to be compared with the ones to come."""
        conditions = self.conditions
        return (*self.amounts(section), conditions.batch_size, conditions.tuning_images, device_name(self.device))

    def images(self, split: str, count: int) -> Images:
        return read(self.data, split, count).to(self.device)

    def source(self, name: str, scenario: str) -> nn.Module:
        network = pretrained(depth_of(name), self.weights)
        if scenario == TUNED:
            load_weights(network, self.checkpoint(name))
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def checkpoint(self, name: str) -> Path:
        return self.out / "sources" / f"{name}_{self.conditions.tuning_images}.safetensors"

    def tune(self, name: str) -> str:
        """Trains a source for one epoch on the target data and keeps it; gives its name back."""
        images = self.images("train", self.conditions.tuning_images)
        network = self.source(name, ELSEWHERE)
        fit(
            network,
            images.pixels,
            images.labels,
            epochs=1,
            batch_size=self.conditions.batch_size,
            learning_rate=LEARNING_RATE,
            autocast=precision_for(network, self.device),
            prepare=self.normalize,
            augment=random_flip,
        )
        checkpoint = self.checkpoint(name)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        with replacing(checkpoint) as temporary:
            save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, temporary)
        return name

    def source_accuracy(self, name: str, scenario: str, test: Images) -> float:
        key = (name, scenario, len(test))
        if key not in self._accuracies:
            self._accuracies[key] = accuracy(self.source(name, scenario), test, self.normalize)
        return self._accuracies[key]

    def similarities(self, source: nn.Module, target: nn.Module, key: tuple[str, str]) -> tuple[float, float]:
        if key not in self._similarities:
            self._similarities[key] = (pa.similarity(source, target), pa.similarity(source, target, directed=True))
        return self._similarities[key]

    def perform(self, run: Run) -> list[Row]:
        """Trains one target and says what it was worth after each epoch."""
        count, test_count, epochs = self.amounts(run.section)
        train, test = self.images("train", count), self.images("test", test_count)
        target = build(run.target, run.seed, self.device)
        before = untrained_row(run, target, count, test_count, epochs, self.circumstances)
        if run.source != RANDOM:
            source = self.source(run.source, run.scenario)
            symmetric, directed = self.similarities(source, target, (run.source, run.target))
            start = time.perf_counter()
            coverage = pa.transfer(source, target, seed=run.seed).coverage
            before = replace(
                before,
                transfer_seconds=time.perf_counter() - start,
                similarity=symmetric,
                directed=directed,
                coverage=coverage,
                source_parameters=parameter_count(source),
                source_accuracy=self.source_accuracy(run.source, run.scenario, test),
            )
        return train_and_measure(target, train, test, before, self.normalize)

    def calibrated(self, name: str) -> float:
        """Seconds an image takes in training, measured on a few steps of a target."""
        batch = self.conditions.batch_size
        images = self.images("train", min(3 * batch, self.conditions.images))
        target = build(name, 0, self.device)
        results = fit(
            target,
            images.pixels,
            images.labels,
            epochs=2,
            batch_size=batch,
            autocast=precision_for(target, self.device),
            prepare=self.normalize,
            augment=random_flip,
        )
        return min(result.seconds for result in results) / len(images)

    def work(self, run: Run) -> float:
        """Images of a run, a tested one counted as a third of a trained one."""
        count, test_count, epochs = self.amounts(run.section)
        return epochs * count + (epochs + 1) * test_count / 3


# Each worker process holds the experiment once, with the images and similarities it has read so far.
_experiment: Experiment | None = None


def _start_worker(experiment: Experiment) -> None:
    global _experiment
    # Ctrl-C reaches the whole process group; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(experiment.threads)
    _experiment = experiment


def _tune(name: str) -> str:
    assert _experiment is not None
    return _experiment.tune(name)


def _perform(run: Run) -> list[Row]:
    assert _experiment is not None
    return _experiment.perform(run)


def _calibrate(name: str) -> float:
    assert _experiment is not None
    return _experiment.calibrated(name)


class Schedule:
    """Which runs are left, how long they should take, and what still fits into the budget."""

    def __init__(self, experiment: Experiment, runs: list[Run], speeds: dict[str, float]) -> None:
        self.experiment = experiment
        self.left = runs
        self.skipped: list[Run] = []
        self.speeds = {name: [speed] for name, speed in speeds.items()}
        self.deadline = time.monotonic() + 60 * experiment.budget_minutes

    def estimate(self, run: Run) -> float:
        """Seconds that a run should take."""
        return statistics.median(self.speeds[run.target]) * self.experiment.work(run)

    def learn(self, run: Run, seconds: float) -> None:
        self.speeds[run.target].append(seconds / self.experiment.work(run))

    def minutes_left(self) -> float:
        return (self.deadline - time.monotonic()) / 60

    def following(self) -> Run | None:
        """Takes the next run that fits; larger ones before it are left out."""
        while self.left:
            run = self.left.pop(0)
            if MARGIN * self.estimate(run) < 60 * self.minutes_left():
                return run
            self.skipped.append(run)
        return None


def perform_all(experiment: Experiment, runs: list[Run], file: RunFile, console: Console) -> None:
    """Performs what is not in the file yet, as far as the budget goes, several runs at a time."""
    done = set(file.runs())
    left = [run for run in runs if run not in done]
    if not left:
        console.print("every planned run is in runs.csv already")
        return
    # Processes of few threads rather than one of many: a step of these small networks has hundreds of short parallel
    # regions, and where other programs want the cores too, waiting for the last thread of each made it 15 times slower.
    pool = ProcessPoolExecutor(experiment.workers, get_context("spawn"), _start_worker, (experiment,))
    try:
        names = sorted({run.target for run in left})
        schedule = Schedule(experiment, left, dict(zip(names, pool.map(_calibrate, names), strict=True)))
        total = sum(map(schedule.estimate, left)) / 60 / experiment.workers
        console.print(
            f"{len(runs)} runs planned, {len(runs) - len(left)} of them done before; the rest should take {total:.0f} "
            f"minutes ({device_name(experiment.device)}, {experiment.workers} at a time, {experiment.threads} threads "
            f"each), and fine-tuning the sources some more; budget {experiment.budget_minutes:g} minutes",
            soft_wrap=True,
        )
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            _work_off(schedule, pool, file, progress)
    except BaseException:
        # A run takes minutes, and nothing of a half one is kept: not worth waiting for.
        for process in list(pool._processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _work_off(schedule: Schedule, pool: ProcessPoolExecutor, file: RunFile, progress: Progress) -> None:
    experiment, print_line = schedule.experiment, progress.console.print
    planned = len(schedule.left)
    bar = progress.add_task("runs", total=planned)
    needed = dict.fromkeys(run.source for run in schedule.left if run.scenario == TUNED)
    untuned = [name for name in needed if not experiment.checkpoint(name).exists()]
    tuning: dict[Future[str], str] = {}
    running: dict[Future[list[Row]], tuple[Run, float]] = {}
    finished = 0
    while True:
        while len(running) + len(tuning) < experiment.workers:
            # The one-epoch section comes first, then the sources are tuned, then the grid needs them.
            if untuned and (not schedule.left or schedule.left[0].section == GRID):
                name = untuned.pop(0)
                tuning[pool.submit(_tune, name)] = name
                continue
            if tuning and schedule.left and schedule.left[0].scenario == TUNED:
                break
            run = schedule.following()
            if run is None:
                break
            running[pool.submit(_perform, run)] = run, time.perf_counter()
        if not running and not tuning:
            break
        waited: list[Future[Any]] = [*running, *tuning]
        ready, _ = wait(waited, return_when=FIRST_COMPLETED)
        for future in [future for future in tuning if future in ready]:
            print_line(f"fine-tuned {future.result()} for one epoch on {experiment.conditions.tuning_images} images")
            del tuning[future]
        for done in [future for future in running if future in ready]:
            run, start = running.pop(done)
            rows = done.result()
            file.append(rows)
            schedule.learn(run, time.perf_counter() - start)
            finished += 1
            progress.update(bar, completed=finished)
            accuracies = " ".join(f"{100 * row.accuracy:.1f}" for row in rows)
            print_line(
                f"[{finished}/{planned}] {run}: {accuracies} %, {rows[-1].seconds:.0f} s training, "
                f"{schedule.minutes_left():.0f} minutes left",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    if schedule.skipped:
        print_line(f"{len(schedule.skipped)} runs did not fit into the budget; the same command goes on with them")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data", help="folder with the images, or with cifar10/")
    add("--weights", type=Path, help="folder with resnet{20,32,44,56}.safetensors (default: DATA/cifar_resnets)")
    add("--out", type=Path, default=ROOT / "bench/results/transfer_cifar10")
    add("--pairs", choices=("reduced", "full"), default="reduced")
    add("--images", type=int, help="training images of an epoch in the grid")
    add("--test-images", type=int, help="test images in the grid")
    add("--epochs", type=int, help="epochs in the grid")
    add("--seeds", type=int)
    add("--device", default="cpu")
    add("--workers", type=int, help="runs trained at the same time (default: one a core on the CPU, else one)")
    add("--threads", type=int, default=1, help="threads of each worker")
    add("--budget-minutes", type=float, default=50.0, help="no run is started that would end after this")
    add("--smoke", action="store_true", help="a tiny form of everything, under a minute")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="keep the runs found in OUT")
    add("--report-only", action="store_true", help="write tables and plot again from OUT/runs.csv")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = _arguments(argv)
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    runs_csv = options.out / "runs.csv"
    if not options.resume and not options.report_only:
        runs_csv.unlink(missing_ok=True)
    file = RunFile(runs_csv)
    if options.report_only:
        write_report(file, options.out, console)
        return 0
    conditions = SMOKE if options.smoke else {"reduced": REDUCED, "full": FULL}[options.pairs]
    chosen = {name: getattr(options, name) for name in ("images", "test_images", "epochs", "seeds")}
    conditions = replace(conditions, **{name: value for name, value in chosen.items() if value is not None})
    experiment = Experiment(
        conditions=conditions,
        data=options.data / "cifar10" if (options.data / "cifar10").is_dir() else options.data,
        weights=options.weights or options.data / "cifar_resnets",
        out=options.out,
        device=torch.device(options.device),
        budget_minutes=options.budget_minutes,
        threads=options.threads,
        workers=options.workers or (max(1, _cores() // options.threads) if options.device == "cpu" else 1),
    )
    refuse_mixture(file, experiment.settings)
    try:
        perform_all(experiment, planned_runs(conditions), file, console)
    except KeyboardInterrupt:
        console.print(f"stopped; finished runs are in {runs_csv}, the same command goes on from there")
        return 130
    write_report(file, options.out, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
