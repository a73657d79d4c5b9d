"""Why the training-free score does not order networks by accuracy here, and whether a variant of it does.

Takes the networks and accuracies that score_correlation.py left in its folder, and scores the same networks in other
ways (VARIANTS), with the normalization layers as they are initialized and with their statistics taken from images; no
network is trained, but for those that --repeats asks for: these are trained again with other seeds, for how well an
accuracy repeats itself. Every finished network is kept in OUT/variants.csv and OUT/repeats.csv: the same command goes
on where it stopped.

    python bench/experiments/score_variants.py --repeats 12
    python bench/experiments/score_variants.py --report-only     table again from the files
"""

from __future__ import annotations

import argparse
import ast
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import score_correlation
import torch
from cell_networks import CellNetwork
from cifar10 import Images, Normalize, read
from cifar_resnet import MEAN, STD
from finished_rows import FinishedRows
from markdown import table
from provenance import ROOT, commit
from rich.console import Console
from score_correlation import given_size, interval, kendall
from torch import Tensor, nn

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.kernels import perturb
from pyassemble.training import evaluate, fit, random_flip

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIANTS = {
    "published": "log mean ‖f(x) − f(x + αε)‖ (eq. 4)",
    "noise seed": "the same with another ε: how well the score repeats itself",
    "alpha": "the same with α ten times as large",
    "centered": "the same with ε ~ U(−½, ½): no change of brightness",
    "relative": "log mean ‖f(x) − f(x + αε)‖ / ‖f(x)‖: the network's gain divided out",
    "spread": "the change against the features' spread over images, ‖f(x) − mean f‖",
    "norm": "log mean ‖f(x)‖: the output's scale alone, no perturbation",
    "rank": "effective rank of the features over images, no perturbation",
}
STATISTICS = ("initial", "images", "batch")
ALPHA = 0.01


@dataclass(frozen=True)
class Row:
    """One variant for one network at one initialization."""

    cell: str
    initialization: int
    statistics: str
    variant: str
    value: float
    conditions: str
    commit: str


@dataclass(frozen=True)
class Repeat:
    """One network trained again, from another initialization in another order."""

    cell: str
    seed: int
    accuracy: float
    conditions: str
    commit: str


@torch.no_grad()
def take_statistics(network: nn.Module, images: Tensor) -> None:
    """Gives batch normalization the statistics of the images in place of 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    network.train()(images)
    network.eval()


@torch.no_grad()
def variants(network: CellNetwork, images: Tensor) -> dict[str, float]:
    """Every variant's value for one network, in eval mode."""

    def features(x: Tensor) -> Tensor:
        return network.features(x).flatten(1).double()

    def moved(alpha: float, seed: int, shift: float = 0.0) -> Tensor:
        return features(perturb(images, alpha, seed=seed) - shift)

    clean = features(images)
    change = (clean - moved(ALPHA, 0)).norm(dim=1)
    centered = clean - clean.mean(0)
    gram = centered @ centered.T
    return {
        "published": _log(change.mean()),
        "noise seed": _log((clean - moved(ALPHA, 1)).norm(dim=1).mean()),
        "alpha": _log((clean - moved(10 * ALPHA, 0)).norm(dim=1).mean()),
        "centered": _log((clean - moved(ALPHA, 0, ALPHA / 2)).norm(dim=1).mean()),
        "relative": _log((change / clean.norm(dim=1)).mean()),
        "spread": _log(change.mean() / centered.norm(dim=1).mean()),
        "norm": _log(clean.norm(dim=1).mean()),
        "rank": float(gram.trace() ** 2 / gram.square().sum()),
    }


def values_by(statistics: str, network: CellNetwork, images: Tensor) -> dict[str, float]:
    """Every variant's value under some statistics; under those of each batch, the package's own option."""
    if statistics == "batch":
        value = pa.score(network.body, images, alpha=ALPHA, seed=0, batch_size=len(images), statistics="batch")
        return {"published": value}
    if statistics == "images":
        take_statistics(network, images)
    return variants(network, images)


def _log(value: Tensor) -> float:
    return math.log(float(value)) if float(value) > 0 else -math.inf


def score_all(rows: FinishedRows[Row], cells: Sequence[str], images: Tensor, options: argparse.Namespace) -> None:
    done = {(row.cell, row.statistics) for row in rows.rows}
    for cell in cells:
        found = []
        for seed in range(options.initializations):
            for statistics in STATISTICS:
                if (cell, statistics) in done:
                    continue
                torch.manual_seed(seed)
                network = CellNetwork(tuple(cell.split()), channels=8).eval()
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                for name, value in values_by(statistics, network, images).items():
                    found.append(Row(cell, seed, statistics, name, value, _conditions(options), commit()))
        rows.extend(found)


def train_again(repeats: FinishedRows[Repeat], done: Sequence[score_correlation.Row], data: Path, count: int) -> None:
    """The first networks trained again as before but for the seed."""
    call = ast.parse(done[0].conditions, mode="eval").body
    assert isinstance(call, ast.Call)
    values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    conditions = score_correlation.Conditions(**values)
    train = read(data, "train", conditions.images)
    test = read(data, "test", conditions.test_images)
    finished = {(row.cell, row.seed) for row in repeats.rows}
    for row in done[:count]:
        if (row.cell, 1) not in finished:
            accuracy = _trained(row.cell, conditions, train, test, 1)
            repeats.append(Repeat(row.cell, 1, accuracy, row.conditions, commit()))


