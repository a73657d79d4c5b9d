"""Tables, correlations and a plot from the runs of the transfer experiment."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from markdown import number, percent, table
from scipy import stats
from transfer_runs import RANDOM, Row, Run, RunFile

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from rich.console import Console

    Floats = NDArray[np.float64]

NAN = float("nan")
RESAMPLES = 2000
FEWEST_FOR_INTERVAL = 8
"""With fewer pairs, resampling says next to nothing about the uncertainty."""
REFERENCES = {
    # shared/data/README.md: the published code on 5 000 test images; before training with batch-norm buffers added.
    ("resnet20_cifar", RANDOM): (NAN, 0.483),
    ("resnet20_cifar", "resnet20_cifar"): (0.813, NAN),
    ("resnet20_cifar", "resnet56_cifar"): (NAN, 0.704),
    ("resnet32_cifar", "resnet20_cifar"): (0.367, 0.805),
}


@dataclass(frozen=True)
class Pair:
    """A source on a target in one scenario (or a target's random initialization), over its seeds."""

    section: str
    target: str
    source: str
    scenario: str
    seeds: int
    similarity: float
    directed: float
    coverage: float
    source_accuracy: float
    source_parameters: int
    target_parameters: int
    accuracies: Floats
    """(seeds, epochs + 1)"""
    effectiveness: Floats
    """(seeds, epochs + 1): accuracy divided by that of random initialization with the same seed."""
    time_ratio: float
    """Median over seeds: training time to random's final accuracy, divided by random's whole training time."""
    seconds: float
    """Training time of a whole run: epochs times the median epoch of all runs of this target."""

    @property
    def gain(self) -> float:
        """Effectiveness after the first epoch."""
        return float(self.effectiveness[:, 1].mean())


def pairs_of(file: RunFile) -> list[Pair]:
    """Gathers the seeds of every pair, in the order in which the pairs were run."""
    runs = file.runs()
    order = list(dict.fromkeys((row.section, row.target, row.source, row.scenario) for row in file.rows))
    pairs = []
    epoch_seconds = _epoch_seconds(runs)
    for key in order:
        members = [
            (run, rows) for run, rows in runs.items() if (run.section, run.target, run.source, run.scenario) == key
        ]
        first = members[0][1][0]
        accuracies = np.array([[row.accuracy for row in rows] for _, rows in members])
        baselines = [runs.get(run.baseline) for run, _ in members]
        base = np.array([[row.accuracy for row in b] if b else [NAN] * accuracies.shape[1] for b in baselines])
        ratios = [
            time_ratio(rows, b, epoch_seconds[key[:2]]) for (_, rows), b in zip(members, baselines, strict=True) if b
        ]
        pairs.append(
            Pair(
                *key,
                seeds=len(members),
                similarity=first.similarity,
                directed=first.directed,
                coverage=first.coverage,
                source_accuracy=first.source_accuracy,
                source_parameters=first.source_parameters,
                target_parameters=first.target_parameters,
                accuracies=accuracies,
                effectiveness=accuracies / base,
                time_ratio=float(np.median(ratios)) if ratios else NAN,
                seconds=epoch_seconds[key[:2]] * first.epochs,
            )
        )
    return pairs


def _epoch_seconds(runs: dict[Run, list[Row]]) -> dict[tuple[str, str], float]:
    """The median time of an epoch for every section and target.

    All runs of a target do the same work in an epoch; what differs is what else the machine had to do.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for run, rows in runs.items():
        found.setdefault((run.section, run.target), []).extend(b.seconds - a.seconds for a, b in pairwise(rows))
    return {key: float(np.median(values)) for key, values in found.items()}


def time_ratio(rows: Sequence[Row], baseline: Sequence[Row], epoch_seconds: float) -> float:
    """Training time (the transfer included) to the baseline's final accuracy over the baseline's time; inf if never.

    Between epochs the accuracy is taken to grow linearly.
    """
    goal, whole = baseline[-1].accuracy, epoch_seconds * baseline[-1].epoch
    extra = rows[0].transfer_seconds
    if rows[0].accuracy >= goal:
        return extra / whole
    for a, b in pairwise(rows):
        if b.accuracy >= goal:
            epochs = a.epoch + (goal - a.accuracy) / (b.accuracy - a.accuracy)
            return (extra + epochs * epoch_seconds) / whole
    return math.inf


def conditions_line(rows: Sequence[Row]) -> str:
    """The conditions that stand beside every figure."""
    one = rows[-1]
    commits = ", ".join(sorted({row.commit for row in rows}))
    seeds = len({row.seed for row in rows})
    precisions = " and ".join(sorted({row.precision for row in rows}))
    # A resumed experiment may have had several budgets, and other numbers of runs at a time.
    trained = sum(run_rows[-1].seconds / run_rows[-1].workers for run_rows in _by_run(rows).values())
    budgets = " + ".join(f"{budget:g}" for budget in dict.fromkeys(row.budget_minutes for row in rows))
    workers = " or ".join(str(count) for count in sorted({row.workers for row in rows}))
    return (
        f"{one.images} training images x {one.epochs} epochs, {one.test_images} test images, {seeds} seed(s) at most, "
        f"batch {one.batch_size}, Adam 1e-3 cosine, flips, {precisions}; {one.device}, {workers} run(s) at a time, "
        f"{one.threads} thread(s) each; "
        f"{trained / 60:.0f} min of training in all, budget {budgets} min; "
        f"torch {one.torch}, timm {one.timm}, commit {commits}"
    )


def _by_run(rows: Sequence[Row]) -> dict[Run, list[Row]]:
    found: dict[Run, list[Row]] = {}
    for row in rows:
        found.setdefault(row.run, []).append(row)
    return found


def write_report(file: RunFile, out: Path, console: Console) -> None:
    """Writes summary.csv, summary.md and plot.png from the finished runs."""
    if not file.rows:
        console.print(f"{file.path}: no finished run yet, nothing to report")
        return
    pairs = pairs_of(file)
    grid_rows = [row for row in file.rows if row.section == "grid"]
    grid = [pair for pair in pairs if pair.section == "grid"]
    _write_csv(pairs, out / "summary.csv")
    text = _markdown(file, pairs, grid, grid_rows)
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    if grid_rows:
        with replacing(out / "plot.png") as temporary:
            _plot(grid, conditions_line(grid_rows), temporary)
    console.print(f"wrote summary.csv, summary.md{' and plot.png' if grid_rows else ''} into {out}")


def _write_csv(pairs: Sequence[Pair], path: Path) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = "section target source scenario seeds similarity directed coverage source_accuracy source_parameters"
        header = [*names.split(), "target_parameters", "epoch", "accuracy", "accuracy_std", "effectiveness"]
        writer.writerow([*header, "time_ratio", "seconds"])
        for p in pairs:
            for epoch in range(p.accuracies.shape[1]):
                known = [getattr(p, name) for name in header[:11]]
                mean, std = _mean_std(p.accuracies[:, epoch])
                effect = float(p.effectiveness[:, epoch].mean())
                writer.writerow([*known, epoch, mean, std, effect, p.time_ratio, p.seconds])


def _mean_std(values: Floats) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else NAN


def _markdown(file: RunFile, pairs: Sequence[Pair], grid: Sequence[Pair], grid_rows: Sequence[Row]) -> str:
    parts = ["# Transfer against random initialization on CIFAR-10 (JPEG)\n"]
    one_epoch = [pair for pair in pairs if pair.section == "one-epoch"]
    if one_epoch:
        rows = [row for row in file.rows if row.section == "one-epoch"]
        parts += ["## One epoch, beside the published code\n", _one_epoch_table(one_epoch)]
        parts.append(f"\n{conditions_line(rows)}\n")
    if grid:
        parts += ["## All pairs\n", _grid_table(grid), f"\n{conditions_line(grid_rows)}\n"]
        parts += [
            "Effectiveness is the accuracy divided by that of random initialization with the same seed. Time ratio is "
            "the training time to the accuracy at which random initialization ends, the transfer included, divided by "
            "random's training time (median over seeds; `never` if not reached), with the seconds in brackets; an "
            "epoch is counted as the median epoch of all runs of its target: the machine may have had other work. "
            "Scenario `elsewhere`: the source as "
            f"trained on lossless CIFAR-10; `fine-tuned`: after one more epoch on {grid_rows[-1].tuning_images} of the "
            "JPEG training images.\n",
            "## Does similarity predict the gain?\n",
            _correlation_table(grid),
            f"\n{conditions_line(grid_rows)}\n",
            "Gain is the effectiveness after epoch 1, averaged over seeds. Rank correlations are the same for its "
            "logarithm; Pearson's is with the logarithm. Brackets: 95 % bootstrap interval over pairs, "
            f"{RESAMPLES} resamples, left out below {FEWEST_FOR_INTERVAL} pairs; "
            "pairs that share a target are not independent, which the interval does not know. "
            "`within targets` compares only sources on one and the same target (both sides centred on the target's "
            "mean rank), the question a user has who looks for a source.\n",
        ]
    return "\n".join(parts)


def _one_epoch_table(pairs: Sequence[Pair]) -> str:
    rows = []
    for p in pairs:
        before, after = REFERENCES.get((p.target, p.source), (NAN, NAN))
        rows.append(
            [
                p.target,
                p.source,
                percent(p.source_accuracy),
                percent(p.accuracies[:, 0].mean()),
                percent(before),
                percent(p.accuracies[:, 1].mean()),
                percent(after),
            ]
        )
    header = ["target", "source", "source itself", "before training", "(reference)", "after one epoch", "(reference)"]
    return table(header, rows)


def _grid_table(pairs: Sequence[Pair]) -> str:
    last = pairs[0].accuracies.shape[1] - 1
    header = ["target", "source", "scenario", "similarity", "directed", "coverage", "acc. before", "after 1"]
    header += [f"after {last}", "effect. @1", f"effect. @{last}", "time ratio", "seeds"]
    rows = []
    for p in pairs:
        known = p.source != RANDOM
        cells = [p.target, p.source, p.scenario or "—"]
        cells += [number(p.similarity), number(p.directed), percent(p.coverage) if known else "—"]
        cells += [_spread(p.accuracies[:, epoch]) for epoch in (0, 1, last)]
        cells += [number(float(p.effectiveness[:, epoch].mean())) if known else "1" for epoch in (1, last)]
        cells += [_time(p) if known else f"1 ({p.seconds:.1f} s)", str(p.seeds)]
        rows.append(cells)
    return table(header, rows)


def _time(pair: Pair) -> str:
    if math.isinf(pair.time_ratio):
        return "never"
    return f"{number(pair.time_ratio)} ({pair.time_ratio * pair.seconds:.1f} s)" if pair.time_ratio >= 0 else "—"


def _spread(values: Floats) -> str:
    mean, std = _mean_std(values)
    return percent(mean) if math.isnan(std) else f"{100 * mean:.1f} ± {100 * std:.1f} %"


# --- correlation -----------------------------------------------------------------------------------------------------

PREDICTORS: dict[str, Callable[[Pair], float]] = {
    "similarity, symmetric": lambda p: p.similarity,
    "similarity, directed": lambda p: p.directed,
    "parameters of the source": lambda p: float(p.source_parameters),
}


def _spearman(x: Floats, y: Floats) -> float:
    return _pearson(stats.rankdata(x), stats.rankdata(y))


def _pearson(x: Floats, y: Floats) -> float:
    # A resample may have drawn the same value throughout: no correlation is defined there.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return NAN
    return float(np.corrcoef(x, y)[0, 1])


def _kendall(x: Floats, y: Floats) -> float:
    return NAN if np.ptp(x) == 0 or np.ptp(y) == 0 else float(stats.kendalltau(x, y).statistic)


def _correlation_table(grid: Sequence[Pair]) -> str:
    header = [
        "scenario",
        "predictor of the gain",
        "pairs",
        "Spearman",
        "Kendall",
        "Pearson, log",
        "Spearman within targets",
    ]
    rows = []
    for scenario in sorted({p.scenario for p in grid if p.source != RANDOM}):
        chosen = [p for p in grid if p.scenario == scenario and not math.isnan(p.gain)]
        if len(chosen) < 3:
            continue
        gain = np.array([p.gain for p in chosen])
        for name, predictor in PREDICTORS.items():
            x = np.array([predictor(p) for p in chosen])
            inner = _centred([p.target for p in chosen], x), _centred([p.target for p in chosen], gain)
            cells = [_interval(_spearman, x, gain), _interval(_kendall, x, gain), _interval(_pearson, x, np.log(gain))]
            rows.append([scenario, name, str(len(chosen)), *cells, _interval(_pearson, *inner)])
    return table(header, rows) if rows else "Too few pairs for a correlation."


def _centred(groups: Sequence[str], values: Floats) -> Floats:
    """Each value's rank within its group, less the group's mean rank."""
    result = np.zeros(len(values))
    for group in set(groups):
        members = np.array([g == group for g in groups])
        ranks = stats.rankdata(values[members])
        result[members] = ranks - ranks.mean()
    return result


def _interval(statistic: Callable[[Floats, Floats], float], x: Floats, y: Floats) -> str:
    value = statistic(x, y)
    if math.isnan(value):
        return "—"
    if len(x) < FEWEST_FOR_INTERVAL:
        return f"{value:+.2f}"
    rng = np.random.default_rng(0)
    drawn = [statistic(x[i], y[i]) for i in rng.integers(len(x), size=(RESAMPLES, len(x)))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


# --- plot ------------------------------------------------------------------------------------------------------------


def _plot(grid: Sequence[Pair], conditions: str, path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    targets = list(dict.fromkeys(p.target for p in grid))[:6]
    sources = sorted({p.source for p in grid if p.source != RANDOM})
    color = {source: colormaps["viridis"](i / max(1, len(sources) - 0.6)) for i, source in enumerate(sources)}
    columns = 3
    curve_rows = -(-len(targets) // columns)
    figure = Figure(figsize=(13, 3.6 * (curve_rows + 1.15)), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(curve_rows, 1.15)))
    panels = upper.subplots(curve_rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, target in zip(panels, targets, strict=False):
        _curves(panel, [p for p in grid if p.target == target], target, color)
    for panel in panels[len(targets) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], color=color[s], lw=2, label=f"from {s}") for s in sources]
    handles += [Line2D([], [], color="black", lw=1.5, ls=ls, label=label) for ls, label in _STYLES.values()]
    upper.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    _scatters(lower, grid, targets)
    figure.supxlabel(_wrapped(conditions, 150), fontsize=7.5, color="0.35")
    figure.savefig(path, dpi=130, format="png")


_STYLES = {
    RANDOM: ((0, (4, 2)), "random initialization"),
    "elsewhere": ("-", "source trained elsewhere"),
    "fine-tuned": (":", "source fine-tuned on the target data"),
}


def _curves(panel: Any, pairs: Sequence[Pair], target: str, color: dict[str, Any]) -> None:
    for p in pairs:
        style, _ = _STYLES[p.scenario or RANDOM]
        line_color = "black" if p.source == RANDOM else color[p.source]
        mean = 100 * p.accuracies.mean(0)
        panel.plot(range(len(mean)), mean, ls=style, color=line_color, lw=1.7, marker="o", ms=3, clip_on=False)
    panel.set_title(target, fontsize=10)
    panel.set_ylim(0, 90)
    panel.set_xticks(range(pairs[0].accuracies.shape[1]))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.label_outer()
    if panel.get_subplotspec().is_first_col():
        panel.set_ylabel("test accuracy, %")
    if panel.get_subplotspec().is_last_row():
        panel.set_xlabel("epochs trained")


def _scatters(figure: Any, grid: Sequence[Pair], targets: Sequence[str]) -> None:
    panels = figure.subplots(1, 3, sharey=True)
    labels = ["symmetric similarity", "directed similarity", "parameters of the source, thousands"]
    for panel, label, predictor in zip(panels, labels, PREDICTORS.values(), strict=True):
        for order, target in enumerate(targets):
            for scenario, marker in (("elsewhere", "o"), ("fine-tuned", "^")):
                chosen = [p for p in grid if (p.target, p.scenario) == (target, scenario)]
                unit = 1000 if "parameters" in label else 1
                x, y = [predictor(p) / unit for p in chosen], [p.gain for p in chosen]
                panel.scatter(x, y, marker=marker, color=f"C{order}", s=28, alpha=0.8)
        panel.axhline(1, color="0.4", lw=1, ls="--")
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("effectiveness after epoch 1")
    for order, target in enumerate(targets):
        panels[1].scatter([], [], color=f"C{order}", s=28, label=target)
    panels[1].scatter([], [], color="0.3", marker="o", label="elsewhere")
    panels[1].scatter([], [], color="0.3", marker="^", label="fine-tuned")
    figure.legend(loc="outside upper center", ncols=8, frameon=False, fontsize=9)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
