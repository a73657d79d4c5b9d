"""The sine experiment of Merging, section 4.1: a merged network against the best of three and one long run.

x ~ U(0, 1), y = sin(10 pi x) + noise of standard deviation 0.2, one hidden layer of 100; every strategy has 900 epochs
in all. Networks are merged twice: with the publication's settings, and with ours (``OURS``), chosen on other seeds. As
in the published code, all epochs go through the samples in one order. The runs of a strategy are trained
side by side, one vectorized step for all of them; every run has data of its own, the same for all strategies, so that
the tests are paired. The state is kept every ten epochs: the same command goes on where it stopped. Strategies may be
run in processes of their own; the report is made when all are done, and takes those that were not run from the runs.csv
that lies there. On a CPU, MALLOC_MMAP_THRESHOLD_=4294967296
MALLOC_TRIM_THRESHOLD_=17179869184 in the environment make a step half as long.

    python bench/experiments/merge_sine.py                            one CPU core, under an hour
    python bench/experiments/merge_sine.py --strategies merged
    python bench/experiments/merge_sine.py --shuffled                 an order of its own for every epoch
    python bench/experiments/merge_sine.py --report-only              tables and plot again
"""

from __future__ import annotations

import argparse
import csv
import signal
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from provenance import ROOT, commit
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from sine_networks import LEARNING_RATE, Phase, outputs, train
from sine_report import CONDITIONS, CURVES, MERGED, STRATEGIES, write_report
from torch import Tensor, nn

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.training.seeding import derived_generator, derived_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

HIDDEN, NOISE = 100, 0.2
POINTS = 501


@dataclass(frozen=True)
class MergePlan:
    """How the 900 epochs of a merged network are spent.

    Attributes:
        prefix: Of the names of its phases, which give their random draws.
        teachers: Epochs of each of the two teachers, and when their learning rate falls.
        importance: Epochs in which the wide student learns importance.
        importance_rate: SGD's learning rate of the weights in them, constant; that of the gates is the same for all.
        finetuning: Epochs of the compressed network, and when its learning rate falls.
    """

    prefix: str
    teachers: tuple[int, int]
    importance: int
    importance_rate: float
    finetuning: tuple[int, int]


PUBLICATION = MergePlan("", (300, 250), 150, LEARNING_RATE, (150, 100))
OURS = MergePlan("ours, ", (250, 210), 100, 0.003, (300, 250))
PLANS = dict(zip(MERGED, (PUBLICATION, OURS), strict=True))


@dataclass(frozen=True)
class Row:
    """The test loss of one network of one run."""

    strategy: str
    stage: str
    """ "result" for what the strategy ends with; otherwise a network on the way to it."""
    run: int
    network: int
    loss: float
    """Mean squared error on noisy samples: the noise alone has 0.04."""
    units: str
    """Of the merged network: hidden units from each teacher."""
    epochs: int
    """Of the whole strategy."""
    runs: int
    samples: int
    test_samples: int
    order: str
    """ "fixed", as published, or "shuffled" for every epoch."""
    seed: int
    torch: str
    commit: str


@dataclass(frozen=True)
class Conditions:
    """How much of everything.

    Attributes:
        share: Of the publication's 900 epochs, for a try.
        shuffled: Whether every epoch has an order of its own.
    """

    runs: int
    samples: int
    seed: int
    share: float
    shuffled: bool = False

    def phase(self, name: str, epochs: int, drop: int | None = None, rate: float = LEARNING_RATE) -> Phase:
        dropped = None if drop is None else round(drop * self.share)
        return Phase(name, max(1, round(epochs * self.share)), dropped, self.shuffled, rate)

    @property
    def epochs(self) -> int:
        return round(900 * self.share)


