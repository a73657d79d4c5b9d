"""Merging two networks on CIFAR-10 against what else the same epochs could have been spent on.

All strategies have the epochs of one long run: the best of three of a third each; two teachers of a third each and then
merging them (a sixth to learn importance, a sixth to fine-tune), averaging their weights and training on, or distilling
them into a new network. An epoch of the wide network computes more than one of a small one: the column `compute` counts
in epochs of one network, and "one long run, equal compute" has as many as merging. Finished strategies are kept in
OUT/runs.csv, teachers and the state of merging in OUT/state: the same command goes on where it stopped. On a CPU,
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment make the training faster.
Architectures may be run by processes of their own.

    python bench/experiments/merge_cifar10.py                         one CPU core, tens of minutes
    python bench/experiments/merge_cifar10.py --device cuda --images 50000 --epochs 600 --seeds 5 --out DIR
    python bench/experiments/merge_cifar10.py --report-only           tables and plot again from runs.csv
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from cifar10 import Normalize, read
from cifar_resnet import MEAN, STD, CifarResNet
from merge_cifar10_report import STRATEGIES, write_report
from merge_strategies import Budget, Data, Outcome, averaged, distilled, merged, relative_cost, seed_of, train
from provenance import ROOT, commit, device_name
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file
from small_vgg import SmallVGG
from torch import nn

import pyassemble as pa
from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"resnet20": lambda: CifarResNet(20), "small_vgg": SmallVGG}
# Strategies that begin with two teachers.
OF_TEACHERS = ("merged", "averaged weights", "distilled", "one long run, equal compute")


@dataclass(frozen=True)
class Row:
    """What one strategy ended with, for one architecture and seed."""

    architecture: str
    strategy: str
    seed: int
    accuracy: float
    on_the_way: str
    epochs: int
    """Of all its networks together."""
    compute: float
    """In epochs of one network."""
    seconds: float
    """Without the teachers'."""
    images: int
    test_images: int
    budget_epochs: int
    batch_size: int
    rates: str
    """SGD's learning rates: from random weights, of the wide network, of fine-tuning, of the gates."""
    precision: str
    device: str
    threads: int
    torch: str
    commit: str


class Experiment:
    """One architecture and seed after the other."""

    def __init__(self, data: Data, budget: Budget, out: Path, device: torch.device, progress: Progress) -> None:
        self.data, self.budget, self.out, self.device, self.progress = data, budget, out, device, progress

    def fresh(self, architecture: str, seed: int, *purpose: int | str) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed_of(seed, "weights", *purpose))
            return ARCHITECTURES[architecture]().to(self.device, memory_format=torch.channels_last)

    def run(self, architecture: str, strategy: str, seed: int) -> Outcome:
        budget, data = self.budget, self.data
        run_seed = seed_of(seed, strategy)
        task = self.progress.add_task(f"{architecture}, {strategy}, seed {seed}", total=None)

        def advance() -> None:
            self.progress.update(task, advance=1)

        def long(epochs: int) -> Outcome:
            network = self.fresh(architecture, seed, "long")
            train(network, data, epochs, budget, run_seed, after_epoch=advance)
            return Outcome(data.accuracy(network), {}, epochs, epochs)

        try:
            if strategy == "one long run":
                return long(budget.epochs)
            if strategy == "best of three":
                found = {}
                for number in range(3):
                    network = self.fresh(architecture, seed, "three", number)
                    train(network, data, budget.third, budget, seed_of(seed, strategy, number), after_epoch=advance)
                    found[f"network {number}"] = data.accuracy(network)
                # By test accuracy, as favourable to this strategy as can be.
                return Outcome(max(found.values()), found, 3 * budget.third, 3 * budget.third)
            teachers = self.teachers(architecture, seed)
            if strategy == "merged":
                state = self.out / "state" / f"{architecture}-{seed}-merging"
                return merged(teachers, data, budget, run_seed, state, advance)
            if strategy == "averaged weights":
                return averaged(teachers, data, budget, run_seed, advance)
            cost = relative_cost(pa.merge(teachers, data.images[:2]), teachers[0], data.images[:1])
            if strategy == "distilled":
                fresh = self.fresh(architecture, seed, "distilled")
                return distilled(teachers, data, budget, run_seed, fresh, cost, advance)
            return long(round(2 * budget.third + budget.sixth * (1 + cost)))
        finally:
            self.progress.remove_task(task)

    def teachers(self, architecture: str, seed: int) -> list[nn.Module]:
        """Trained once, then read from their files."""
        return [self._teacher(architecture, seed, number) for number in range(2)]

    def _teacher(self, architecture: str, seed: int, number: int) -> nn.Module:
        network = self.fresh(architecture, seed, "teacher", number)
        name = f"{architecture}-{seed}-{number}-{len(self.data.images)}x{self.budget.third}.safetensors"
        file = self.out / "state" / name
        if file.exists():
            network.load_state_dict(load_file(file, device=str(self.device)))
            return network.eval()
        task = self.progress.add_task(f"{architecture}, teacher {number}, seed {seed}", total=self.budget.third)
        train(
            network,
            self.data,
            self.budget.third,
            self.budget,
            seed_of(seed, "teacher", number),
            after_epoch=lambda: self.progress.update(task, advance=1),
        )
        self.progress.remove_task(task)
        with replacing(file) as temporary:
            # Contiguous, since safetensors takes no other layout and the networks are channels-last.
            save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, temporary)
        return network


