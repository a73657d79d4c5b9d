"""``pyassemble report``: results of other commands on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.options import OUTPUT_PANEL
from pyassemble.cli.outputs import check_outputs
from pyassemble.cli.program import app


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...",
            help="What --json wrote (similarity, transfer, zoo nearest, merge, assemble), what score --out wrote, or "
            "the folder of an assembly.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.html", help="The page.", rich_help_panel=OUTPUT_PANEL, show_default=False)
    ],
) -> None:
    """One self-contained HTML page of tables and pictures from what other commands wrote."""
    from pyassemble.report.heatmap_html import check_page_path
    from pyassemble.report.results import write_report

    check_page_path(out)
    check_outputs([("--out", out)], others=[("RESULT", result) for result in results])
    with working(f"drawing {out}"):
        write_report(results, out)
    print_line(Console(), f"saved {out}")
