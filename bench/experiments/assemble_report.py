"""The tables and pictures of the assembly experiment, from its runs.csv and searches.csv."""

from __future__ import annotations

import math
import re
import statistics
from typing import TYPE_CHECKING, Any

from markdown import table
from scipy.stats import kendalltau

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from assemble_runs import Row, SearchEpoch

KINDS: dict[str, Callable[[str], bool]] = {
    "a source, everything trained": lambda method: method.endswith(", all"),
    "a source, new head": lambda method: method.endswith(", head"),
    "assembly by chance": lambda method: method.startswith("assembly by random"),
    "assembly by similarity (CKA)": lambda method: method == "assembly by CKA",
    "assembly by size": lambda method: method == "assembly by size",
    "fitted assembly": lambda method: method.startswith("fitted assembly"),
    "PA-DNN": lambda method: method == "PA-DNN",
    "PA-DNN, chosen by score": lambda method: method == "PA-DNN, by score",
    "PA-DNN, full-train": lambda method: method == "PA-DNN, full-train",
    "fitted PA-DNN": lambda method: method.startswith("fitted PA-DNN"),
}

PICTURES = """\
- `accuracy_by_size.png`: test accuracy against trained parameters, every run of every method; accuracy from {floor} % \
up. What the publication claims is few trained parameters at the accuracy of many.
- `accuracy_by_epoch.png`: accuracy on {curve} test images after each epoch and by seconds of training, mean over \
seeds: the found assembly trained by its stitches alone and in full, beside the best source either way. Epochs of a \
search are not in it.
- `search.png`: how the searches went: accuracy of each epoch's best assembly on the selection images; scores of all \
candidates in the order in which they were scored, with each epoch's mean; score against size of all candidates.

The publication's figures 5 to 7 could not be looked up: these three show what its text claims."""


def write_report(rows: Sequence[Row], searches: Sequence[SearchEpoch], out: Path) -> str:
    """Writes summary.md and the three pictures beside runs.csv.

    Returns:
        The text of summary.md.
    """
    text = summary(rows, searches)
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    _draw_sizes(rows, out / "accuracy_by_size.png")
    _draw_epochs(rows, out / "accuracy_by_epoch.png")
    _draw_searches(searches, out / "search.png")
    return text