def _read_rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def _append(file: Path, row: Row) -> None:
    """Adds a row; processes that run other architectures may be doing the same."""
    with (file.parent / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = [*_read_rows(file), asdict(row)]
        with replacing(file) as temporary, temporary.open("w", newline="") as content:
            writer = csv.DictWriter(content, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(rows)


def _data(folder: Path, images: int, test_images: int, device: torch.device) -> Data:
    normalize = Normalize(MEAN, STD)
    train, test = read(folder, "train", images), read(folder, "test", test_images)
    return Data(
        normalize(train.pixels).to(device, memory_format=torch.channels_last),
        train.labels.to(device),
        normalize(test.pixels).to(device, memory_format=torch.channels_last),
        test.labels.to(device),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "merge_cifar10")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=18, help="of one long run; a multiple of 6")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--gate-rate", type=float, default=0.2, help="SGD's, for the gates")
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16", help="of the forward pass")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no strategy is begun after as many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args(arguments)
    if options.epochs % 6 or options.epochs < 6:
        parser.error(f"--epochs {options.epochs}: a multiple of 6 is needed")
    console = Console(stderr=True)
    (options.out / "state").mkdir(parents=True, exist_ok=True)
    runs = options.out / "runs.csv"
    if not options.report_only:
        commit()  # of the code that runs, whatever is committed meanwhile
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        torch.set_num_threads(options.threads)
        try:
            _run_all(options, runs, console)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on")
    rows = _read_rows(runs)
    if not rows:
        console.print("no finished runs yet")
        return 1
    console.print(write_report(options.out, rows), markup=False, highlight=False)
    return 0


def _run_all(options: argparse.Namespace, runs: Path, console: Console) -> None:
    device = torch.device(options.device)
    budget = Budget(options.epochs, options.batch_size, gate_rate=options.gate_rate, precision=options.precision)
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} epochs"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        data = _data(options.data, options.images, options.test_images, device)
        experiment = Experiment(data, budget, options.out, device, progress)
        conditions = {
            "images": options.images,
            "test_images": options.test_images,
            "budget_epochs": options.epochs,
            "batch_size": options.batch_size,
            "precision": options.precision,
        }
        # All strategies of a seed before the next seed: what is there can be compared whenever the run is stopped.
        for seed in range(options.seeds):
            for architecture in options.architectures:
                for strategy in options.strategies:
                    known = _read_rows(runs)
                    if any(str(row[name]) != str(value) for row in known for name, value in conditions.items()):
                        raise SystemExit(f"{runs} has runs of another budget; another --out is needed")
                    done = {(row["architecture"], row["strategy"], row["seed"]) for row in known}
                    if (architecture, strategy, str(seed)) in done:
                        continue
                    if time.monotonic() - started > 60 * options.minutes:
                        return
                    if strategy in OF_TEACHERS:
                        experiment.teachers(architecture, seed)
                    begun = time.perf_counter()
                    outcome = experiment.run(architecture, strategy, seed)
                    way = ", ".join(f"{name} {value:.4f}" for name, value in outcome.on_the_way.items())
                    row = Row(
                        architecture=architecture,
                        strategy=strategy,
                        seed=seed,
                        accuracy=outcome.accuracy,
                        on_the_way=way,
                        epochs=outcome.epochs,
                        compute=round(outcome.compute, 2),
                        seconds=round(time.perf_counter() - begun, 1),
                        rates=f"{budget.rate} {budget.importance_rate} {budget.finetune_rate} {budget.gate_rate}",
                        device=device_name(device),
                        threads=options.threads,
                        torch=torch.__version__,
                        commit=commit(),
                        **conditions,
                    )
                    _append(runs, row)
                    progress.console.print(f"{architecture}, {strategy}, seed {seed}: {outcome.accuracy:.4f} ({way})")


if __name__ == "__main__":
    sys.exit(main())
