"""``pyassemble zoo matrix``: how similar all networks of a zoo are, as a file, a picture and a page."""

from __future__ import annotations

import fnmatch
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.options import OPTIONS_PANEL, OUTPUT_PANEL
from pyassemble.cli.outputs import check_outputs, pictures_written
from pyassemble.cli.zoo.group import IndexOption, Workers, check_workers, open_zoo, shows_progress, zoo
from pyassemble.errors import NetworkSpecError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pyassemble.zoo import Zoo

# What reads a file, as a line of Python.
_READING = {
    ".npz": 'np.load("{out}")["directed"][i, j] = how well names[j] serves names[i]',
    ".npy": 'np.load("{out}", mmap_mode="r")[i, j] = how well names[j] serves names[i], in the order of the zoo',
    ".parquet": 'pd.read_parquet("{out}") has a row for each pair: target, source, directed, symmetric',
}


@zoo.command()
def matrix(
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help=".npz (names, directed), .parquet (a row for each pair), or .npy.", show_default=False
        ),
    ],
    index: IndexOption = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Only networks of these names: 'resnet*'; repeatable.",
            rich_help_panel=OPTIONS_PANEL,
        ),
    ] = None,
    workers: Workers = -1,
    shards: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where finished rows are kept until all are; OUT.shards without.", show_default=False
        ),
    ] = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Draw a clustered heat map, .png or .svg; repeatable.", rich_help_panel=OUTPUT_PANEL
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="A page to explore it with.", rich_help_panel=OUTPUT_PANEL, show_default=False
        ),
    ] = None,
) -> None:
    """The directed similarities of all ordered pairs of a zoo's networks; row = target, column = source.

    An interrupted computation goes on where it was when the command is repeated.
    """
    from pyassemble.zoo.export import check_matrix_path

    check_matrix_path(out)
    check_workers(workers)
    pages = [] if html is None else [("--html", html)]
    check_outputs([("OUT", out), *pictures_written(picture), *pages])
    networks = _selected(open_zoo(index), names or [])
    keep = out.with_name(f"{out.name}.shards") if shards is None else shards
    started = time.monotonic()
    directed = _compute(networks, out, workers, keep)
    seconds = time.monotonic() - started
    _draw(directed, networks, picture or [], html)
    console = Console()
    print_line(console, f"{len(networks):,} networks, {len(networks) ** 2:,} ordered pairs in {seconds:.1f} s: {out}")
    print_line(console, _READING[out.suffix].format(out=out))
    if out.suffix != ".parquet":
        print_line(console, "symmetric similarity: np.sqrt(m * m.T)")
    for path in [*(picture or []), *([] if html is None else [html])]:
        print_line(console, f"drawn: {path}")


def _selected(networks: Zoo, patterns: list[str]) -> Zoo:
    """The networks that any of the patterns matches, in the order of the zoo."""
    if not patterns:
        return networks
    matching: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(networks.names, pattern)
        if not found:
            raise NetworkSpecError(f"none of the zoo's {len(networks)} networks has a name that matches {pattern!r}")
        matching.update(found)
    return networks.select([name for name in networks.names if name in matching])


def _compute(networks: Zoo, out: Path, workers: int, keep: Path) -> npt.NDArray[np.float64]:
    """Computes the matrix and writes its file."""
    from pyassemble.atomic import replacing
    from pyassemble.zoo.export import write_matrix

    progress = shows_progress()
    try:
        if out.suffix == ".npy":
            # Straight into the file: it may be larger than memory.
            with replacing(out) as temporary:
                return networks.similarity_matrix(workers=workers, out=temporary, shards=keep, progress=progress)
        directed = networks.similarity_matrix(workers=workers, shards=keep, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"finished rows are in {keep}; the same command goes on there") from None
    with working(f"writing {out}"):
        write_matrix(directed, networks.names, out)
    return directed


def _draw(directed: npt.NDArray[np.float64], networks: Zoo, pictures: list[Path], html: Path | None) -> None:
    if not pictures and html is None:
        return
    from pyassemble.zoo.export import symmetric_rows

    symmetric = symmetric_rows(directed, 0, len(networks))
    if pictures:
        from pyassemble.report.heatmap import draw_heatmap

        for path in pictures:
            with working(f"drawing {path}"):
                draw_heatmap(symmetric, networks.names, path, title=_title(networks))
    if html is not None:
        from pyassemble.report.heatmap_html import write_heatmap_html
        from pyassemble.report.zoo import record_details

        details = {name: record_details(networks[name]) for name in networks.names}
        with working(f"drawing {html}"):
            write_heatmap_html(symmetric, networks.names, html, details=details)


def _title(networks: Zoo) -> str:
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(networks.libraries.items()))
    return f"Symmetric similarity of {len(networks):,} networks{f' ({libraries})' if libraries else ''}"
