"""``pyassemble zoo nearest``: which networks to start a new one from."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.networks import parse
from pyassemble.cli.options import NETWORK_HELP, OPTIONS_PANEL, Json
from pyassemble.cli.outputs import JsonOutput, check_outputs
from pyassemble.cli.zoo.group import IndexOption, open_zoo, zoo
from pyassemble.errors import PyAssembleError

if TYPE_CHECKING:
    from pyassemble.network.sources import NetworkSpec
    from pyassemble.zoo import Entry, Record, Zoo


class Similarity(StrEnum):
    """Which similarity ranks; the names of :data:`pyassemble.zoo.zoo.SIMILARITIES`."""

    SYMMETRIC = "symmetric"
    DIRECTED = "directed"


@zoo.command()
def nearest(
    network: Annotated[
        str, typer.Argument(help=f"{NETWORK_HELP}; or FILE.safetensors, .pt, .pth.", show_default=False)
    ],
    k: Annotated[int, typer.Option("--k", "-k", help="How many.", rich_help_panel=OPTIONS_PANEL)] = 10,
    index: IndexOption = None,
    similarity: Annotated[
        Similarity,
        typer.Option(help="Both ways, or how well each serves this network.", rich_help_panel=OPTIONS_PANEL),
    ] = Similarity.SYMMETRIC,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Only networks with known pretrained weights.", rich_help_panel=OPTIONS_PANEL),
    ] = False,
    json_to: Json = None,
) -> None:
    """The networks of a zoo that are most similar to one, as sources to start it from."""
    from pyassemble.report.zoo import nearest_json, nearest_summary, nearest_table

    if k < 1:
        raise PyAssembleError(f"--k is {k}; accepted: 1 and more")
    spec = parse(network)
    output = JsonOutput.of(json_to)
    check_outputs(output.written)
    candidates = open_zoo(index)
    with working(f"reading {network}"):
        entry = _read(spec, None if index is not None else candidates)
    found = _nearest(candidates, entry, k, similarity, only_with_weights=weights)
    output.write(nearest_json(entry, candidates, found, similarity.value))
    if output.to_stdout:
        return
    console = Console()
    console.print(nearest_table(found), "")
    print_line(console, nearest_summary(entry, candidates, found, similarity.value))


def _read(spec: NetworkSpec, timm: Zoo | None) -> Entry:
    """What the zoo compares of a network; no weights are made or downloaded.

    Args:
        spec: The network.
        timm: The zoo of timm, if it is loaded.
    """
    from pyassemble.network.sources import SpecKind, load_network
    from pyassemble.zoo import Entry
    from pyassemble.zoo.hub import read_repository
    from pyassemble.zoo.shipped import shipped_zoo

    if spec.kind is SpecKind.TIMM:
        # What is known need not be built: importing timm takes longer than all the rest.
        timm = shipped_zoo() if timm is None else timm
        if timm is not None and spec.name in timm:
            return timm.entry(spec.name)
    if spec.kind is SpecKind.HUB:
        repository, _, revision = spec.name.partition("@")
        return read_repository(repository, name=spec.text, revision=revision or None)
    if spec.kind is SpecKind.WEIGHTS and spec.path is not None:
        return Entry.of(spec.text, spec.path)
    # Not without its initialization, as many networks are built: for one, what that imports takes far longer.
    return Entry.of(spec.text, load_network(spec, meta=True))


def _nearest(
    candidates: Zoo, entry: Entry, k: int, similarity: Similarity, *, only_with_weights: bool
) -> list[tuple[Record, float]]:
    asked = k
    while True:
        ranking = candidates.nearest(entry, asked, similarity=similarity.value)
        found = [(candidates[name], value) for name, value in ranking]
        if only_with_weights:
            found = [(record, value) for record, value in found if record.weights is not None]
        if len(found) >= k or asked >= len(candidates):
            return found[:k]
        asked *= 4  # the first of a longer ranking are the shorter one, so nothing is missed
