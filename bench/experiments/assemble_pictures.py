"""The pictures of the assembly experiment."""

from __future__ import annotations

import math
import re
import statistics
from typing import TYPE_CHECKING, Any

from assemble_runs import mean_of, of_method

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


def accuracy_floor(rows: Sequence[Row]) -> int:
    """Where the accuracy axis begins: a multiple of ten below everything."""
    return int(10 * math.floor(10 * min(row.accuracy for row in rows)))


def draw_sizes(rows: Sequence[Row], path: Path) -> None:
    figure, (axes,) = _panels(1, 9)
    for number, (label, belongs) in enumerate(KINDS.items()):
        chosen = [row for row in rows if belongs(row.method)]
        points = [row.trained_parameters for row in chosen], [100 * row.accuracy for row in chosen]
        axes.scatter(*points, s=30, color=f"C{number}", label=label, alpha=0.8)
    axes.set_xscale("log")
    axes.set_ylim(accuracy_floor(rows), 100)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def draw_epochs(rows: Sequence[Row], path: Path) -> None:
    figure, panels = _panels(2, 10)
    shown = ["PA-DNN", "PA-DNN, full-train", "fitted PA-DNN", "fitted PA-DNN, full-train"]
    for ending in (", head", ", all"):
        of_kind = {row.method for row in rows if row.method.endswith(ending)}
        shown += sorted(of_kind, key=lambda method: -mean_of(of_method(rows, method), "accuracy"))[:1]
    for number, method in enumerate(shown):
        runs = of_method(rows, method)
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


def draw_searches(searches: Sequence[SearchEpoch], path: Path) -> None:
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


def draw_assemblies(rows: Sequence[Row], path: Path) -> None:
    """A bar for each chosen assembly, cut into its blocks: segments of its sources, from input to head."""
    chosen = [
        row for method in ("PA-DNN", "fitted PA-DNN", "fitted assembly by CKA") for row in of_method(rows, method)
    ]
    figure, (axes,) = _panels(1, 11)
    colors: dict[str, str] = {}
    for place, row in enumerate(chosen):
        start = 0
        for name, first, last in re.findall(r"(\S+)\[(\d+)-(\d+)\]", row.blocks):
            color, width = colors.setdefault(name, f"C{len(colors)}"), int(last) - int(first) + 1
            axes.barh(place, width, left=start, color=color, edgecolor="white", linewidth=1.5)
            text = first if first == last else f"{first}-{last}"
            axes.text(start + width / 2, place, text, ha="center", va="center", color="white", fontsize=7)
            start += width
    labels = [f"{row.method}, seed {row.seed}: {100 * row.accuracy:.1f} %" for row in chosen]
    axes.set_yticks(range(len(chosen)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("segments, by their numbers in the source")
    handles = [axes.barh(0, 0, color=color, label=name) for name, color in colors.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
