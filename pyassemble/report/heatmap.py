"""The picture of a zoo: all similarities as one clustered heat map, with the families at its side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.atomic import replacing
from pyassemble.report.clustering import order
from pyassemble.report.family_runs import (
    OTHER_COLOUR,
    OTHER_COLOUR_TOO,
    Run,
    family_colours,
    family_runs,
    joined,
    longest,
)
from pyassemble.report.labels import shortened
from pyassemble.report.matrices import checked_similarity
from pyassemble.report.picture import check_picture_path
from pyassemble.report.placement import spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["COLOUR_MAP", "TITLE", "draw_heatmap", "order"]

#: Matplotlib's name of the colours; the page draws with the same.
COLOUR_MAP = "magma"
TITLE = "Symmetric similarity of networks"

# Up to this many networks, each is named beside its row and below its column; beyond, only families are.
_NAMED_NETWORKS = 120

# All lengths are inches, so that text and drawing keep their proportions whatever the number of networks.
_MARGIN = 0.3
_HEADER = 0.75
_STRIP = 0.13
_GAP = 0.05
_CELLS_WITH_NAMES = (0.12, 0.3)
_NAMED_EDGE = 11.5
_LEAST_EDGE = 2.4
_EDGE = 17.0
_TALLEST_EDGE = 60.0
_NAME_SIZE = 7.0
_NAME_CHARACTER = 0.059
_NAME_CHARACTERS = 44
_FAMILY_SIZE = 8.0
_FAMILY_CHARACTER = 0.072
_FAMILY_CHARACTERS = 24
_FAMILY_STEP = 0.145
_LEADER = 0.45
_BAR_ROOM = 1.1
_BAR = 0.18
_BAR_LENGTH = 4.0
_DOTS_PER_INCH = 150
_TITLE_CHARACTER = 0.13
_LEAST_WIDTH = 5.5
_QUIET = "#6B7280"

# Fragments of a family are labelled as one across this share of all networks.
_JOINED_SHARE = 0.004
# Of the labels that would fit, so many are used: with all, most would stand far from their runs.
_FILL = 0.65


@dataclass(frozen=True)
class _Layout:
    """Where the parts of the picture lie; x to the right, y downward from the upper edge."""

    networks: int
    names: float
    families: float
    edge: float

    @property
    def named(self) -> bool:
        return self.networks <= _NAMED_NETWORKS

    @property
    def beside(self) -> float:
        """Room for names and families, left of the matrix and below it."""
        return self.names + self.families + _STRIP + 2 * _GAP

    @property
    def left(self) -> float:
        return _MARGIN + self.beside

    @property
    def top(self) -> float:
        return _MARGIN + _HEADER

    @property
    def width(self) -> float:
        return max(_LEAST_WIDTH, self.left + self.edge + _BAR_ROOM + _MARGIN)

    @property
    def height(self) -> float:
        return self.top + self.edge + self.beside + _MARGIN

    @property
    def cell(self) -> float:
        return self.edge / self.networks


def draw_heatmap(
    similarity: NDArray[np.float64], names: Sequence[str], path: str | Path, *, title: str = TITLE
) -> None:
    """Draws the similarities of networks as a clustered heat map into a PNG or SVG file.

    Rows and columns stand in the order of :func:`order`. A strip along the matrix shows the families, the largest in
    colours of their own. Up to 120 networks, each has its name at its row and column, and brackets join neighbours of
    one family; beyond, the longest runs of one family are labelled.

    Args:
        similarity: Symmetric similarities from 0 to 1, (n, n) with n at least 1.
        names: What to call the n networks; their families are read from these.
        path: ``.png`` or ``.svg``; replaced if it exists, once the picture is complete.
        title: What to write above.

    Raises:
        MatrixError: Another matrix, or another number of names.
        UnknownOptionError: Another suffix.
    """
    # The object interface: no window system is asked for, and the caller's pyplot figures are left alone.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_picture_path(path)
    matrix = checked_similarity(similarity, names)
    places = order(matrix)
    ordered = [names[place] for place in places]
    kind = path.suffix.removeprefix(".")
    # Text stays text in an SVG, so that names can be searched; fixed ids make equal matrices equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyassemble"}):
        layout = _lay_out(ordered)
        figure = Figure(figsize=(layout.width, layout.height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, layout.width)
        axes.set_ylim(layout.height, 0)
        axes.axis("off")
        drawing = _Drawing(axes, layout, ordered, family_colours(ordered))
        drawing.draw(matrix[np.ix_(places, places)], title, smooth=kind == "png")
        with replacing(path) as temporary:
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH, facecolor="white", metadata=metadata)


def _lay_out(names: Sequence[str]) -> _Layout:
    count = len(names)
    longest_family = max((len(run.family) for run in family_runs(names) if run.stop - run.start > 1), default=0)
    family_room = _LEADER + _FAMILY_CHARACTER * min(_FAMILY_CHARACTERS, longest_family)
    if count > _NAMED_NETWORKS:
        return _Layout(count, 0.0, family_room, _whole_dots(count))
    smallest, largest = _CELLS_WITH_NAMES
    cell = max(_LEAST_EDGE / count, min(largest, max(smallest, _NAMED_EDGE / count)))
    name_room = 0.1 + _NAME_CHARACTER * min(_NAME_CHARACTERS, max(map(len, names)))
    return _Layout(count, name_room, family_room, cell * count)


def _whole_dots(count: int) -> float:
    """The matrix's edge for so many networks: a whole number of dots for each, so that none looks wider than others."""
    dots = max(1, round(_EDGE * _DOTS_PER_INCH / count))
    return min(_TALLEST_EDGE, count * dots / _DOTS_PER_INCH)


