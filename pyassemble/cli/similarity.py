"""``pyassemble similarity``: how well a source would suit a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pyassemble.cli.console import print_line, working
from pyassemble.cli.networks import named, on_meta, parse, source_on_meta
from pyassemble.cli.options import (
    OPTIONS_PANEL,
    Json,
    Matching,
    MatchingOption,
    Network,
    Picture,
    ShowTable,
    Source,
    Standardization,
    StandardizationOption,
)
from pyassemble.cli.outputs import Outputs
from pyassemble.cli.program import app

if TYPE_CHECKING:
    from pyassemble.transfer import Alignment


@app.command()
def similarity(
    source: Source,
    target: Network,
    directed: Annotated[
        bool, typer.Option("--directed", help="Only source → target.", rich_help_panel=OPTIONS_PANEL)
    ] = False,
    standardization: StandardizationOption = Standardization.BLOCKS,
    matching: MatchingOption = Matching.DP,
    table: ShowTable = True,
    json_to: Json = None,
    picture: Picture = None,
) -> None:
    """How well a source's weights would suit a target, from the shapes of their layers alone."""
    from pyassemble.report import alignment_summary, alignment_table
    from pyassemble.transfer import align

    source_spec, target_spec = parse(source), parse(target)
    outputs = Outputs.checked(json_to, picture)
    source_network = source_on_meta(source_spec)
    with working(f"building {target}"):
        target_network = on_meta(target_spec)
    with working("aligning"):
        forward = align(source_network, target_network, standardization=standardization.value, matching=matching.value)
        backward = None
        if not directed:
            backward = align(
                target_network, source_network, standardization=standardization.value, matching=matching.value
            )
    result = _Similarity(source, target, forward, backward)
    outputs.write(result.document(), forward, source, target)
    if outputs.json.to_stdout:
        return
    console = Console()
    if table:
        console.print(alignment_table(forward), "")
    console.print(result.table())
    print_line(console, alignment_summary(forward))


@dataclass(frozen=True)
class _Similarity:
    """Both directions of a similarity; the way back is missing where only one was asked for."""

    source: str
    target: str
    forward: Alignment
    backward: Alignment | None

    def _symmetric(self, backward: Alignment) -> float:
        return math.sqrt(self.forward.directed * backward.directed)

    def document(self) -> dict[str, Any]:
        directed = {"source_to_target": self.forward.directed}
        symmetric = None
        if self.backward is not None:
            directed["target_to_source"] = self.backward.directed
            symmetric = self._symmetric(self.backward)
        from pyassemble.report.alignment import SIMILARITY_FORMAT, SIMILARITY_VERSION, alignment_json

        return {
            "format": SIMILARITY_FORMAT,
            "version": SIMILARITY_VERSION,
            **named(self.source, self.target),
            "directed": directed,
            "symmetric": symmetric,
            "alignment": alignment_json(self.forward),
        }

    def table(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column()
        grid.add_column(justify="right", style="bold")
        grid.add_row("score", f"{self.forward.score:.4f}")
        grid.add_row("directed, source → target", f"{self.forward.directed:.4f}")
        if self.backward is not None:
            grid.add_row("directed, target → source", f"{self.backward.directed:.4f}")
            grid.add_row("symmetric", f"{self._symmetric(self.backward):.4f}")
        return grid
