r"""Assemblies on CIFAR-10 against their sources, random assemblies, and choices by similarity and by size.

The publication's Table 1 on small networks and a reduced budget, which stands beside every figure. All methods train on
the same images with the same loop; those that do not search train for as many more epochs as the search took. Every
finished run is kept in OUT/runs.csv: the same command goes on where it stopped, a search within itself too.

    python bench/experiments/assemble_cifar10.py                two CPU cores, about an hour
    python bench/experiments/assemble_cifar10.py --device cuda --images 50000 --epochs 30 --learning-rate 1e-3 \
        --full-learning-rate 1e-4 --mixup 0.8 --cutmix 1 --start random --out OTHER
    python bench/experiments/assemble_cifar10.py --report-only  tables and pictures again from runs.csv and searches.csv
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import fields, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from assemble_report import write_report
from assemble_runs import Conditions, Row, SearchEpoch
from assemble_sources import NAMES, source
from cifar10 import Normalize, read
from cifar_resnet import MEAN, STD
from finished_rows import FinishedRows
from provenance import ROOT, commit
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import pyassemble as pa
from pyassemble.assemble.assembly_network import AssemblyNetwork
from pyassemble.assemble.finetuning import LEARNING_RATES
from pyassemble.assemble.head_start import initialize_head
from pyassemble.assemble.initialization import initialize_stitches
from pyassemble.assemble.partition import PartitionNetwork
from pyassemble.assemble.settings import STARTS
from pyassemble.training.metrics import measure_cost, measure_quality

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS = 4
POOL = 300
"""Assemblies that the choices by chance, similarity and size are made from."""

PUBLISHED, FITTED = "as published", "fitted"
FITTED_SETTINGS = {
    "start": "least_squares",
    "head": "fitted",
    "factor": "straight_through",
    "ways": "drawn",
    "reward": "validation",
}
"""Stitches and heads that begin fitted, all sources compared, and the policy rewarded for what is wanted."""

Path_ = tuple[pa.Block, ...]


class Experiment:
    """The repository, the data, and the methods."""

    def __init__(self, conditions: Conditions, data: Path, out: Path, searches: FinishedRows[SearchEpoch]) -> None:
        self.conditions, self.out, self.searches = conditions, out, searches
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
        epochs = self.conditions.epochs
        found["PA-DNN"] = lambda seed: self._searched(PUBLISHED, "validation", "stitches", seed, epochs)
        found["PA-DNN, full-train"] = lambda seed: self._searched(PUBLISHED, "validation", "full", seed, epochs)
        found["PA-DNN, by score"] = lambda seed: self._searched(PUBLISHED, "score", "stitches", seed, epochs)
        found["fitted PA-DNN, not trained further"] = lambda seed: self._searched(
            FITTED, "validation", "stitches", seed, 0
        )
        found["fitted PA-DNN"] = lambda seed: self._searched(FITTED, "validation", "stitches", seed, epochs)
        found["fitted PA-DNN, full-train"] = lambda seed: self._searched(FITTED, "validation", "full", seed, epochs)
        for name, choose in (("random", self._random), ("CKA", self._most_similar), ("size", self._largest)):
            found[f"assembly by {name}"] = lambda seed, choose=choose: self._chosen(choose, seed)
            found[f"fitted assembly by {name}"] = lambda seed, choose=choose: self._chosen(choose, seed, FITTED)
        found["assembly by random, random stitches"] = lambda seed: self._chosen(self._random, seed, "random")
        for name in self.repository.names:
            found[f"{name}, all"] = lambda seed, name=name: self._source(name, "full", seed)
            found[f"{name}, head"] = lambda seed, name=name: self._source(name, "stitches", seed)
        return found

    # -- Methods ------------------------------------------------------------------------------------------------------

    def _source(self, name: str, mode: str, seed: int) -> Row:
        blocks = [pa.Block(name, 0, len(self.repository[name]) - 1)]
        assembly = pa.Assembly.compose(self.repository, blocks, 10, seed=seed)
        epochs, rate = self.conditions.epochs + self.conditions.search_epochs, self._rate(mode, fitted=False)
        return self._trained(assembly, mode, seed, epochs, 0.0, rate)

    def _searched(self, search: str, select: str, mode: str, seed: int, epochs: int) -> Row:
        c = self.conditions
        checkpoint = self.out / "searches" / (f"{seed}" if search == PUBLISHED else f"{search}-{seed}")
        clock = checkpoint.with_suffix(".seconds")
        start = time.perf_counter()
        settings = pa.SearchSettings(
            batch_size=c.batch_size,
            rounds=c.rounds,
            score_images=c.score_images,
            selection_images=c.selection_images,
            weights_rate=c.learning_rate,
            mixup=c.mixup,
            cutmix=c.cutmix,
            start=c.start,
            start_images=c.start_images,
        )
        if search == FITTED:
            settings = replace(settings, weights_rate=LEARNING_RATES["stitches"], **FITTED_SETTINGS)
        assembly = pa.assemble(
            self.repository,
            self.train,
            num_classes=10,
            blocks=BLOCKS,
            epochs=c.search_epochs,
            select=select,
            seed=seed,
            checkpoint=checkpoint,
            settings=settings,
            mixed_precision=c.precision,
        )
        if not clock.exists():  # the other selections read the search that the first one made
            clock.write_text(str(time.perf_counter() - start))
        if not any((row.search, row.seed) == (search, seed) for row in self.searches.rows):
            self._note_search(assembly, search, seed)
        rate = self._rate(mode, fitted=search == FITTED)
        return self._trained(assembly, mode, seed, epochs, float(clock.read_text()), rate)

    def _rate(self, mode: str, *, fitted: bool) -> float:
        """What begins fitted takes the publication's rates; a random head learns too little at them in few epochs."""
        c = self.conditions
        if fitted:
            return LEARNING_RATES[mode]
        return c.full_learning_rate if mode == "full" else c.learning_rate

    def _note_search(self, assembly: pa.Assembly, search: str, seed: int) -> None:
        names = {field.name for field in fields(SearchEpoch)}
        for entry in assembly.history:
            if entry["kind"] == "epoch":
                values = {name: value for name, value in entry.items() if name in names}
                lists = {name: " ".join(str(value) for value in entry[name]) for name in ("scores", "parameters")}
                row = SearchEpoch(**values | lists, search=search, seed=seed, conditions=repr(self.conditions))
                self.searches.append(row)

    def _chosen(self, choose: Callable[[list[Path_], int], Path_], seed: int, start: str | None = None) -> Row:
        """Stitches and head as the conditions say, random stitches, or both fitted."""
        c = self.conditions
        clock = time.perf_counter()
        path = choose(self._pool(seed), seed)
        assembly = pa.Assembly.compose(self.repository, path, 10, seed=seed)
        images, labels = self.train[0][: c.start_images], self.train[1][: c.start_images]
        if start == FITTED or (start or c.start) == "least_squares":
            initialize_stitches(assembly, self.repository, images)
        if start == FITTED:
            initialize_head(assembly, images, labels)
        took = time.perf_counter() - clock
        rate = self._rate("stitches", fitted=start == FITTED)
        return self._trained(assembly, "stitches", seed, c.epochs + c.search_epochs, took, rate)

    def _trained(
        self, assembly: pa.Assembly, mode: str, seed: int, epochs: int, search_seconds: float, learning_rate: float
    ) -> Row:
        c = self.conditions
        value = pa.score(assembly, self.train[0][: c.score_images], seed=seed)
        images, labels = self.test
        # Test images are looked at after every epoch for the curve alone: nothing is chosen by them.
        entries = (
            assembly.finetune(
                self.train,
                validation=(images[: c.curve_images], labels[: c.curve_images]),
                epochs=epochs,
                mode=mode,
                learning_rate=learning_rate,
                batch_size=c.batch_size,
                seed=seed,
                mixup=c.mixup,
                cutmix=c.cutmix,
                mixed_precision=c.precision,
                progress=False,
            )
            if epochs
            else []
        )
        starts = range(0, len(labels), 250)
        batches = [(images[i : i + 250].to(self.device), labels[i : i + 250].to(self.device)) for i in starts]
        quality = measure_quality(assembly, batches, 10)
        seconds = list(accumulate(entry["seconds"] for entry in entries))
        curve = [
            [round(took, 3), entry["loss"], entry["validation"]["accuracy"]]
            for took, entry in zip(seconds, entries, strict=True)
        ]
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
            training_seconds=seconds[-1] if seconds else 0.0,
            score=value,
            blocks=" ".join(f"{b.network}[{b.first}-{b.last}]" for b in assembly.recipe.blocks),
            curve=json.dumps(curve),
            conditions=repr(c),
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data")
    add("--out", type=Path, default=ROOT / "bench/results/assemble_cifar10")
    add("--images", type=int, default=400)
    add("--test-images", type=int, default=500)
    add("--curve-images", type=int, default=200, help="test images for the accuracy after each epoch")
    add("--search-epochs", type=int, default=2)
    add("--epochs", type=int, default=2)
    add("--source-images", type=int, default=8000)
    add("--source-epochs", type=int, default=2)
    add("--score-images", type=int, default=128)
    add("--rounds", type=int, default=4)
    add("--selection-images", type=int, default=200)
    add("--batch-size", type=int, default=16)
    # Ten times the publication's rate undoes what least squares began.
    add("--learning-rate", type=float, default=2e-3, help="of AdamW for stitches and heads")
    add("--full-learning-rate", type=float, default=1e-3, help="of AdamW for everything")
    add("--mixup", type=float, default=0.0, help="the publication's 0.8 costs more epochs than two cores have")
    add("--cutmix", type=float, default=0.0, help="the publication's is 1")
    add("--start", default="least_squares", choices=STARTS, help="of stitches; the publication's are random")
    add("--start-images", type=int, default=64)
    parser.set_defaults(fitted=", ".join(FITTED_SETTINGS.values()))
    add("--precision", default="bf16", choices=("no", "bf16", "fp16"))
    add("--seeds", type=int, default=2)
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--report-only", action="store_true")
    options = parser.parse_args(argv)
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = FinishedRows(options.out / "runs.csv", Row)
    searches = FinishedRows(options.out / "searches.csv", SearchEpoch)
    if not options.report_only:
        torch.set_num_threads(options.threads)
        conditions = Conditions(**{field.name: getattr(options, field.name) for field in fields(Conditions)})
        runs.refuse_others(repr(conditions))
        searches.refuse_others(repr(conditions))
        try:
            _train(Experiment(conditions, options.data, options.out, searches), runs, options.seeds, console)
        except KeyboardInterrupt:
            console.print(f"stopped; finished runs are in {runs.path}, the same command goes on from there")
            return 130
    if not runs.rows:
        console.print("no run is finished yet")
        return 0
    text = write_report(runs.rows, searches.rows, options.out)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def _train(experiment: Experiment, runs: FinishedRows[Row], seeds: int, console: Console) -> None:
    """Every method that is not finished, seed by seed."""
    for seed in range(seeds):
        for method, run in experiment.methods().items():
            if any((row.method, row.seed) == (method, seed) for row in runs.rows):
                continue
            row = replace(run(seed), method=method)
            runs.append(row)
            console.print(
                f"{method}, seed {seed}: {100 * row.accuracy:.1f} %, {row.training_seconds:.0f} s training",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


if __name__ == "__main__":
    sys.exit(main())
