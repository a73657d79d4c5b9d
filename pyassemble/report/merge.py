"""What a merge did, for people and for programs: tables, JSON, and one self-contained page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from pyassemble.report.merge_picture import merge_figure
from pyassemble.report.page import Section, heading, picture, table, write_page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

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
    shown = _table()
    shown.add_column("layer", overflow="fold")
    shown.add_column("unit", no_wrap=True)
    for number in range(len(document["gates"][0]["kept"])):
        shown.add_column(f"from {number + 1}", justify="right", no_wrap=True)
    for gates in document["gates"]:
        shown.add_row(Text(gates["group"]), gates["unit"], *map(str, gates["kept"]))
    return shown


def accuracy_table(document: Mapping[str, Any]) -> Table:
    """Accuracy and loss of the teachers and of the network at each stage."""
    shown = _table()
    shown.add_column("network", overflow="fold")
    shown.add_column("accuracy", justify="right", no_wrap=True)
    shown.add_column("loss", justify="right", no_wrap=True)
    for row in document["accuracy"]:
        shown.add_row(Text(row["name"]), f"{row['accuracy']:.1%}", f"{row['loss']:.3f}")
    return shown


def write_merge_html(document: Mapping[str, Any], path: str | Path) -> None:
    """Writes a page with the accuracy table, the gates of each layer and the training curves; it loads nothing.

    Args:
        document: From :func:`merge_json`.
        path: ``.html``; replaced if it exists, once the page is complete.

    Raises:
        UnknownOptionError: Another suffix.
    """
    write_page([merge_section(document)], path)


def merge_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of a merge.

    Args:
        document: From :func:`merge_json`.
    """
    run = document["run"]
    teachers = [f"from {number + 1}" for number in range(len(run["networks"]))]
    with merge_figure(document) as figure:
        curves = picture(figure)
    return Section(
        f"{len(run['networks'])} networks merged",
        (
            table(
                ("network", "accuracy", "loss"),
                [(row["name"], f"{row['accuracy']:.1%}", f"{row['loss']:.3f}") for row in document["accuracy"]],
            ),
            heading("Training, and where the kept units come from"),
            curves,
            heading("Kept units of each layer"),
            table(
                ("layer", "unit", *teachers),
                [(gates["group"], gates["unit"], *gates["kept"]) for gates in document["gates"]],
            ),
            heading("This run"),
            table((), [(name, _text(value)) for name, value in run.items()], numbers=False),
        ),
    )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
