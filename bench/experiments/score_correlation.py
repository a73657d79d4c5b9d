"""Does the training-free score order networks by accuracy, and does it order them better than their size?

The publication's Figure 8, with the comparison that it leaves out. Cells are drawn uniformly from a search space
(cell_networks.py); each network is scored at several random initializations (PA-DNN, eq. 4, on training images), then
trained for a few epochs and tested. Every finished network is kept in OUT/networks.csv: the same command goes on where
it stopped.

    python bench/experiments/score_correlation.py                  one CPU core, about half an hour
    python bench/experiments/score_correlation.py --device cuda --cells 200 --images 50000 --epochs 12 --out OTHER
    python bench/experiments/score_correlation.py --report-only    table and plot again from networks.csv
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from cell_networks import EDGES, Cell, CellNetwork, sampled_cells
from cifar10 import Images, Normalize, read
from cifar_resnet import MEAN, STD
from finished_rows import FinishedRows
from markdown import table
from provenance import ROOT, commit, device_name
from rich.console import Console
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.training import evaluate, fit, random_flip

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DRAWS = 2000
LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class Conditions:
    """What every network of one run of the experiment shares."""

    cells: int
    images: int
    test_images: int
    epochs: int
    channels: int
    score_images: int
    initializations: int
    batch_size: int
    seed: int
    alpha: float
    device: str


@dataclass(frozen=True)
class Row:
    """One network: what was known before training, and how it did."""

    cell: str
    parameters: int
    flops: int
    score: float
    """Mean over the initializations."""
    score_std: float
    """Deviation over the initializations."""
    accuracy: float
    loss: float
    score_seconds: float
    training_seconds: float
    conditions: str
    torch: str
    commit: str


def network(cell: Cell, conditions: Conditions, seed: int) -> CellNetwork:
    torch.manual_seed(seed)
    net = CellNetwork(cell, channels=conditions.channels)
    return net.to(conditions.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def scores(cell: Cell, conditions: Conditions, images: torch.Tensor) -> list[float]:
    """One score for each initialization, all of them over the same images and perturbations."""
    networks = [network(cell, conditions, conditions.seed + i) for i in range(conditions.initializations)]
    return pa.score_batch(networks, images, alpha=conditions.alpha, seed=conditions.seed, batch_size=128).tolist()


def measured(cell: Cell, conditions: Conditions, train: Images, test: Images, normalize: Normalize) -> Row:
    start = time.perf_counter()
    found = scores(cell, conditions, normalize(train.pixels[: conditions.score_images]))
    scored = time.perf_counter()
    net = network(cell, conditions, conditions.seed)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(normalize(train.pixels[:1]))
    results = fit(
        net.train(),
        train.pixels,
        train.labels,
        epochs=conditions.epochs,
        batch_size=conditions.batch_size,
        learning_rate=LEARNING_RATE,
        seed=conditions.seed,
        autocast=torch.bfloat16,
        prepare=normalize,
        augment=random_flip,
    )
    return Row(
        cell=" ".join(cell),
        parameters=sum(p.numel() for p in net.parameters()),
        flops=int(counter.get_total_flops()),
        score=float(np.mean(found)),
        score_std=float(np.std(found)),
        accuracy=evaluate(net, test.pixels, test.labels, prepare=normalize),
        loss=results[-1].loss,
        score_seconds=scored - start,
        training_seconds=sum(result.seconds for result in results),
        conditions=repr(conditions),
        torch=torch.__version__,
        commit=commit(),
    )


# -- Report ------------------------------------------------------------------------------------------------------------

RANKINGS: dict[str, Callable[[Row], float]] = {
    "score (eq. 4)": lambda row: row.score,
    "parameters": lambda row: row.parameters,
    "FLOPs": lambda row: row.flops,
}


def interval(values: Floats, accuracy: Floats, statistic: Callable[[Floats, Floats], float]) -> tuple[float, float]:
    """95 % percentile bootstrap over networks."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(len(values), size=len(values)) for _ in range(DRAWS)]
    found = [statistic(values[d], accuracy[d]) for d in drawn]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def kendall(a: Floats, b: Floats) -> float:
    return float(stats.kendalltau(a, b).statistic)


def spearman(a: Floats, b: Floats) -> float:
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else math.nan


def given_size(values: Floats, accuracy: Floats, size: Floats) -> float:
    """Kendall's partial tau: what the ranking says of accuracy beyond what size says."""
    va, vs, sa = kendall(values, accuracy), kendall(values, size), kendall(size, accuracy)
    left = (1 - vs**2) * (1 - sa**2)
    return (va - vs * sa) / math.sqrt(left) if left > 1e-9 else math.nan


