"""The picture of a merge: training curves, open gates, and the teachers' share of every layer."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyassemble.atomic import replacing
from pyassemble.report.labels import shortened
from pyassemble.report.picture import check_picture_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Okabe and Ito's colours, told apart by most colour-blind people.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_QUIET = "#6B7280"
# Inches.
_WIDTH, _CURVES, _ROW, _MARGIN = 9.0, 2.8, 0.19, 1.1
_NAME_CHARACTERS = 40
_DOTS_PER_INCH = 120


def draw_merge(document: Mapping[str, Any], path: str | Path) -> None:
    """Draws the training curves and each layer's units by teacher.

    Args:
        document: From :func:`pyassemble.report.merge_json`.
        path: ``.png`` or ``.svg``; replaced if it exists, once the picture is complete.

    Raises:
        UnknownOptionError: Another suffix.
    """
    path = Path(path)
    check_picture_path(path)
    kind = path.suffix.removeprefix(".")
    with merge_figure(document) as figure, replacing(path) as temporary:
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH, facecolor="white", metadata=metadata)


@contextmanager
def merge_figure(document: Mapping[str, Any]) -> Iterator[Any]:
    """The figure; to be saved inside the block."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gates = document["gates"]
    bars = _ROW * len(gates)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyassemble", "font.size": 8}):
        figure: Any = Figure(figsize=(_WIDTH, _CURVES + bars + _MARGIN), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subfigures(2, 1, height_ratios=(_CURVES, bars + _MARGIN))
        loss, accuracy, opened = above.subplots(1, 3)
        _draw_losses(loss, document["history"])
        _draw_accuracy(accuracy, document["history"])
        _draw_open_gates(opened, document["history"])
        _draw_units(below.subplots(), gates)
        yield figure


def _draw_losses(axes: Any, history: list[dict[str, Any]]) -> None:
    trained = [entry for entry in history if "loss" in entry]
    axes.plot([e["epoch"] for e in trained], [e["loss"] for e in trained], color=_COLOURS[0], label="training")
    measured = [entry for entry in history if "validation" in entry]
    losses = [entry["validation"]["loss"] for entry in measured]
    axes.plot([e["epoch"] for e in measured], losses, color=_COLOURS[4], label="validation")
    _mark_compression(axes, history)
    axes.legend(frameon=False)
    axes.set(title="loss", xlabel="epoch")


def _draw_accuracy(axes: Any, history: list[dict[str, Any]]) -> None:
    measured = [entry for entry in history if "validation" in entry]
    values = [100 * entry["validation"]["accuracy"] for entry in measured]
    axes.plot([e["epoch"] for e in measured], values, color=_COLOURS[4])
    _mark_compression(axes, history)
    axes.set(title="validation accuracy, %", xlabel="epoch")


def _draw_open_gates(axes: Any, history: list[dict[str, Any]]) -> None:
    counted = [entry for entry in history if "open" in entry]
    epochs = [entry["epoch"] for entry in counted]
    for teacher in range(len(next(iter(counted[0]["open"].values())))):
        totals = [sum(counts[teacher] for counts in entry["open"].values()) for entry in counted]
        axes.plot(epochs, totals, color=_colour(teacher), marker=".", label=f"teacher {teacher + 1}")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set(title="gates more likely open than closed", xlabel="epoch of learning importance")


def _draw_units(axes: Any, gates: list[dict[str, Any]]) -> None:
    places = range(len(gates))
    totals = [sum(entry["kept"]) for entry in gates]
    left = [0.0] * len(gates)
    for teacher in range(len(gates[0]["kept"])):
        shares = [100 * entry["kept"][teacher] / total for entry, total in zip(gates, totals, strict=True)]
        axes.barh(places, shares, left=left, color=_colour(teacher), height=0.75, label=f"teacher {teacher + 1}")
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(places, [shortened(entry["group"], _NAME_CHARACTERS) for entry in gates])
    axes.set_ylim(len(gates) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set(title="kept units by teacher, %")
    axes.spines[["top", "right", "left"]].set_visible(False)


def _mark_compression(axes: Any, history: list[dict[str, Any]]) -> None:
    for entry in history:
        if entry["stage"] == "compressed":
            axes.axvline(entry["epoch"], color=_QUIET, linestyle=":", linewidth=1)


def _colour(teacher: int) -> str:
    return _COLOURS[teacher % len(_COLOURS)]
