"""The tables and pictures of the assembly experiment, from its runs.csv and searches.csv."""

from __future__ import annotations

import math
import re
import statistics
from typing import TYPE_CHECKING

from assemble_pictures import accuracy_floor, draw_assemblies, draw_epochs, draw_searches, draw_sizes
from assemble_runs import mean_of, of_method
from markdown import table
from scipy.stats import kendalltau

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from assemble_runs import Row, SearchEpoch

PICTURES = """\
- `accuracy_by_size.png`: test accuracy against trained parameters, every run of every method; accuracy from {floor} % \
up. What the publication claims is few trained parameters at the accuracy of many.
- `accuracy_by_epoch.png`: accuracy on {curve} test images after each epoch and by seconds of training, mean over \
seeds: the found assembly trained by its stitches alone and in full, beside the best source either way. Epochs of a \
search are not in it.
- `search.png`: how the searches went: accuracy of each epoch's best assembly on the selection images; scores of all \
candidates in the order in which they were scored, with each epoch's mean; score against size of all candidates.
- `assemblies.png`: which segments of which sources the best and the published choices are made of, with their accuracy.

The publication's figures 5 to 7 could not be looked up: these show what its text claims."""


def write_report(rows: Sequence[Row], searches: Sequence[SearchEpoch], out: Path) -> str:
    """Writes summary.md and the four pictures beside runs.csv.

    Returns:
        The text of summary.md.
    """
    text = summary(rows, searches)
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw_sizes(rows, out / "accuracy_by_size.png")
    draw_epochs(rows, out / "accuracy_by_epoch.png")
    draw_searches(searches, out / "search.png")
    draw_assemblies(rows, out / "assemblies.png")
    return text


def summary(rows: Sequence[Row], searches: Sequence[SearchEpoch]) -> str:
    methods = list(dict.fromkeys(row.method for row in rows))
    methods.sort(key=lambda method: -mean_of(of_method(rows, method), "accuracy"))
    parts = [
        "# Assemblies of small networks on CIFAR-10",
        table(
            ["method", "accuracy", "AUROC", "trained", "in all", "FLOPs", "search", "training", "seeds"],
            [_line(method, of_method(rows, method)) for method in methods],
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
        PICTURES.format(floor=accuracy_floor(rows), curve=_curve_images(rows)),
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


def _curve_images(rows: Sequence[Row]) -> str:
    found = re.search(r"curve_images=(\d+)", rows[-1].conditions)
    return found.group(1) if found else "some"


def _line(method: str, runs: Sequence[Row]) -> list[str]:
    accuracy = f"{100 * mean_of(runs, 'accuracy'):.1f} %"
    if len(runs) > 1:
        found = [100 * row.accuracy for row in runs]
        accuracy += f" [{min(found):.1f}, {max(found):.1f}]"
    return [
        method,
        accuracy,
        f"{mean_of(runs, 'auroc'):.3f}",
        f"{mean_of(runs, 'trained_parameters') / 1e3:.0f} k",
        f"{mean_of(runs, 'parameters') / 1e3:.0f} k",
        f"{mean_of(runs, 'flops') / 1e6:.0f} M",
        f"{mean_of(runs, 'search_seconds'):.0f} s",
        f"{mean_of(runs, 'training_seconds'):.0f} s",
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
        parts, wholes = of_method(rows, part), of_method(rows, whole)
        if parts and wholes:
            took = [mean_of(r, "training_seconds") / len(r[0].epochs) for r in (parts, wholes)]
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
