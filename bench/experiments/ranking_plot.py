"""The ranking experiment's picture: gain against similarity and against size, and how well each score orders."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from ranking_candidates import ASKED, MEASURED, PROPOSED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ranking_candidates import Candidate
    from ranking_evaluation import Evaluation
    from ranking_pools import Group

AXES: dict[str, tuple[Callable[[Candidate], float], str]] = {
    "symmetric similarity": (lambda c: c.pair.symmetric, "linear"),
    "directed similarity": (lambda c: c.pair.directed, "linear"),
    "parameters of the source, millions": (lambda c: c.pair.source_parameters / 1e6, "log"),
}
COLORS = {ASKED: "C0", PROPOSED: "C1", MEASURED: "0.55"}
LABELS = {ASKED: "asked for", PROPOSED: "proposed beforehand", MEASURED: "needs measured accuracies"}


def plot(evaluation: Evaluation, conditions: str, path: Path) -> None:
    """Draws the pool of an evaluation into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.15)))
    _scatters(upper, evaluation.groups)
    tau_panel, regret_panel = lower.subplots(1, 2, sharey=True)
    _taus(tau_panel, evaluation)
    _regrets(regret_panel, evaluation)
    lower.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    figure.supxlabel("\n".join(textwrap.wrap(conditions, 170)), fontsize=7.5, color="0.35")
    figure.savefig(path, dpi=120, format="png")


def _scatters(figure: Any, groups: Sequence[Group]) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    panels = figure.subplots(1, len(AXES), sharey=True)
    for panel, (label, (value, scale)) in zip(panels, AXES.items(), strict=True):
        for order, group in enumerate(groups):
            _cloud(panel, group, value, f"C{order}")
        panel.axhline(1, color="0.4", lw=1, ls="--")
        panel.set_xscale(scale)
        if scale == "log":
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(label)
        _plain(panel)
    panels[0].set_ylabel("gain over random initialization")
    handles = [panels[0].scatter([], [], color=f"C{i}", s=28, label=g.target) for i, g in enumerate(groups)]
    handles.append(panels[0].scatter([], [], color="0.3", marker="s", s=28, label="published weights"))
    handles.append(panels[0].scatter([], [], color="0.3", marker="o", s=28, label="trained briefly here"))
    figure.legend(handles=handles, loc="outside upper center", ncols=7, frameon=False, fontsize=9)


def _cloud(panel: Any, group: Group, value: Callable[[Candidate], float], color: str) -> None:
    for brief, marker in ((False, "s"), (True, "o")):
        chosen = [c for c in group.candidates if (c.scenario == "brief") == brief]
        x, y = [value(c) for c in chosen], [c.gains.mean() for c in chosen]
        panel.scatter(x, y, color=color, marker=marker, s=28, alpha=0.8)


def _taus(panel: Any, evaluation: Evaluation) -> None:
    low, high = evaluation.random_tau
    panel.axvspan(low, high, color="0.9", label="95 % of random orders")
    panel.axvline(0, color="0.4", lw=1)
    for row, one in enumerate(evaluation.scores):
        for order, group in enumerate(evaluation.groups):
            panel.plot(one.taus[group.target].value, row, marker="|", color=f"C{order}", ms=9, ls="", alpha=0.8)
        _bar(panel, row, one.tau.value, one.tau.interval, COLORS[one.score.kind])
    panel.set_yticks(range(len(evaluation.scores)), [one.score.name for one in evaluation.scores])
    panel.invert_yaxis()
    panel.set_xlabel("Kendall's tau-b with the gain within targets (strokes: each target)")
    _plain(panel)


def _regrets(panel: Any, evaluation: Evaluation) -> None:
    panel.axvline(evaluation.random_regret.value, color="0.4", lw=1, ls="--", label="expected of a random choice")
    for row, one in enumerate(evaluation.scores):
        _bar(panel, row, one.regret.value, one.regret.interval, COLORS[one.score.kind])
    for kind, color in COLORS.items():
        panel.plot([], [], color=color, marker="o", label=LABELS[kind])
    panel.set_xlabel("regret of the first choice, in gain, mean over targets")
    _plain(panel)


def _bar(panel: Any, row: int, value: float, interval: tuple[float, float], color: str) -> None:
    panel.plot(interval, (row, row), color=color, lw=2)
    panel.plot(value, row, marker="o", color=color, ms=6)


def _plain(panel: Any) -> None:
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
