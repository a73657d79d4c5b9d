"""``pyassemble quickstart``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyassemble.cli.program import app


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for what it makes.")] = Path("pyassemble-quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Carry a small network into another architecture, and assemble a third from both: a first look."""
    from pyassemble.quickstart import run

    run(out, seed, console=Console())
