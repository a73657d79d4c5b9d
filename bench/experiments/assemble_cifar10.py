"""Assemblies on CIFAR-10 against their sources, random assemblies, and choices by similarity and by size.

The publication's Table 1 on small networks and a reduced budget, which stands beside every figure. All methods train on
the same images with the same loop; those that do not search train for as many more epochs as the search took. Every
finished run is kept in OUT/runs.csv: the same command goes on where it stopped, a search within itself too.

    python bench/experiments/assemble_cifar10.py                two CPU cores, under an hour
    python bench/experiments/assemble_cifar10.py --device cuda --images 50000 --epochs 30 --out OTHER
    python bench/experiments/assemble_cifar10.py --report-only  tables and plot again from runs.csv
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from assemble_sources import NAMES, source
from cifar10 import Normalize, read
from cifar_resnet import MEAN, STD
from markdown import table
from provenance import ROOT, commit
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import pyassemble as pa
from pyassemble.assemble.assembly_network import AssemblyNetwork
from pyassemble.assemble.partition import PartitionNetwork
from pyassemble.atomic import replacing
from pyassemble.training.metrics import measure_cost, measure_quality

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS = 4
POOL = 300
"""Assemblies that the choices by chance, similarity and size are made from."""

Path_ = tuple[pa.Block, ...]


@dataclass(frozen=True)
class Conditions:
    """What all runs share."""

    images: int
    test_images: int
    search_epochs: int
    epochs: int
    source_images: int
    source_epochs: int
    score_images: int
    rounds: int
    selection_images: int
    batch_size: int
    learning_rate: float
    precision: str
    device: str


@dataclass(frozen=True)
class Row:
    """One trained network."""

    method: str
    seed: int
    accuracy: float
    auroc: float
    trained_parameters: int
    parameters: int
    flops: int
    search_seconds: float
    training_seconds: float
    score: float
    blocks: str
    conditions: str
    torch: str
    commit: str


class Runs:
    """The finished runs, appended one at a time and atomically."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[Row]()
        if path.exists():
            readers: dict[str, Any] = {"str": str, "int": int, "float": float}
            with path.open(newline="") as file:
                for record in csv.DictReader(file):
                    self.rows.append(Row(**{f.name: readers[str(f.type)](record[f.name]) for f in fields(Row)}))

    def append(self, row: Row) -> None:
        self.rows.append(row)
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def has(self, method: str, seed: int) -> bool:
        return any((row.method, row.seed) == (method, seed) for row in self.rows)