class Experiment:
    """The three strategies on the same data."""

    def __init__(self, conditions: Conditions, out: Path, progress: Progress) -> None:
        self.conditions, self.out, self.progress = conditions, out, progress
        self.x, self.y = self._sample("train")
        self.test_x, self.test_y = self._sample("test")

    def _sample(self, purpose: str) -> tuple[Tensor, Tensor]:
        xs, ys = [], []
        for run in range(self.conditions.runs):
            generator = derived_generator(self.conditions.seed, purpose, run)
            x = torch.rand(self.conditions.samples, generator=generator)
            noise = torch.randn(self.conditions.samples, generator=generator)
            xs.append(x)
            ys.append(torch.sin(10 * torch.pi * x) + NOISE * noise)
        return torch.stack(xs), torch.stack(ys)

    def merged(self, strategy: str) -> tuple[list[Row], list[nn.Module]]:
        plan, given = PLANS[strategy], self.conditions
        teachers = self._fresh("teacher", 2)
        self._train(teachers, 2, given.phase(f"{plan.prefix}teachers", *plan.teachers))
        example = self.x[0, :8, None]
        students = [
            pa.merge(teachers[2 * run : 2 * run + 2], example, seed=derived_seed(given.seed, "gates", run))
            for run in range(given.runs)
        ]
        rows = self._rows(strategy, "teacher", teachers, 2)
        learning = given.phase(f"{plan.prefix}importance", plan.importance, rate=plan.importance_rate)
        self._train(students, 1, learning)
        rows += self._rows(strategy, "wide student", students, 1)
        networks = [student.compress() for student in students]
        units = [_units_of_teachers(student) for student in students]
        rows += self._rows(strategy, "compressed", networks, 1, units)
        self._train(networks, 1, given.phase(f"{plan.prefix}fine-tuning", *plan.finetuning))
        return rows + self._rows(strategy, "result", networks, 1, units), networks

    def best_of_three(self) -> tuple[list[Row], list[nn.Module]]:
        networks = self._fresh("three", 3)
        self._train(networks, 3, self.conditions.phase("three", 300, 250))
        rows = self._rows("best of three", "network", networks, 3)
        # By test loss, as favourable to this strategy as can be.
        best = [min(rows[3 * run : 3 * run + 3], key=lambda row: row.loss) for run in range(self.conditions.runs)]
        chosen = [networks[3 * row.run + row.network] for row in best]
        return rows + self._rows("best of three", "result", chosen, 1), chosen

    def one_long_run(self) -> tuple[list[Row], list[nn.Module]]:
        networks = self._fresh("long", 1)
        self._train(networks, 1, self.conditions.phase("long", 900, 800))
        return self._rows("one long run", "result", networks, 1), networks

    def _fresh(self, purpose: str, each: int) -> list[nn.Module]:
        """``each`` networks a run, with PyTorch's own initialization."""
        networks = []
        for number in range(self.conditions.runs * each):
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(derived_seed(self.conditions.seed, purpose, number))
                networks.append(nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)).eval())
        return list(networks)

    def _train(self, networks: Sequence[nn.Module], each: int, phase: Phase) -> None:
        task = self.progress.add_task(f"{phase.name}, {len(networks)} networks", total=phase.epochs)
        x, y = (data.repeat_interleave(each, 0) for data in (self.x, self.y))
        state = self.out / "state" / f"{phase.name}.safetensors"
        train(
            networks,
            x,
            y,
            phase,
            seed=self.conditions.seed,
            state=state,
            after_epoch=lambda done: self.progress.update(task, completed=done),
        )
        self.progress.update(task, completed=phase.epochs)

    def _rows(
        self, strategy: str, stage: str, networks: Sequence[nn.Module], each: int, units: Sequence[str] = ()
    ) -> list[Row]:
        x, y = (data.repeat_interleave(each, 0) for data in (self.test_x, self.test_y))
        losses = (outputs(networks, x) - y).square().mean(1).tolist()
        given = self.conditions
        return [
            Row(
                strategy=strategy,
                stage=stage,
                run=number // each,
                network=number % each,
                loss=loss,
                units=units[number] if units else "",
                epochs=given.epochs,
                runs=given.runs,
                samples=given.samples,
                test_samples=given.samples,
                order="shuffled" if given.shuffled else "fixed",
                seed=given.seed,
                torch=torch.__version__,
                commit=commit(),
            )
            for number, loss in enumerate(losses)
        ]

    def run(self, strategy: str) -> None:
        """Carries out a strategy and keeps its rows and learned curves."""
        if strategy in PLANS:
            rows, networks = self.merged(strategy)
        else:
            rows, networks = self.best_of_three() if strategy == "best of three" else self.one_long_run()
        x = torch.linspace(0, 1, POINTS).expand(len(networks), -1)
        with replacing(_curves_file(self.out, strategy)) as temporary:
            save_file({CURVES: outputs(networks, x).contiguous()}, temporary)
        with replacing(_rows_file(self.out, strategy)) as temporary:
            _write(temporary, rows)


def _units_of_teachers(student: pa.WideStudent) -> str:
    (group,) = student.gate_groups.values()
    (kept,) = student.selection().values()
    return "+".join(str(int((group.teacher[kept] == teacher).sum())) for teacher in range(2))


def _rows_file(out: Path, strategy: str) -> Path:
    return out / "state" / f"{strategy.replace(', ', ' ').replace(' ', '-')}.csv"


def _curves_file(out: Path, strategy: str) -> Path:
    return _rows_file(out, strategy).with_suffix(".curves.safetensors")


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in rows)


def _report(out: Path, console: Console) -> bool:
    rows = {strategy: _finished(out, strategy) for strategy in STRATEGIES}
    missing = [strategy for strategy, found in rows.items() if not found]
    if missing:
        console.print(f"no report yet: {', '.join(missing)} not finished")
        return False
    every = [row for found in rows.values() for row in found]
    for name in CONDITIONS:
        if len(values := {row[name] for row in every}) > 1:
            raise ValueError(f"{out} has strategies of different {name}: {sorted(values)}; another --out is needed")
    with replacing(out / "runs.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(every)
    files = {strategy: _curves_file(out, strategy) for strategy in STRATEGIES}
    curves = {strategy: load_file(path)[CURVES] for strategy, path in files.items() if path.exists()}
    console.print(write_report(out, curves), markup=False, highlight=False)
    return True


def _finished(out: Path, strategy: str) -> list[dict[str, str]]:
    """Rows of a strategy: those of its last run here, or those that were kept with the results."""
    for path in (_rows_file(out, strategy), out / "runs.csv"):
        if path.exists():
            with path.open(newline="") as file:
                if found := [row for row in csv.DictReader(file) if row["strategy"] == strategy]:
                    return found
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "merge_sine")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=1.0, help="of the publication's 900 epochs; less for a try")
    parser.add_argument("--shuffled", action="store_true", help="an order of its own for every epoch; OUT_shuffled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report-only", action="store_true")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    if options.shuffled:
        options.out = options.out.with_name(f"{options.out.name}_shuffled")
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report_only:
        (options.out / "state").mkdir(exist_ok=True)
        torch.set_num_threads(options.threads)
        commit()  # of the code that runs, whatever is committed meanwhile
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        conditions = Conditions(options.runs, options.samples, options.seed, options.share, options.shuffled)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} epochs"))
        try:
            with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
                experiment = Experiment(conditions, options.out, progress)
                for strategy in options.strategies:
                    experiment.run(strategy)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from the last ten epochs")
            return 130
    return 0 if _report(options.out, console) or not options.report_only else 1


if __name__ == "__main__":
    sys.exit(main())
