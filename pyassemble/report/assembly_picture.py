"""The picture of an assembly's history: the search by epoch, its candidates' scores by size, and fine-tuning."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Okabe and Ito's colours, told apart by most colour-blind people.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
# Inches.
_PANEL, _HEIGHT = 3.2, 2.8


@contextmanager
def assembly_figure(history: Sequence[dict[str, Any]]) -> Iterator[Any]:
    """The figure; to be saved inside the block.

    Args:
        history: An assembly's, with at least one epoch of search or of fine-tuning.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    searched = [entry for entry in history if entry["kind"] == "epoch"]
    tuned = [entry for entry in history if entry["kind"] == "finetune"]
    panels = 2 * bool(searched) + bool(tuned)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyassemble", "font.size": 8}):
        figure: Any = Figure(figsize=(_PANEL * panels, _HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(1, panels, squeeze=False)[0])
        if searched:
            _draw_search(axes.pop(0), searched)
            _draw_scores(axes.pop(0), searched)
        if tuned:
            _draw_tuning(axes.pop(0), tuned)
        for panel in figure.axes:
            panel.spines["top"].set_visible(False)
        yield figure


def _draw_search(axes: Any, searched: Sequence[dict[str, Any]]) -> None:
    epochs = [entry["epoch"] for entry in searched]
    accuracy = [100 * entry["accuracy"] for entry in searched]
    axes.plot(epochs, accuracy, color=_BLUE, marker=".", label="best accuracy, %")
    axes.set(title="search", xlabel="epoch", ylabel="selection images right, %")
    losses = axes.twinx()
    losses.plot(epochs, [entry["weights_loss"] for entry in searched], color=_ORANGE, marker=".")
    losses.set_ylabel("loss of stitches and heads", color=_ORANGE)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_scores(axes: Any, searched: Sequence[dict[str, Any]]) -> None:
    for entry in searched:
        sizes = [size / 1e6 for size in entry["parameters"]]
        axes.scatter(sizes, entry["scores"], s=8, color=_GREEN, alpha=0.6)
    axes.set(title="all candidates", xlabel="million parameters", ylabel="training-free score")


def _draw_tuning(axes: Any, tuned: Sequence[dict[str, Any]]) -> None:
    # Fine-tuned twice, an assembly counts epochs from 1 again: they stand one after the other.
    places = range(1, len(tuned) + 1)
    measured = [
        (place, 100 * entry["validation"]["accuracy"])
        for place, entry in zip(places, tuned, strict=True)
        if "validation" in entry
    ]
    if measured:
        axes.plot(*zip(*measured, strict=True), color=_BLUE, marker=".")
        axes.set_ylabel("validation images right, %")
        losses = axes.twinx()
    else:
        losses = axes
    losses.plot(places, [entry["loss"] for entry in tuned], color=_ORANGE, marker=".")
    losses.set_ylabel("training loss", color=_ORANGE)
    axes.set(title="fine-tuning", xlabel="epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
