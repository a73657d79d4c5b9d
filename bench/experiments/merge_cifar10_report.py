"""The tables and the picture of the merging experiment on CIFAR-10, from its runs.csv."""

from __future__ import annotations

import csv
import statistics
from typing import TYPE_CHECKING

from markdown import table

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

STRATEGIES = (
    "merged",
    "one long run",
    "best of three",
    "averaged weights",
    "distilled",
    "one long run, equal compute",
)
PUBLISHED = "68.8 merged, 67.0 best of three, 67.5 % one long run: CIFAR-100, ResNet-20, medians"

PRECISIONS = {"no": "float32", "bf16": "bfloat16"}

Row = dict[str, str]


def write_report(out: Path, rows: Sequence[Row]) -> str:
    """Writes summary.csv, summary.md and plot.png beside runs.csv.

    Args:
        out: The folder.
        rows: Of runs.csv.

    Returns:
        The text of summary.md.
    """
    lines = _lines(rows)
    with replacing(out / "summary.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    text = _summary(rows, lines)
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    _draw(out / "plot.png", rows)
    return text


def _found(rows: Sequence[Row], architecture: str, strategy: str) -> dict[str, Row]:
    """By seed."""
    return {r["seed"]: r for r in rows if r["architecture"] == architecture and r["strategy"] == strategy}


def _lines(rows: Sequence[Row]) -> list[dict[str, str]]:
    lines = []
    for architecture in dict.fromkeys(row["architecture"] for row in rows):
        merged = _found(rows, architecture, "merged")
        for strategy in STRATEGIES:
            found = _found(rows, architecture, strategy)
            if not found:
                continue
            accuracies = [100 * float(row["accuracy"]) for row in found.values()]
            shared = [seed for seed in found if seed in merged]
            ahead = [100 * (float(merged[s]["accuracy"]) - float(found[s]["accuracy"])) for s in shared]
            first = next(iter(found.values()))
            lines.append(
                {
                    "architecture": architecture,
                    "strategy": strategy,
                    "seeds": str(len(found)),
                    "mean accuracy, %": f"{statistics.mean(accuracies):.2f}",
                    "lowest to highest, %": f"{min(accuracies):.2f} to {max(accuracies):.2f}",
                    "merged is ahead by, points": _ahead(strategy, ahead),
                    "epochs": first["epochs"],
                    "compute, epochs of one network": f"{float(first['compute']):.1f}",
                    "seconds": f"{statistics.mean(float(row['seconds']) for row in found.values()):.0f}",
                }
            )
    return lines


def _ahead(strategy: str, ahead: Sequence[float]) -> str:
    if strategy == "merged" or not ahead:
        return ""
    return f"{statistics.mean(ahead):+.2f}, in {sum(value > 0 for value in ahead)} of {len(ahead)}"


def _summary(rows: Sequence[Row], lines: Sequence[Mapping[str, str]]) -> str:
    first = rows[0]
    rates = first["rates"].split()
    budget = int(first["budget_epochs"])
    seeds = len({row["seed"] for row in rows})
    conditions = (
        f"{first['images']} training images, {first['test_images']} test images, budget {budget} epochs a strategy: "
        f"teachers {budget // 3} each, importance {budget // 6}, fine-tuning {budget // 6}; {seeds} seed(s) at most; "
        f"batch {first['batch_size']}; SGD, momentum 0.9, weight decay 1e-4, cosine from {rates[0]} (from random "
        f"weights) and {rates[2]} (fine-tuning, averaged weights), {rates[1]} constant while importance is learned, "
        f"gates {rates[3]}; lambda from 0.05, its growth multiplied so that its course over 150 epochs fits; random "
        f"crops and flips; forward pass in {PRECISIONS[first['precision']]}; {first['device']}, {first['threads']} "
        "thread(s); "
        f"{sum(float(row['seconds']) for row in rows) / 60:.0f} min of training in all; torch {first['torch']}, commit "
        f"{', '.join(sorted({row['commit'] for row in rows}))}."
    )
    ways = [
        [row["architecture"], row["strategy"], row["seed"], row["on_the_way"]]
        for row in rows
        if row["on_the_way"] and row["strategy"] != "best of three"
    ]
    return "\n\n".join(
        [
            "# Merging on CIFAR-10 against what else the epochs could have been spent on",
            table(list(lines[0]), [list(line.values()) for line in lines]),
            conditions,
            "Accuracies are of the last epoch; the best of three is picked by test accuracy, as favourable to it as "
            "can be. Seconds are without the teachers', which merging, averaging and distilling share. The compute of "
            "an epoch of the wide network is counted by its operations. A reduced budget: at the publication's length "
            f"networks are near their end, here all of them would still gain from training on. Published: {PUBLISHED}.",
            "## On the way",
            table(["architecture", "strategy", "seed", "test accuracy"], ways),
            "",
        ]
    )


def _draw(path: Path, rows: Sequence[Row]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(architectures), figsize=(5.5 * len(architectures), 3.6), layout="constrained", squeeze=False
    )
    for axes, architecture in zip(panels[0], architectures, strict=True):
        for place, strategy in enumerate(STRATEGIES):
            found = _found(rows, architecture, strategy)
            values = [100 * float(row["accuracy"]) for row in found.values()]
            axes.plot(values, [place] * len(values), "o", color="#d55e00" if strategy == "merged" else "#0072b2")
            if values:
                axes.plot([statistics.mean(values)], [place], "|", color="black", markersize=16)
        axes.set_yticks(range(len(STRATEGIES)), STRATEGIES)
        axes.set_ylim(len(STRATEGIES) - 0.5, -0.5)
        axes.set(title=architecture, xlabel="test accuracy, % (a point a seed, line: mean)")
        axes.grid(axis="x", alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    pyplot.close(figure)
