"""The commands' group, and what they have in common."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyassemble.cli.console import errors, say
from pyassemble.cli.options import OPTIONS_PANEL
from pyassemble.cli.program import app
from pyassemble.errors import PyAssembleError

if TYPE_CHECKING:
    from pyassemble.zoo import Zoo

zoo = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(zoo, name="zoo", help="Many networks: the best source for a new one, and how similar all are.")

IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--zoo",
        metavar="INDEX.npz",
        help="Index that zoo build wrote; timm's architectures without.",
        rich_help_panel=OPTIONS_PANEL,
        show_default=False,
    ),
]
Workers = Annotated[int, typer.Option(help="How many work at once; -1 for one per core.")]


def open_zoo(index: Path | None) -> Zoo:
    """The zoo of an index file, or that of timm, which is built only where the shipped index is of another version."""
    from pyassemble.zoo import Zoo

    if index is not None:
        return Zoo.load(index)
    found = shipped()
    if found is not None:
        return found
    say(
        "note",
        "yellow",
        "the index in this package is of another version of timm; its architectures are built now "
        "(pyassemble zoo build FILE.npz --timm '*' keeps them)",
    )
    return Zoo.timm(progress=shows_progress())


@cache
def shipped() -> Zoo | None:
    """The index of timm in this package, loaded once per process; not to be added to."""
    from pyassemble.zoo.shipped import shipped_zoo

    return shipped_zoo()


def check_workers(workers: int) -> None:
    """Refuses a number of workers that there cannot be, before any work is done."""
    if workers != -1 and workers < 1:
        raise PyAssembleError(f"--workers is {workers}; accepted: -1 (one per core), 1 and more")


def shows_progress() -> bool:
    """Whether somebody is there to look at a bar."""
    return errors().is_terminal