class Experiment:
    """The repository, the data, and the methods."""

    def __init__(self, conditions: Conditions, data: Path, out: Path) -> None:
        self.conditions, self.out = conditions, out
        device, normalize = torch.device(conditions.device), Normalize(MEAN, STD)
        self.device = device
        networks = {
            name: source(name, data, out / "weights", images=conditions.source_images, epochs=conditions.source_epochs)
            for name in NAMES
        }
        self.repository = pa.Repository(networks, torch.zeros(2, 3, 32, 32), device=device)
        train = read(data / "cifar10", "train").first(conditions.images)
        test = read(data / "cifar10", "test").first(conditions.test_images)
        self.train = normalize(train.pixels), train.labels
        self.test = normalize(test.pixels), test.labels

    def methods(self) -> dict[str, Callable[[int], Row]]:
        """By name, what runs it with a seed."""
        found: dict[str, Callable[[int], Row]] = {}
        found["PA-DNN"] = lambda seed: self._searched("validation", "stitches", seed)
        found["PA-DNN, full-train"] = lambda seed: self._searched("validation", "full", seed)
        found["PA-DNN, by score"] = lambda seed: self._searched("score", "stitches", seed)
        for name, choose in (("random", self._random), ("CKA", self._most_similar), ("size", self._largest)):
            found[f"assembly by {name}"] = lambda seed, choose=choose: self._chosen(choose, seed)
        for name in self.repository.names:
            found[f"{name}, all"] = lambda seed, name=name: self._source(name, "full", seed)
            found[f"{name}, head"] = lambda seed, name=name: self._source(name, "stitches", seed)
        return found

    # -- Methods ------------------------------------------------------------------------------------------------------

    def _source(self, name: str, mode: str, seed: int) -> Row:
        blocks = [pa.Block(name, 0, len(self.repository[name]) - 1)]
        assembly = pa.Assembly.compose(self.repository, blocks, 10, seed=seed)
        return self._trained(assembly, mode, seed, self.conditions.epochs + self.conditions.search_epochs, 0.0)

    def _searched(self, select: str, mode: str, seed: int) -> Row:
        c = self.conditions
        checkpoint = self.out / "searches" / f"{seed}"
        clock = checkpoint.with_suffix(".seconds")
        start = time.perf_counter()
        assembly = pa.assemble(
            self.repository,
            self.train,
            num_classes=10,
            blocks=BLOCKS,
            epochs=c.search_epochs,
            select=select,
            seed=seed,
            checkpoint=checkpoint,
            settings=pa.SearchSettings(
                batch_size=c.batch_size,
                rounds=c.rounds,
                score_images=c.score_images,
                selection_images=c.selection_images,
            ),
            mixed_precision=c.precision,
        )
        if not clock.exists():  # the other selections read the search that the first one made
            clock.write_text(str(time.perf_counter() - start))
        return self._trained(assembly, mode, seed, c.epochs, float(clock.read_text()))

    def _chosen(self, choose: Callable[[list[Path_], int], Path_], seed: int) -> Row:
        start = time.perf_counter()
        path = choose(self._pool(seed), seed)
        took = time.perf_counter() - start
        assembly = pa.Assembly.compose(self.repository, path, 10, seed=seed)
        return self._trained(assembly, "stitches", seed, self.conditions.epochs + self.conditions.search_epochs, took)

    def _trained(self, assembly: pa.Assembly, mode: str, seed: int, epochs: int, search_seconds: float) -> Row:
        value = pa.score(assembly, self.train[0][: self.conditions.score_images], seed=seed)
        entries = assembly.finetune(
            self.train,
            epochs=epochs,
            mode=mode,
            learning_rate=self.conditions.learning_rate,
            batch_size=self.conditions.batch_size,
            seed=seed,
            mixed_precision=self.conditions.precision,
            progress=False,
        )
        images, labels = self.test
        starts = range(0, len(labels), 250)
        batches = [(images[i : i + 250].to(self.device), labels[i : i + 250].to(self.device)) for i in starts]
        quality = measure_quality(assembly, batches, 10)
        cost = measure_cost(assembly, images[:1].to(self.device))
        return Row(
            method="",
            seed=seed,
            accuracy=quality.accuracy,
            auroc=quality.auroc,
            trained_parameters=cost.total if mode == "full" else cost.trainable,
            parameters=cost.total,
            flops=cost.flops,
            search_seconds=search_seconds,
            training_seconds=sum(entry["seconds"] for entry in entries),
            score=value,
            blocks=" ".join(f"{b.network}[{b.first}-{b.last}]" for b in assembly.recipe.blocks),
            conditions=repr(self.conditions),
            torch=torch.__version__,
            commit=commit(),
        )

    # -- Choices ------------------------------------------------------------------------------------------------------

    def _pool(self, seed: int) -> list[Path_]:
        """Assemblies of at least two sources: uniform cuts, a uniform network for each block."""
        names = self.repository.names
        net = AssemblyNetwork(self.repository, 10, blocks=BLOCKS, seed=seed)
        cut_points = {name: len(self.repository[name]) - 1 for name in names}
        policy, generator = PartitionNetwork(1, cut_points, cuts=BLOCKS - 1), torch.Generator().manual_seed(seed)
        logits, found = policy(torch.zeros(1, 1)), list[Path_]()
        while len(found) < POOL:
            choices = torch.randint(len(names), (BLOCKS,), generator=generator).tolist()
            path = net.path(policy.sample(logits, generator=generator), tuple(choices))
            if len({block.network for block in path}) > 1:
                found.append(path)
        return found

    def _random(self, pool: list[Path_], seed: int) -> Path_:
        return pool[0]

    def _largest(self, pool: list[Path_], seed: int) -> Path_:
        net = AssemblyNetwork(self.repository, 10, blocks=BLOCKS, seed=seed)
        return max(pool, key=net.parameter_count)

    @torch.no_grad()
    def _most_similar(self, pool: list[Path_], seed: int) -> Path_:
        """DeRy's criterion: what a block is given resembles what its own network would give it (linear CKA)."""
        images = self.train[0][:256].to(self.device)
        grams: dict[tuple[str, int], Tensor] = {}
        for name in self.repository.names:
            x = images
            for i, segment in enumerate(self.repository[name].segments):
                x = segment(x)
                features = F.adaptive_avg_pool2d(x, 4).flatten(1)
                features = features - features.mean(0)
                gram = features @ features.T
                grams[name, i] = gram / gram.norm()

        def similarity(path: Path_) -> float:
            joints = [
                float((grams[a.network, a.last] * grams[b.network, b.first - 1]).sum())
                for a, b in pairwise(path)
                if a.network != b.network or b.first != a.last + 1
            ]
            return sum(joints) / len(joints)

        return max(pool, key=similarity)


