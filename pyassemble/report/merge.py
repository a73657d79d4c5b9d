"""What a merge did, for people and for programs: tables, JSON, and one self-contained page."""

from __future__ import annotations

import html
import io
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from pyassemble.atomic import replacing
from pyassemble.report.heatmap_html import check_page_path
from pyassemble.report.merge_picture import merge_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyassemble.merge import GateGroup, MergeResult
    from pyassemble.training.metrics import Quality

MERGE_FORMAT = "pyassemble.merge-report"
MERGE_VERSION = 1


@dataclass(frozen=True)
class Measured:
    """One row of the accuracy table.

    Attributes:
        name: Which network.
        accuracy: Share of validation images whose class it ranks first; nan if it was not measured.
        loss: Mean cross entropy there.
    """

    name: str
    accuracy: float
    loss: float


def measured(result: MergeResult, teachers: Mapping[str, Quality]) -> list[Measured]:
    """The accuracy table: teachers, their mean, and the network at each stage.

    Args:
        result: Of :func:`pyassemble.train_merged` with validation images.
        teachers: Each teacher's quality on the same images, by name.
    """
    rows = [Measured(name, quality.accuracy, quality.loss) for name, quality in teachers.items()]
    last = {entry["stage"]: entry["validation"] for entry in result.history}
    names = {
        "start": "mean of their outputs",
        "importance": "wide network, importance learned",
        "compressed": "compressed",
        "fine-tuning": "merged",
    }
    return rows + [Measured(names[stage], found["accuracy"], found["loss"]) for stage, found in last.items()]


def merge_json(
    result: MergeResult, groups: Mapping[str, GateGroup], rows: Sequence[Measured], run: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON form of a merge: only dicts, lists, strings, numbers and booleans.

    Args:
        result: Of :func:`pyassemble.train_merged`.
        groups: The student's ``gate_groups``.
        rows: The accuracy table.
        run: What the run was given: networks, data, settings.

    Returns:
        ``run``, ``accuracy`` (the table), ``gates`` (for each group what a unit is, how many of each teacher's units
        were kept, and which), and ``history``.
    """
    return {
        "format": MERGE_FORMAT,
        "version": MERGE_VERSION,
        "run": dict(run),
        "accuracy": [asdict(row) for row in rows],
        "gates": [
            {"group": name, "unit": groups[name].unit, "kept": kept, "selection": result.selection[name].tolist()}
            for name, kept in result.kept.items()
        ],
        "history": result.history,
    }


def gates_table(document: Mapping[str, Any]) -> Table:
    """How many units of each group come from each teacher."""
    table = _table()
    table.add_column("layer", overflow="fold")
    table.add_column("unit", no_wrap=True)
    for number in range(len(document["gates"][0]["kept"])):
        table.add_column(f"from {number + 1}", justify="right", no_wrap=True)
    for gates in document["gates"]:
        table.add_row(Text(gates["group"]), gates["unit"], *map(str, gates["kept"]))
    return table


def accuracy_table(document: Mapping[str, Any]) -> Table:
    """Accuracy and loss of the teachers and of the network at each stage."""
    table = _table()
    table.add_column("network", overflow="fold")
    table.add_column("accuracy", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    for row in document["accuracy"]:
        table.add_row(Text(row["name"]), f"{row['accuracy']:.1%}", f"{row['loss']:.3f}")
    return table


def write_merge_html(document: Mapping[str, Any], path: str | Path) -> None:
    """Writes a page with the accuracy table, the gates of each layer and the training curves; it loads nothing.

    Args:
        document: From :func:`merge_json`.
        path: ``.html``; replaced if it exists, once the page is complete.

    Raises:
        UnknownOptionError: Another suffix.
    """
    path = Path(path)
    check_page_path(path)
    with replacing(path) as temporary:
        temporary.write_text(_page(document), encoding="utf-8")


def _page(document: Mapping[str, Any]) -> str:
    picture = io.StringIO()
    with merge_figure(document) as figure:
        figure.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    run = document["run"]
    skeleton = Template(resources.files(__package__).joinpath("merge_page.html").read_text(encoding="utf-8"))
    return skeleton.substitute(
        title=f"{len(run['networks'])} networks merged",
        run=_rows([[name, _text(value)] for name, value in run.items()]),
        accuracy=_rows([[row["name"], f"{row['accuracy']:.1%}", f"{row['loss']:.3f}"] for row in document["accuracy"]]),
        teachers="".join(f"<th>from {number + 1}</th>" for number in range(len(run["networks"]))),
        gates=_rows([[gates["group"], gates["unit"], *map(str, gates["kept"])] for gates in document["gates"]]),
        picture=svg[svg.index("<svg") :],
    )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(rows: list[list[str]]) -> str:
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    return "\n".join(f"<tr>{row}</tr>" for row in cells)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