def summary(rows: Sequence[Row]) -> str:
    accuracy = np.array([row.accuracy for row in rows])
    sizes = np.array([row.parameters for row in rows], dtype=np.float64)
    lines = []
    for name in ("score (eq. 4)", "parameters", "FLOPs"):
        values = np.array([RANKINGS[name](row) for row in rows], dtype=np.float64)
        tau, rho = kendall(values, accuracy), spearman(values, accuracy)
        first = accuracy[values == values.max()].mean()
        beyond = given_size(values, accuracy, sizes)
        partial = "—" if name == "parameters" or math.isnan(beyond) else f"{beyond:+.2f}"
        cells = [name]
        for value, statistic in ((tau, kendall), (rho, spearman)):
            low, high = interval(values, accuracy, statistic)
            cells.append(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append([*cells, partial, f"{100 * first:.1f} %"])
    score = np.array([row.score for row in rows])
    difference = _difference(score, sizes, accuracy)
    best, mean = 100 * accuracy.max(), 100 * accuracy.mean()
    noise = np.mean([row.score_std for row in rows])
    parts = [
        "# The training-free score against accuracy",
        f"{len(rows)} networks; accuracy from {100 * accuracy.min():.1f} to {best:.1f} %, mean {mean:.1f} %.",
        table(["ranking", "Kendall's tau", "Spearman's rho", "tau given size", "accuracy of its first choice"], lines),
        "Intervals: 95 %, bootstrap over networks. *tau given size*: partial correlation, parameter count held fixed.",
        f"tau of the score minus tau of the parameter count: {difference}.",
        f"tau of the score with the parameter count: {kendall(score, sizes):+.2f}. Score over networks: standard "
        f"deviation {score.std():.2f}; over initializations of one network: {noise:.2f}.",
        f"Conditions: {rows[-1].conditions}; torch {rows[-1].torch}, commit {rows[-1].commit}; scoring a network took "
        f"{np.mean([r.score_seconds for r in rows]):.1f} s, training it "
        f"{np.mean([r.training_seconds for r in rows]):.1f} s on average.",
    ]
    return "\n\n".join(parts) + "\n"


def _difference(score: Floats, sizes: Floats, accuracy: Floats) -> str:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        d = generator.integers(len(score), size=len(score))
        found.append(kendall(score[d], accuracy[d]) - kendall(sizes[d], accuracy[d]))
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return f"{kendall(score, accuracy) - kendall(sizes, accuracy):+.2f} [{low:+.2f}, {high:+.2f}]"


def plot(rows: Sequence[Row], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy = np.array([100 * row.accuracy for row in rows])
    panels = figure.subplots(1, 2, sharey=True)
    convolutions = np.array([sum(name.startswith("conv") for name in row.cell.split()) for row in rows])
    for panel, name in zip(panels, ("score (eq. 4)", "parameters"), strict=True):
        values = np.array([RANKINGS[name](row) for row in rows], dtype=np.float64)
        points = panel.scatter(values, accuracy, c=convolutions, cmap="viridis", s=22)
        panel.set_xlabel(name)
        panel.set_title(f"Kendall's tau {kendall(values, accuracy):+.2f}", fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("test accuracy after training, %")
    figure.colorbar(points, ax=panels, label=f"convolutions among the {len(EDGES)} edges")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def write_report(rows: Sequence[Row], out: Path, console: Console) -> None:
    if len(rows) < 3:
        console.print(f"{len(rows)} networks are finished; a report needs three")
        return
    text = summary(rows)
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    plot(rows, out / "plot.png")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data/cifar10")
    add("--out", type=Path, default=ROOT / "bench/results/score_correlation")
    add("--cells", type=int, default=60)
    add("--images", type=int, default=5000)
    add("--test-images", type=int, default=2000)
    add("--epochs", type=int, default=2)
    add("--channels", type=int, default=8)
    add("--score-images", type=int, default=1024)
    add("--initializations", type=int, default=2)
    add("--batch-size", type=int, default=64)
    add("--alpha", type=float, default=0.01)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--threads", type=int, default=1)
    add("--report-only", action="store_true")
    options = parser.parse_args(argv)
    console = Console()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = FinishedRows(options.out / "networks.csv", Row)
    if options.report_only:
        write_report(kept.rows, options.out, console)
        return 0
    torch.set_num_threads(options.threads)
    conditions = Conditions(**{field.name: getattr(options, field.name) for field in fields(Conditions)})
    kept.refuse_others(repr(conditions))
    device = torch.device(options.device)
    train = read(options.data, "train", options.images).to(device)
    test = read(options.data, "test", options.test_images).to(device)
    normalize = Normalize(MEAN, STD)
    done = {row.cell for row in kept.rows}
    console.print(f"{options.cells} networks on {device_name(device)}, {len(done)} of them done before")
    try:
        for cell in sampled_cells(options.cells, options.seed):
            if " ".join(cell) in done:
                continue
            row = measured(cell, conditions, train, test, normalize)
            kept.append(row)
            console.print(
                f"[{len(kept.rows)}/{options.cells}] {row.cell}: score {row.score:.2f}, {row.parameters} parameters, "
                f"{100 * row.accuracy:.1f} %, {row.training_seconds:.0f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    except KeyboardInterrupt:
        console.print(f"stopped; finished networks are in {kept.path}, the same command goes on from there")
        return 130
    write_report(kept.rows, options.out, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