def summary(rows: Sequence[Row], searches: Sequence[SearchEpoch]) -> str:
    methods = list(dict.fromkeys(row.method for row in rows))
    methods.sort(key=lambda method: -_mean(_of(rows, method), "accuracy"))
    parts = [
        "# Assemblies of small networks on CIFAR-10",
        table(
            ["method", "accuracy", "AUROC", "trained", "in all", "FLOPs", "search", "training", "seeds"],
            [_line(method, _of(rows, method)) for method in methods],
        ),
        "Means over seeds, in brackets the lowest and highest where there are several. *head*: only a new head is "
        "trained; *all*: everything. *assembly by*: of 300 random assemblies the first, that of the most similar "
        "joints, the largest; only stitches and head are trained. Stitches start as the conditions say but where they "
        "are called random; their heads from random weights. " + _best_heads(rows),
        "*fitted*: the head too starts from a convex problem, logistic regression on the images that the stitches are "
        "fitted on; chosen blocks keep the size of their features (straight-through factors); candidates are drawn of "
        "all sources and compared by accuracy, the policy's reward; AdamW's rates are the publication's 1e-3 and 1e-4. "
        "*not trained further*: as the search left it.",
        "The four ResNets were trained on lossless CIFAR-10 by others: they know this task, so that a new head for one "
        "of them is a strong start, which the publication's sources (ImageNet) did not have.",
        f"Conditions: {rows[-1].conditions}; torch {rows[-1].torch}, commit {rows[-1].commit}. Methods that do not "
        "search train for as many more epochs as the search took. Times are from a machine that did other work beside.",
        "## Stitches alone against everything",
        _training_times(rows),
        "## The searches",
        *_searches(searches),
        "## The pictures",
        PICTURES.format(floor=_floor(rows), curve=_curve_images(rows)),
        "## The assemblies",
        table(
            ["method", "seed", "accuracy", "score", "blocks"],
            [
                [r.method, str(r.seed), f"{100 * r.accuracy:.1f} %", f"{r.score:.2f}", r.blocks]
                for r in rows
                if ("PA-DNN" in r.method or "assembly" in r.method) and "not trained further" not in r.method
            ],
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of(rows: Sequence[Row], method: str) -> list[Row]:
    return [row for row in rows if row.method == method]


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.mean(getattr(row, name) for row in rows)


def _curve_images(rows: Sequence[Row]) -> str:
    found = re.search(r"curve_images=(\d+)", rows[-1].conditions)
    return found.group(1) if found else "some"


def _line(method: str, runs: Sequence[Row]) -> list[str]:
    accuracy = f"{100 * _mean(runs, 'accuracy'):.1f} %"
    if len(runs) > 1:
        found = [100 * row.accuracy for row in runs]
        accuracy += f" [{min(found):.1f}, {max(found):.1f}]"
    return [
        method,
        accuracy,
        f"{_mean(runs, 'auroc'):.3f}",
        f"{_mean(runs, 'trained_parameters') / 1e3:.0f} k",
        f"{_mean(runs, 'parameters') / 1e3:.0f} k",
        f"{_mean(runs, 'flops') / 1e6:.0f} M",
        f"{_mean(runs, 'search_seconds'):.0f} s",
        f"{_mean(runs, 'training_seconds'):.0f} s",
        str(len(runs)),
    ]


def _best_heads(rows: Sequence[Row]) -> str:
    best: dict[int, float] = {}
    for row in rows:
        if row.method.endswith(", head"):
            best[row.seed] = max(row.accuracy, best.get(row.seed, 0.0))
    return f"Best head of each seed: {100 * statistics.mean(best.values()):.1f} % on average." if best else ""


def _training_times(rows: Sequence[Row]) -> str:
    """An epoch of the same networks trained either way."""
    lines = []
    pairs = {name: (name, f"{name}, full-train") for name in ("PA-DNN", "fitted PA-DNN")}
    for method in dict.fromkeys(row.method for row in rows):
        if method.endswith(", head"):
            name = method.removesuffix(", head")
            pairs[name] = (method, f"{name}, all")
    for name, (part, whole) in pairs.items():
        parts, wholes = _of(rows, part), _of(rows, whole)
        if parts and wholes:
            took = [_mean(r, "training_seconds") / len(r[0].epochs) for r in (parts, wholes)]
            saved = f"{100 * (1 - took[0] / took[1]):.0f} %"
            lines.append([name, f"{took[0]:.1f} s", f"{took[1]:.1f} s", saved])
    if not lines:
        return ""
    shown = table(["network", "an epoch, stitches and head", "an epoch, everything", "less time"], lines)
    return f"{shown}\n\nThe publication says 23 % less."


def _searches(searches: Sequence[SearchEpoch]) -> list[str]:
    if not searches:
        return []
    lines = []
    for search, seed in sorted({(row.search, row.seed) for row in searches}):
        epochs = [row for row in searches if (row.search, row.seed) == (search, seed)]
        scored = [c for row in epochs for c in row.candidates if math.isfinite(c[0])]
        tau = float(kendalltau(*zip(*scored, strict=True)).statistic)
        requested, executed = sum(r.blocks_requested for r in epochs), sum(r.blocks_executed for r in epochs)
        lines.append(
            [
                search,
                str(seed),
                " → ".join(f"{100 * row.accuracy:.1f}" for row in epochs) + " %",
                " → ".join(f"{row.mean_score:.2f}" for row in epochs),
                f"{statistics.stdev(score for score, _ in scored):.2f}",
                f"{tau:+.2f}",
                f"{100 * (1 - executed / requested):.0f} % of {requested}",
            ]
        )
    header = [
        "search",
        "seed",
        "best accuracy by epoch",
        "mean score by epoch",
        "score's deviation",
        "tau with size",
        "saved",
    ]
    return [
        table(header, lines),
        "*score's deviation*: over all candidates of the search. *tau with size*: Kendall's, of the scores with the "
        "parameter counts. *saved*: block executions that shared prefixes spared the scoring.",
    ]


# -- Pictures ----------------------------------------------------------------------------------------------------------


def _panels(count: int, width: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, list(panels)


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _floor(rows: Sequence[Row]) -> int:
    """Where the accuracy axis begins: a multiple of ten below everything."""
    return int(10 * math.floor(10 * min(row.accuracy for row in rows)))


def _draw_sizes(rows: Sequence[Row], path: Path) -> None:
    figure, (axes,) = _panels(1, 9)
    for number, (label, belongs) in enumerate(KINDS.items()):
        chosen = [row for row in rows if belongs(row.method)]
        points = [row.trained_parameters for row in chosen], [100 * row.accuracy for row in chosen]
        axes.scatter(*points, s=30, color=f"C{number}", label=label, alpha=0.8)
    axes.set_xscale("log")
    axes.set_ylim(_floor(rows), 100)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _draw_epochs(rows: Sequence[Row], path: Path) -> None:
    figure, panels = _panels(2, 10)
    shown = ["PA-DNN", "PA-DNN, full-train", "fitted PA-DNN", "fitted PA-DNN, full-train"]
    for ending in (", head", ", all"):
        of_kind = {row.method for row in rows if row.method.endswith(ending)}
        shown += sorted(of_kind, key=lambda method: -_mean(_of(rows, method), "accuracy"))[:1]
    for number, method in enumerate(shown):
        runs = _of(rows, method)
        if not runs:
            continue
        epochs = range(1, 1 + len(runs[0].epochs))
        accuracy = [100 * statistics.mean(run.epochs[e - 1][2] for run in runs) for e in epochs]
        seconds = [statistics.mean(run.epochs[e - 1][0] for run in runs) for e in epochs]
        panels[0].plot(epochs, accuracy, color=f"C{number}", marker="o", markersize=4, label=method)
        panels[1].plot(seconds, accuracy, color=f"C{number}", marker="o", markersize=4, label=method)
    panels[0].set_xlabel("epochs of training after the choice")
    panels[1].set_xlabel("seconds of training after the choice")
    panels[0].set_ylabel("test accuracy, %, mean over seeds")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(frameon=False, fontsize=8)
    _save(figure, path)


def _draw_searches(searches: Sequence[SearchEpoch], path: Path) -> None:
    figure, panels = _panels(3, 13)
    for number, (search, seed) in enumerate(sorted({(row.search, row.seed) for row in searches})):
        epochs = [row for row in searches if (row.search, row.seed) == (search, seed)]
        color = f"C{number}"
        panels[0].plot(
            [row.epoch for row in epochs],
            [100 * row.accuracy for row in epochs],
            color=color,
            marker="o",
            label=f"{search}, seed {seed}",
        )
        start = 0
        for row in epochs:
            scores = [score for score, _ in row.candidates]
            places = range(start, start + len(scores))
            panels[1].scatter(places, scores, s=8, color=color, alpha=0.5)
            panels[1].plot([places[0], places[-1]], [row.mean_score] * 2, color=color)
            start += len(scores)
        scored = [candidate for row in epochs for candidate in row.candidates]
        panels[2].scatter([size for _, size in scored], [score for score, _ in scored], s=8, color=color, alpha=0.5)
    panels[0].set_xlabel("epoch of the search")
    panels[0].set_ylabel("accuracy on the selection images, %")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(frameon=False, fontsize=8)
    panels[1].set_xlabel("candidate, in order")
    panels[1].set_ylabel("score")
    panels[2].set_xscale("log")
    panels[2].xaxis.set_minor_formatter("")
    panels[2].set_xlabel("parameters of the candidate")
    panels[2].set_ylabel("score")
    _save(figure, path)