def _trained(cell: str, conditions: score_correlation.Conditions, train: Images, test: Images, seed: int) -> float:
    network = score_correlation.network(tuple(cell.split()), conditions, seed)
    normalize = Normalize(MEAN, STD)
    fit(
        network.train(),
        train.pixels,
        train.labels,
        epochs=conditions.epochs,
        batch_size=conditions.batch_size,
        learning_rate=score_correlation.LEARNING_RATE,
        seed=seed,
        autocast=torch.bfloat16,
        prepare=normalize,
        augment=random_flip,
    )
    return evaluate(network, test.pixels, test.labels, prepare=normalize)


def summary(rows: Sequence[Row], repeats: Sequence[Repeat], networks: Sequence[score_correlation.Row]) -> str:
    cells = {row.cell for row in rows}
    known = [network for network in networks if network.cell in cells]
    accuracy = np.array([network.accuracy for network in known])
    sizes = np.array([float(network.parameters) for network in known])
    values: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows:
        values.setdefault((row.statistics, row.variant), [])
    by: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        by.setdefault((row.statistics, row.variant, row.cell), []).append(row.value)
    lines = []
    for statistics, variant in values:
        if any((statistics, variant, network.cell) not in by for network in known):
            continue  # not finished yet
        table_ = np.array([by[statistics, variant, network.cell] for network in known])
        mean = table_.mean(1)
        low, high = interval(mean, accuracy, kendall)
        norms = [by[statistics, "norm", network.cell] for network in known if (statistics, "norm") in values]
        within = float(table_.var(axis=1, ddof=1).mean()) / table_.shape[1] if table_.shape[1] > 1 else math.nan
        share = max(0.0, 1 - within / float(mean.var(ddof=1)))
        lines.append(
            [
                variant,
                statistics,
                f"{kendall(mean, accuracy):+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{given_size(mean, accuracy, sizes):+.2f}",
                f"{kendall(mean, sizes):+.2f}",
                f"{kendall(mean, np.array(norms).mean(1)):+.2f}" if norms else "—",
                f"{share:.2f}",
            ]
        )
    low, high = interval(sizes, accuracy, kendall)
    lines.append(["parameters", "", f"{kendall(sizes, accuracy):+.2f} [{low:+.2f}, {high:+.2f}]", "—", "", "", ""])
    header = [
        "variant",
        "statistics",
        "tau with accuracy",
        "tau given size",
        "tau with size",
        "with norm",
        "reliability",
    ]
    parts = [
        "# Variants of the training-free score",
        f"{len(known)} networks of score_correlation.py, their accuracies as they were.",
        table(header, lines),
        "\n".join(f"- *{name}*: {words}" for name, words in VARIANTS.items()),
        "*statistics*: batch normalization as initialized (mean 0, variance 1, so that it does nothing), with the "
        "statistics of the images from one pass, or with those of each batch, images and perturbed twins together, "
        "which is the package's `statistics=\"batch\"`. *with norm*: Kendall's tau with the output's scale. "
        "*reliability*: share of the variance over networks that is not chance of initialization. Intervals: 95 %, "
        "bootstrap over networks.",
        _noise(known, repeats),
        f"Conditions: {rows[-1].conditions}; commit {rows[-1].commit}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _noise(networks: Sequence[score_correlation.Row], repeats: Sequence[Repeat]) -> str:
    """How much of the accuracies' spread over networks is not chance."""
    accuracy = np.array([network.accuracy for network in networks])
    spread = accuracy.var(ddof=1)
    tested = int(networks[0].conditions.split("test_images=")[1].split(",")[0])
    drawn = float((accuracy * (1 - accuracy)).mean()) / tested
    text = (
        f"Standard deviation of the accuracies over networks {100 * math.sqrt(spread):.2f} points; the draw of "
        f"{tested} test images alone gives at most {100 * math.sqrt(drawn):.2f}."
    )
    again = {repeat.cell: repeat.accuracy for repeat in repeats}
    pairs = [(network.accuracy, again[network.cell]) for network in networks if network.cell in again]
    if len(pairs) < 3:
        return text
    first, second = np.array(pairs).T
    chance = float(((first - second) ** 2).mean()) / 2
    low, high = interval(first, second, kendall)
    return (
        f"{text} {len(pairs)} networks trained again with another seed: the two accuracies have tau "
        f"{kendall(first, second):+.2f} [{low:+.2f}, {high:+.2f}], and chance of training has a standard deviation of "
        f"{100 * math.sqrt(chance):.2f} points, so that about {100 * max(0.0, 1 - chance / spread):.0f} % of the "
        "variance over networks is the networks' own."
    )


def _conditions(options: argparse.Namespace) -> str:
    return f"{options.images} images, {options.initializations} initializations, α = {ALPHA}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data/cifar10")
    add("--out", type=Path, default=ROOT / "bench/results/score_correlation")
    add("--images", type=int, default=96)
    add("--initializations", type=int, default=2)
    add("--repeats", type=int, default=0, help="networks to train again")
    add("--threads", type=int, default=1)
    add("--report-only", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    networks = FinishedRows(options.out / "networks.csv", score_correlation.Row).rows
    if not networks:
        raise SystemExit(f"{options.out / 'networks.csv'} holds no networks; run score_correlation.py first")
    rows = FinishedRows(options.out / "variants.csv", Row)
    repeats = FinishedRows(options.out / "repeats.csv", Repeat)
    console = Console()
    if not options.report_only:
        rows.refuse_others(_conditions(options))
        train = read(options.data, "train", options.images)
        images = Normalize(MEAN, STD)(train.pixels).contiguous(memory_format=torch.channels_last)
        score_all(rows, [network.cell for network in networks], images, options)
        train_again(repeats, networks, options.data, options.repeats)
    if not rows.rows:
        console.print("no network is scored yet")
        return 0
    text = summary(rows.rows, repeats.rows, networks)
    with replacing(options.out / "variants.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
