"""The picture of an alignment: two networks as columns of layers, partners joined by lines."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyassemble.atomic import replacing
from pyassemble.errors import UnknownOptionError
from pyassemble.report.labels import element_labels, shortened, within
from pyassemble.report.placement import spread
from pyassemble.transfer.matching import layer_score

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyassemble.network.layers import LayerSequence
    from pyassemble.transfer import Alignment

#: Picture formats by file suffix.
PICTURE_SUFFIXES = (".png", ".svg")

# All lengths are inches, so that text and drawing keep their proportions whatever the number of layers.
_LAYER = 0.085
_LAYER_WITH_NAME = 0.15
_GAP = 0.07
_LABEL_STEP = 0.145
_TALLEST = 200.0
_BAR = 0.32
_MIDDLE = 4.2
_MARGIN = 0.3
_LEGEND_ROW = 0.19
_CHARACTER = 0.066
_TITLE_CHARACTER = 0.11
_LABEL_SIZE = 8.0
_LABEL_CHARACTERS = 38
_DOTS_PER_INCH = 120

# Up to this many weighted layers, every layer is named; beyond, only blocks and layers outside blocks are.
_NAMED_LAYERS = 64

# Okabe and Ito's colours, told apart by most colour-blind people; the yellow is too light for lines.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7F5FC7")
# The usual kinds look the same in every picture; the rest take what is free.
_USUAL = {"Conv": _COLOURS[0], "BatchNorm": _COLOURS[1], "Linear": _COLOURS[2], "LayerNorm": _COLOURS[3]}
_OTHER_COLOUR = "#555555"
_BLOCK_FILL = "#ECEEF1"
_BLOCK_EDGE = "#C5CAD3"
_BAND_FILL = "#F3F4F6"
_QUIET = "#6B7280"
_FAINTEST = 0.18
_ARROW = " → "


@dataclass(frozen=True)
class _Bar:
    """One weighted layer: its place in the network's sequence, and its vertical extent."""

    layer: int
    top: float
    bottom: float

    @property
    def centre(self) -> float:
        return (self.top + self.bottom) / 2


@dataclass(frozen=True)
class _Label:
    """A name beside the column: where it belongs, and where there is room for it."""

    text: str
    at: float
    placed: float
    strong: bool


@dataclass(frozen=True)
class _Key:
    """The colours of the kinds, and the room that the legend needs above the drawing."""

    colours: dict[str, str]
    entries: tuple[tuple[str, str], ...]
    per_row: int

    @property
    def rows(self) -> int:
        """Rows of the legend that name kinds."""
        return -(-len(self.entries) // self.per_row)

    @property
    def header(self) -> float:
        """Height from the upper edge to where the columns begin."""
        return _MARGIN + 0.4 + (self.rows + 1) * _LEGEND_ROW + 0.4


@dataclass(frozen=True)
class _Column:
    """One network, laid out from 0 to the height of the drawing."""

    bars: dict[int, _Bar]
    blocks: dict[int, tuple[float, float]]
    labels: tuple[_Label, ...]


def draw_alignment(alignment: Alignment, path: str | Path, *, source_name: str, target_name: str) -> None:
    """Draws an alignment into a PNG or SVG file.

    The source is the left column, the target the right one, both from input (top) to output and stretched to the same
    height. A bar is a layer that carries weights, coloured by kind and hollow without a partner; a grey box is a block.
    Lines join partners, fainter the less their shapes agree.

    Args:
        alignment: What to draw.
        path: ``.png`` or ``.svg``; replaced if it exists, once the picture is complete.
        source_name: What to call the source.
        target_name: What to call the target.

    Raises:
        UnknownOptionError: Another suffix.
    """
    path = Path(path)
    check_picture_path(path)
    kind = path.suffix.removeprefix(".")
    figure_of = alignment_figure(alignment, source_name=source_name, target_name=target_name)
    with figure_of as figure, replacing(path) as temporary:
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(temporary, format=kind, dpi=_DOTS_PER_INCH, facecolor="white", metadata=metadata)


@contextmanager
def alignment_figure(alignment: Alignment, *, source_name: str, target_name: str) -> Iterator[Any]:
    """The figure that :func:`draw_alignment` draws; to be saved inside the block."""
    # The object interface: no window system is asked for, and the caller's pyplot figures are left alone.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = max(_natural_height(alignment.source), _natural_height(alignment.target))
    columns = _lay_out(alignment.source, height), _lay_out(alignment.target, height)
    sides = _label_width(columns[0]), _label_width(columns[1])
    width = 2 * _MARGIN + sum(sides) + 2 * _BAR + _MIDDLE
    key = _key(alignment, width)
    # Text stays text in an SVG, so that names can be searched; fixed ids make equal alignments equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyassemble"}):
        figure: Any = Figure(figsize=(width, key.header + height + _MARGIN))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height + _MARGIN, -key.header)
        axes.axis("off")
        _Drawing(axes, alignment, columns, _MARGIN + sides[0], width).draw(source_name, target_name, key)
        yield figure