@dataclass(frozen=True)
class _Drawing:
    """Puts the parts on a matplotlib axes whose unit is the inch."""

    axes: Any
    layout: _Layout
    names: Sequence[str]
    colours: dict[str, str]

    def draw(self, matrix: NDArray[np.float64], title: str, *, smooth: bool) -> None:
        image = self._matrix(matrix, smooth=smooth)
        self._colour_bar(image)
        runs = family_runs(self.names)
        self._strips(runs)
        if self.layout.named:
            self._names()
            self._brackets([run for run in runs if run.stop - run.start > 1])
        else:
            self._leaders(runs)
        self._header(title)

    def _matrix(self, matrix: NDArray[np.float64], *, smooth: bool) -> Any:
        layout = self.layout
        right, bottom = layout.left + layout.edge, layout.top + layout.edge
        return self.axes.imshow(
            matrix,
            cmap=COLOUR_MAP,
            vmin=0.0,
            vmax=1.0,
            extent=(layout.left, right, bottom, layout.top),
            aspect="auto",
            # An SVG takes the values as they are; in dots, a matrix larger than its place is averaged, not sampled.
            interpolation="antialiased" if smooth else "none",
            zorder=1,
        )

    def _colour_bar(self, image: Any) -> None:
        layout = self.layout
        length = min(_BAR_LENGTH, layout.edge)
        inset = (
            (layout.left + layout.edge + 0.2) / layout.width,
            1 - (layout.top + length) / layout.height,
            _BAR / layout.width,
            length / layout.height,
        )
        bar = self.axes.figure.colorbar(image, cax=self.axes.figure.add_axes(inset))
        bar.outline.set_linewidth(0.5)
        bar.ax.tick_params(labelsize=_FAMILY_SIZE, width=0.5, length=3)
        bar.set_label("symmetric similarity", fontsize=_FAMILY_SIZE)

    def _strips(self, runs: Sequence[Run]) -> None:
        """The families in colour, left of the rows and below the columns."""
        from matplotlib.collections import PolyCollection

        # Seams in a quarter of a cell keep neighbouring families of one colour apart where there is room for it.
        seam = min(0.012, 0.25 * self.layout.cell) / 2 if self.layout.named else 0.0
        spans = [(run.start * self.layout.cell + seam, run.stop * self.layout.cell - seam) for run in runs]
        boxes = [self._box(start, stop, _GAP, _GAP + _STRIP, side) for side in (0, 1) for start, stop in spans]
        colours = [self._shade(run, index) for index, run in enumerate(runs)] * 2
        self.axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="none", zorder=2))

    def _shade(self, run: Run, index: int) -> str:
        """A family's colour; the families without one take turns between two greys, so that one sees where they end."""
        colour = self.colours[run.family]
        return OTHER_COLOUR_TOO if colour == OTHER_COLOUR and index % 2 else colour

    def _names(self) -> None:
        away = _STRIP + 2 * _GAP
        for index, name in enumerate(self.names):
            at = (index + 0.5) * self.layout.cell
            for side in (0, 1):
                self._beside(at, away, shortened(name, _NAME_CHARACTERS), side, fontsize=_NAME_SIZE)

    def _brackets(self, runs: Sequence[Run]) -> None:
        """A bar beyond the names for each run of neighbours, labelled with the family."""
        near = self.layout.names + _STRIP + 2 * _GAP
        for run in runs:
            inset = 0.15 * self.layout.cell
            ends = run.start * self.layout.cell + inset, run.stop * self.layout.cell - inset
            for side in (0, 1):
                x, y = zip(*(self._point(end, near + 0.1, side) for end in ends), strict=True)
                self.axes.plot(x, y, color=self.colours[run.family], linewidth=3, solid_capstyle="butt", zorder=2)
                self._family(run, run.centre * self.layout.cell, near + 0.2, side)

    def _leaders(self, runs: Sequence[Run]) -> None:
        """Labels for as many runs as there is room for, the longest, with lines that lead to them."""
        layout = self.layout
        candidates = [run for run in joined(runs, round(_JOINED_SHARE * layout.networks)) if run.stop - run.start > 1]
        chosen = longest(candidates, int(_FILL * layout.edge / _FAMILY_STEP))
        anchors = [run.centre * layout.cell for run in chosen]
        near = _STRIP + 2 * _GAP
        far = near + _LEADER
        for run, at, placed in zip(chosen, anchors, spread(anchors, _FAMILY_STEP, layout.edge), strict=True):
            for side in (0, 1):
                ends = (at, near), (at, near + 0.08), (placed, far - 0.12), (placed, far - 0.04)
                x, y = zip(*(self._point(along, away, side) for along, away in ends), strict=True)
                self.axes.plot(x, y, color=self.colours[run.family], linewidth=0.8, zorder=2)
                self._family(run, placed, far, side)

    def _family(self, run: Run, at: float, away: float, side: int) -> None:
        strong = "bold" if self.layout.named else "normal"
        text = shortened(run.family, _FAMILY_CHARACTERS)
        self._beside(at, away, text, side, fontsize=_FAMILY_SIZE, weight=strong)

    def _header(self, title: str) -> None:
        count = len(self.names)
        families = len(self.colours)
        numbers = f"{count} network{'s' * (count != 1)} of {families} famil{'ies' if families != 1 else 'y'}, clustered"
        # Beside a small matrix there is no room for a title, above the names there is.
        left = self.layout.left if self.layout.edge > _LEAST_WIDTH else _MARGIN
        title = shortened(title, max(8, int((self.layout.width - left - _MARGIN) / _TITLE_CHARACTER)))
        self._text(left, _MARGIN + 0.1, title, ha="left", va="center", fontsize=13, weight="bold")
        self._text(left, _MARGIN + 0.4, numbers, ha="left", va="center", fontsize=9, color=_QUIET)

    def _point(self, along: float, away: float, side: int) -> tuple[float, float]:
        """A place ``along`` the matrix and ``away`` from it: left of its rows (0) or below its columns (1)."""
        if side == 0:
            return self.layout.left - away, self.layout.top + along
        return self.layout.left + along, self.layout.top + self.layout.edge + away

    def _box(self, start: float, stop: float, near: float, far: float, side: int) -> list[tuple[float, float]]:
        corners = (start, near), (stop, near), (stop, far), (start, far)
        return [self._point(along, away, side) for along, away in corners]

    def _beside(self, at: float, away: float, text: str, side: int, **style: Any) -> None:
        """A text that ends towards the matrix: level beside the rows, upright below the columns."""
        x, y = self._point(at, away, side)
        if side == 0:
            self._text(x, y, text, ha="right", va="center_baseline", **style)
        else:
            self._text(x, y, text, ha="center", va="top", rotation=90, **style)

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        # A name is no formula: a dollar sign in it must not start one.
        self.axes.text(x, y, text, parse_math=False, zorder=3, **style)