# -- Report ------------------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> str:
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        runs = [row for row in rows if row.method == method]
        lines.append(
            [
                method,
                _mean(runs, "accuracy", 100, "{:.1f} %"),
                _mean(runs, "auroc", 1, "{:.3f}"),
                _mean(runs, "trained_parameters", 1e-3, "{:.0f} k"),
                _mean(runs, "parameters", 1e-3, "{:.0f} k"),
                _mean(runs, "flops", 1e-6, "{:.0f} M"),
                _mean(runs, "search_seconds", 1, "{:.0f} s"),
                _mean(runs, "training_seconds", 1, "{:.0f} s"),
                str(len(runs)),
            ]
        )
    lines.sort(key=lambda line: -float(line[1].split()[0]))
    heads = [row for row in rows if row.method.endswith(", head")]
    best = {seed: max(r.accuracy for r in heads if r.seed == seed) for seed in {r.seed for r in heads}}
    parts = [
        "# Assemblies of small networks on CIFAR-10",
        table(["method", "accuracy", "AUROC", "trained", "in all", "FLOPs", "search", "training", "seeds"], lines),
        "Means over seeds, in brackets the lowest and highest where there are several. *head*: only a new head is "
        "trained; *all*: everything. Best head of each seed: "
        f"{100 * statistics.mean(best.values()):.1f} % on average."
        if best
        else "",
        "The four ResNets were trained on lossless CIFAR-10 by others: they know this task, so that a new head for one "
        "of them is a strong start, which the publication's sources (ImageNet) did not have.",
        f"Conditions: {rows[-1].conditions}; torch {rows[-1].torch}, commit {rows[-1].commit}. "
        "Times are from a machine that did other work beside.",
        "## The assemblies",
        table(
            ["method", "seed", "accuracy", "score", "blocks"],
            [
                [r.method, str(r.seed), f"{100 * r.accuracy:.1f} %", f"{r.score:.2f}", r.blocks]
                for r in rows
                if "PA-DNN" in r.method or "assembly" in r.method
            ],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _mean(runs: list[Row], name: str, factor: float, form: str) -> str:
    values = [factor * getattr(row, name) for row in runs]
    text = form.format(statistics.mean(values))
    if len(values) > 1 and name == "accuracy":
        text += f" [{min(values):.1f}, {max(values):.1f}]"
    return text


def plot(rows: list[Row], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kinds: dict[str, Callable[[Row], bool]] = {
        "a source, everything trained": lambda r: r.method.endswith(", all"),
        "a source, new head": lambda r: r.method.endswith(", head"),
        "assembly by chance, similarity, size": lambda r: r.method.startswith("assembly"),
        "PA-DNN": lambda r: r.method == "PA-DNN",
        "PA-DNN, chosen by score": lambda r: r.method == "PA-DNN, by score",
        "PA-DNN, full-train": lambda r: r.method == "PA-DNN, full-train",
    }
    for number, (label, belongs) in enumerate(kinds.items()):
        chosen = [row for row in rows if belongs(row)]
        points = [row.trained_parameters for row in chosen], [100 * row.accuracy for row in chosen]
        axes.scatter(*points, s=30, color=f"C{number}", label=label, alpha=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def write_report(rows: list[Row], out: Path, console: Console) -> None:
    if not rows:
        console.print("no run is finished yet")
        return
    text = summary(rows)
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    plot(rows, out / "plot.png")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data")
    add("--out", type=Path, default=ROOT / "bench/results/assemble_cifar10")
    add("--images", type=int, default=2000)
    add("--test-images", type=int, default=2000)
    add("--search-epochs", type=int, default=3)
    add("--epochs", type=int, default=2)
    add("--source-images", type=int, default=10000)
    add("--source-epochs", type=int, default=3)
    add("--score-images", type=int, default=256)
    add("--rounds", type=int, default=4)
    add("--selection-images", type=int, default=512)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=1e-3, help="of AdamW, in every training after a search")
    add("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    add("--seeds", type=int, default=2)
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--report-only", action="store_true")
    options = parser.parse_args(argv)
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = Runs(options.out / "runs.csv")
    if options.report_only:
        write_report(runs.rows, options.out, console)
        return 0
    torch.set_num_threads(options.threads)
    conditions = Conditions(**{field.name: getattr(options, field.name) for field in fields(Conditions)})
    if any(row.conditions != repr(conditions) for row in runs.rows):
        raise SystemExit(f"{runs.path} holds runs under other conditions; name another --out")
    try:
        experiment = Experiment(conditions, options.data, options.out)
        for seed in range(options.seeds):
            for method, run in experiment.methods().items():
                if runs.has(method, seed):
                    continue
                row = replace(run(seed), method=method)
                runs.append(row)
                console.print(
                    f"{method}, seed {seed}: {100 * row.accuracy:.1f} %, {row.training_seconds:.0f} s training",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    except KeyboardInterrupt:
        console.print(f"stopped; finished runs are in {runs.path}, the same command goes on from there")
        return 130
    write_report(runs.rows, options.out, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