def check_picture_path(path: Path) -> None:
    """Refuses a file name that :func:`draw_alignment` could not write, before any work is done for it."""
    if path.suffix not in PICTURE_SUFFIXES:
        raise UnknownOptionError("picture format", path.suffix or path.name, PICTURE_SUFFIXES)


@dataclass(frozen=True)
class _Drawing:
    """Puts laid-out columns on a matplotlib axes whose unit is the inch, y downward."""

    axes: Any
    alignment: Alignment
    columns: tuple[_Column, _Column]
    left: float
    width: float

    def draw(self, source_name: str, target_name: str, key: _Key) -> None:
        matched = {s for s, _ in self.alignment.indices}, {t for _, t in self.alignment.indices}
        self._bands()
        for side, network in enumerate((self.alignment.source, self.alignment.target)):
            self._blocks(side)
            self._bars(side, network, matched[side], key.colours)
            self._labels(side)
        self._lines(key.colours)
        self._header(source_name, target_name, key)

    def _bar_edges(self, side: int) -> tuple[float, float]:
        start = self.left if side == 0 else self.left + _BAR + _MIDDLE
        return start, start + _BAR

    def _inner_edge(self, side: int) -> float:
        return self._bar_edges(side)[1 - side]

    def _bands(self) -> None:
        """A faint band between every two blocks that share a pair."""
        from matplotlib.patches import PathPatch

        linked = {
            (s, t)
            for pair in self.alignment.indices
            if (s := _element_at(self.alignment.source, pair[0])) in self.columns[0].blocks
            and (t := _element_at(self.alignment.target, pair[1])) in self.columns[1].blocks
        }
        for s, t in sorted(linked):
            path = _band(self._inner_edge(0), self.columns[0].blocks[s], self._inner_edge(1), self.columns[1].blocks[t])
            self.axes.add_patch(PathPatch(path, facecolor=_BAND_FILL, edgecolor="none", zorder=0))

    def _blocks(self, side: int) -> None:
        from matplotlib.patches import FancyBboxPatch

        start, stop = self._bar_edges(side)
        for top, bottom in self.columns[side].blocks.values():
            box = FancyBboxPatch(
                (start - 0.06, top),
                stop - start + 0.12,
                bottom - top,
                boxstyle="round,pad=0,rounding_size=0.04",
                facecolor=_BLOCK_FILL,
                edgecolor=_BLOCK_EDGE,
                linewidth=0.6,
                zorder=1,
            )
            self.axes.add_patch(box)

    def _bars(self, side: int, network: LayerSequence, matched: set[int], colours: dict[str, str]) -> None:
        from matplotlib.patches import Rectangle

        start, stop = self._bar_edges(side)
        for index, bar in self.columns[side].bars.items():
            colour = colours[str(network.layers[index].kind)]
            inset = 0.12 * (bar.bottom - bar.top)
            self.axes.add_patch(
                Rectangle(
                    (start, bar.top + inset),
                    stop - start,
                    bar.bottom - bar.top - 2 * inset,
                    facecolor=colour if index in matched else "white",
                    edgecolor=colour,
                    linewidth=0.7,
                    zorder=3,
                )
            )

    def _labels(self, side: int) -> None:
        edge = self._bar_edges(side)[side]
        away = 1.0 if side else -1.0
        for label in self.columns[side].labels:
            near, far = edge + away * 0.08, edge + away * 0.24
            self.axes.plot([near, far], [label.at, label.placed], color="#B6BCC6", linewidth=0.6, zorder=1)
            self._text(
                far + away * 0.04,
                label.placed,
                shortened(label.text, _LABEL_CHARACTERS),
                ha="left" if side else "right",
                fontsize=_LABEL_SIZE,
                color="black" if label.strong else "#374151",
                weight="bold" if label.strong else "normal",
            )

    def _lines(self, colours: dict[str, str]) -> None:
        from matplotlib.patches import PathPatch

        start, stop = self._inner_edge(0), self._inner_edge(1)
        for s, t in self.alignment.indices:
            layer = self.alignment.source.layers[s]
            score = layer_score(layer, self.alignment.target.layers[t])
            line = PathPatch(
                _curve(start, self.columns[0].bars[s].centre, stop, self.columns[1].bars[t].centre),
                facecolor="none",
                edgecolor=colours[str(layer.kind)],
                linewidth=1.3,
                alpha=_opacity(score),
                capstyle="butt",
                zorder=2,
            )
            line.set_gid(f"pair-{s}-{t}")
            self.axes.add_patch(line)

    def _header(self, source_name: str, target_name: str, key: _Key) -> None:
        alignment = self.alignment
        room = int((self.width - 2 * _MARGIN) / _TITLE_CHARACTER) - len(_ARROW)
        source_room = max(room // 2, room - len(target_name))
        source_text = shortened(source_name, source_room)
        names = f"{source_text}{_ARROW}{shortened(target_name, room - len(source_text))}"
        matched = (
            f"{len({pair[side] for pair in alignment.indices})} of {network.scored} {role} layers"
            for side, (role, network) in enumerate((("source", alignment.source), ("target", alignment.target)))
        )
        numbers = f"{' and '.join(matched)} matched, score {alignment.score:.2f}, directed {alignment.directed:.3f}"
        centre = self.width / 2
        self._text(centre, _MARGIN - key.header, names, ha="center", fontsize=12, weight="bold")
        self._text(centre, _MARGIN + 0.24 - key.header, numbers, ha="center", fontsize=8.5, color=_QUIET)
        for side, role in enumerate(("source", "target")):
            self._text(sum(self._bar_edges(side)) / 2, -0.2, role, ha="center", fontsize=8.5, color=_QUIET)
        self._legends(key)

    def _legends(self, key: _Key) -> None:
        """Kinds of layers in the upper rows, what the signs mean in the last."""
        from matplotlib.legend import Legend
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        kinds: list[Any] = [Patch(facecolor=colour, label=kind) for kind, colour in key.entries]
        signs: list[Any] = [
            Patch(facecolor="white", edgecolor=_QUIET, label="no partner"),
            Patch(facecolor=_BLOCK_FILL, edgecolor=_BLOCK_EDGE, label="block"),
        ]
        signs += [
            Line2D([], [], color="black", linewidth=1.5, alpha=_opacity(score), label=f"layer score {score:g}")
            for score in (1.0, 0.5, 0.1)
        ]
        top = _MARGIN + 0.4 - key.header
        for handles, columns, y in ((kinds, key.per_row, top), (signs, len(signs), top + key.rows * _LEGEND_ROW)):
            legend = Legend(
                self.axes,
                handles,
                [str(handle.get_label()) for handle in handles],
                loc="upper center",
                bbox_to_anchor=(self.width / 2, y),
                bbox_transform=self.axes.transData,
                ncols=min(columns, len(handles)),
                frameon=False,
                fontsize=_LABEL_SIZE,
                handlelength=1.4,
                columnspacing=1.4,
                borderpad=0,
                borderaxespad=0,
                labelspacing=0.4,
            )
            self.axes.add_artist(legend)

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        # A name is no formula: a dollar sign in it must not start one.
        self.axes.text(x, y, text, va="center", parse_math=False, **style)


def _natural_height(network: LayerSequence) -> float:
    """The height at which layers can be told apart and the labels of one network do not collide."""
    layer = _LAYER_WITH_NAME if network.scored <= _NAMED_LAYERS else _LAYER
    weighted = [element for element in network.elements if _weighted(network, element.start, element.stop)]
    return min(_TALLEST, max(2.0, network.scored * layer + len(weighted) * _GAP, len(weighted) * _LABEL_STEP))


def _lay_out(network: LayerSequence, height: float) -> _Column:
    """Places the weighted layers of a network from 0 to ``height``, with a gap between top-level elements."""
    runs = [_weighted(network, element.start, element.stop) for element in network.elements]
    gaps = max(0, sum(bool(run) for run in runs) - 1)
    gap = min(_GAP, 0.3 * height / max(1, gaps))
    layer = (height - gap * gaps) / max(1, network.scored)
    bars: dict[int, _Bar] = {}
    blocks: dict[int, tuple[float, float]] = {}
    anchors: list[tuple[str, float, bool]] = []
    y = 0.0
    for element, (run, label) in enumerate(zip(runs, element_labels(network), strict=True)):
        if not run:
            continue
        top = y
        for index in run:
            bars[index] = _Bar(index, y, y + layer)
            y += layer
        if network.elements[element].is_block:
            blocks[element] = (top - gap * 0.3, y + gap * 0.3)
        anchors += _names(network, element, label, [bars[index] for index in run])
        y += gap
    return _Column(bars, blocks, _spread(anchors, height))


def _weighted(network: LayerSequence, start: int, stop: int) -> list[int]:
    """Activations, pooling and the like are left out of the picture: nothing can be paired with them."""
    return [index for index in range(start, stop) if network.layers[index].kind is not None]


def _names(network: LayerSequence, element: int, label: str, bars: Sequence[_Bar]) -> list[tuple[str, float, bool]]:
    """What to write beside one element: text, height, and whether it names a block."""
    if not network.elements[element].is_block:
        return [(label, bars[0].centre, False)]
    if network.scored > _NAMED_LAYERS:
        return [(label, (bars[0].top + bars[-1].bottom) / 2, True)]
    first, *rest = [(network.layers[bar.layer].name, bar.centre, False) for bar in bars]
    return [first, *((f"·{within(name, label)}" if name != label else name, at, strong) for name, at, strong in rest)]


def _spread(anchors: Sequence[tuple[str, float, bool]], height: float) -> tuple[_Label, ...]:
    """Moves labels apart until none covers the next, staying within the drawing; too many are thinned out."""
    room = max(1, int(height / _LABEL_STEP) + 1)
    kept = anchors[:: -(-len(anchors) // room)] if anchors else ()
    places = spread([at for _, at, _ in kept], _LABEL_STEP, height)
    return tuple(_Label(text, at, placed, strong) for (text, at, strong), placed in zip(kept, places, strict=True))


def _label_width(column: _Column) -> float:
    longest = max((len(shortened(label.text, _LABEL_CHARACTERS)) for label in column.labels), default=0)
    return 0.35 + _CHARACTER * max(longest, 8)


def _element_at(network: LayerSequence, layer: int) -> int:
    return next(i for i, (start, stop, _) in enumerate(network.elements) if start <= layer < stop)


def _key(alignment: Alignment, width: float) -> _Key:
    """The kinds of layers of both networks, the most frequent first, and how many fit in a row of the legend."""
    layers = (*alignment.source.layers, *alignment.target.layers)
    count = Counter(layer.kind for layer in layers if layer.kind is not None)
    colours = _colours(sorted(count, key=lambda kind: (-count[kind], kind)))
    entries = [(kind, colour) for kind, colour in colours.items() if colour != _OTHER_COLOUR]
    if len(entries) < len(colours):
        entries.append((f"{len(colours) - len(entries)} other kinds", _OTHER_COLOUR))
    entry_width = 0.5 + _CHARACTER * max(len(text) for text, _ in entries)
    return _Key(colours, tuple(entries), max(1, int((width - 2 * _MARGIN) / entry_width)))


def _colours(kinds: Sequence[str]) -> dict[str, str]:
    """A colour of its own for each kind, as far as the palette goes; one grey for those beyond it."""
    colours: dict[str, str] = {}
    for kind in kinds:
        usual = _USUAL.get(kind.partition(".")[0].rstrip("123d"))
        if usual is not None and usual not in colours.values():
            colours[kind] = usual
    free = iter([colour for colour in _COLOURS if colour not in colours.values()])
    return {kind: colours.get(kind) or next(free, _OTHER_COLOUR) for kind in kinds}


def _opacity(score: float) -> float:
    return _FAINTEST + (1 - _FAINTEST) * min(1.0, max(0.0, score))


def _curve(x0: float, y0: float, x1: float, y1: float) -> Any:
    """An S from one bar to another, level at both ends so that neighbouring lines do not cut the bars."""
    from matplotlib.path import Path as Outline

    reach = 0.4 * (x1 - x0)
    vertices = [(x0, y0), (x0 + reach, y0), (x1 - reach, y1), (x1, y1)]
    return Outline(vertices, [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4])


def _band(x0: float, left: tuple[float, float], x1: float, right: tuple[float, float]) -> Any:
    """The area between two such curves: from the top and bottom of one block to those of another."""
    from matplotlib.path import Path as Outline

    reach = 0.4 * (x1 - x0)
    curve = [Outline.CURVE4] * 3
    vertices = [
        (x0, left[0]),
        (x0 + reach, left[0]),
        (x1 - reach, right[0]),
        (x1, right[0]),
        (x1, right[1]),
        (x1 - reach, right[1]),
        (x0 + reach, left[1]),
        (x0, left[1]),
        (x0, left[0]),
    ]
    return Outline(vertices, [Outline.MOVETO, *curve, Outline.LINETO, *curve, Outline.CLOSEPOLY])
