"""``pyassemble score``: training-free scores of networks, beside their sizes."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pyassemble.atomic import replacing
from pyassemble.cli.console import working
from pyassemble.cli.networks import parse
from pyassemble.cli.options import NETWORK_HELP, OPTIONS_PANEL, OUTPUT_PANEL, WEIGHTS_PANEL
from pyassemble.cli.outputs import check_outputs
from pyassemble.cli.program import app
from pyassemble.errors import PyAssembleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pyassemble.network.sources import NetworkSpec


class Statistics(StrEnum):
    """Of batch normalization; the names of :data:`pyassemble.assemble.batch_statistics.STATISTICS`."""

    STORED = "stored"
    BATCH = "batch"


@app.command()
def score(
    networks: Annotated[list[str], typer.Argument(metavar="NETWORK...", help=f"{NETWORK_HELP}.", show_default=False)],
    data: Annotated[str, typer.Option(help="A folder of class folders, FILE.parquet, or torchvision:NAME:FOLDER.")],
    images: Annotated[int, typer.Option(min=1, help="How many of them.", rich_help_panel=OPTIONS_PANEL)] = 2048,
    size: Annotated[
        int, typer.Option(min=1, help="Height and width that they are brought to.", rich_help_panel=OPTIONS_PANEL)
    ] = 224,
    channels: Annotated[int, typer.Option(help="3, or 1 for grey.", rich_help_panel=OPTIONS_PANEL)] = 3,
    alpha: Annotated[float, typer.Option(help="Amplitude of the perturbation.", rich_help_panel=OPTIONS_PANEL)] = 0.01,
    statistics: Annotated[
        Statistics,
        typer.Option(
            help="Of batch normalization: the networks' own, or, for untrained ones, the images'.",
            rich_help_panel=OPTIONS_PANEL,
        ),
    ] = Statistics.STORED,
    seed: Annotated[
        int, typer.Option(min=0, help="Of perturbation and random weights.", rich_help_panel=OPTIONS_PANEL)
    ] = 0,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="With published weights.", rich_help_panel=WEIGHTS_PANEL)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Where scores are kept; those already there are not computed again.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Drop what --out holds.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
) -> None:
    """How far a small perturbation moves each network's last features: higher is better, no training needed.

    Beside each score stands the network's size: a ranking by size alone is what the score has to beat.
    """
    from pyassemble.training.image_files import Preprocessing, read_images

    specs = [parse(text) for text in dict.fromkeys(networks)]
    written = [] if out is None else [("--out", out)]
    check_outputs(written)
    conditions = {
        "data": data,
        "images": images,
        "size": size,
        "channels": channels,
        "alpha": alpha,
        "statistics": statistics.value,
        "seed": seed,
        "pretrained": pretrained,
    }
    kept = _Scores(out, conditions, force)
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.5,))
    files = read_images(data, Preprocessing(channels, size, size, mean, std))
    if not len(files):
        raise PyAssembleError(f"data {data!r} holds no image")
    with working("reading the images"):
        pictures, _ = files.tensors(images)
    try:
        for spec in specs:
            if spec.text not in kept.rows:
                kept.add(spec.text, _scored(spec, pictures, conditions))
    except KeyboardInterrupt:
        where = "nothing was kept" if out is None else f"finished scores are in {out}; the same command goes on there"
        raise KeyboardInterrupt(where) from None
    _print([spec.text for spec in specs], kept)


def _scored(spec: NetworkSpec, pictures: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from pyassemble.assemble import score_table
    from pyassemble.network.sources import load_network

    torch.manual_seed(conditions["seed"])
    with working(f"building {spec.text}"):
        network = load_network(spec, pretrained=conditions["pretrained"])
    options = {name: conditions[name] for name in ("alpha", "seed", "statistics")}
    with working(f"scoring {spec.text} on {len(pictures)} images"):
        (found,) = score_table({spec.text: network}, pictures, **options)
    return {"score": found.score, "parameters": found.parameters}


class _Scores:
    """Finished scores, and the file that keeps them."""

    def __init__(self, file: Path | None, conditions: dict[str, Any], force: bool) -> None:
        from pyassemble.report.score import SCORE_FORMAT, SCORE_VERSION

        self._file, self._conditions = file, conditions
        self.rows: dict[str, dict[str, Any]] = {}
        if file is None or not file.exists() or force:
            return
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            known, rows = document["conditions"], dict(document["networks"])
            if document["format"] != SCORE_FORMAT or document["version"] != SCORE_VERSION:
                raise KeyError("format")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PyAssembleError(f"{file} holds no scores; --force replaces it") from error
        if known != conditions:
            name = next(name for name in conditions if known.get(name) != conditions[name])
            raise PyAssembleError(
                f"{file} holds scores with {name} {known.get(name)!r}, now {conditions[name]!r}; --force replaces them"
            )
        self.rows = rows

    def add(self, name: str, row: dict[str, Any]) -> None:
        from pyassemble.report.score import SCORE_FORMAT, SCORE_VERSION

        self.rows[name] = row
        if self._file is not None:
            document = {
                "format": SCORE_FORMAT,
                "version": SCORE_VERSION,
                "conditions": self._conditions,
                "networks": self.rows,
            }
            with replacing(self._file) as temporary:
                temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _print(names: Sequence[str], kept: _Scores) -> None:
    by_size = sorted(names, key=lambda name: -kept.rows[name]["parameters"])
    table = Table()
    table.add_column("network", overflow="fold")
    for column in ("score", "parameters", "place by size"):
        table.add_column(column, justify="right")
    for name in sorted(names, key=lambda name: -kept.rows[name]["score"]):
        row = kept.rows[name]
        table.add_row(name, f"{row['score']:.4f}", f"{row['parameters']:,}", str(by_size.index(name) + 1))
    Console().print(table)
