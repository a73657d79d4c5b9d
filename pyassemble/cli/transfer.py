"""``pyassemble transfer``: a source's weights written into a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.networks import is_tensors, named, parse, source_with_weights, with_weights
from pyassemble.cli.options import (
    OPTIONS_PANEL,
    OUTPUT_PANEL,
    WEIGHTS_PANEL,
    Json,
    Matching,
    MatchingOption,
    Method,
    Network,
    Picture,
    ShowTable,
    Source,
    Standardization,
    StandardizationOption,
)
from pyassemble.cli.outputs import Outputs
from pyassemble.cli.program import app
from pyassemble.errors import NetworkSpecError, WeightsFileError

if TYPE_CHECKING:
    from torch import nn

    from pyassemble.network.sources import NetworkSpec
    from pyassemble.transfer import TransferReport


@app.command()
def transfer(
    source: Source,
    target: Network,
    weights: Annotated[
        Path | None, typer.Option(help="The source's weights.", rich_help_panel=WEIGHTS_PANEL, show_default=False)
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained",
            help="Use the weights published for it, or its factory's.",
            rich_help_panel=WEIGHTS_PANEL,
        ),
    ] = False,
    target_weights: Annotated[
        Path | None,
        typer.Option(help="The target's weights; random without.", rich_help_panel=WEIGHTS_PANEL, show_default=False),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the target's random weights and of random choices.", rich_help_panel=WEIGHTS_PANEL),
    ] = 0,
    method: Annotated[
        Method,
        typer.Option(help="How a tensor is fitted into another shape.", rich_help_panel=OPTIONS_PANEL),
    ] = Method.CLIP,
    standardization: StandardizationOption = Standardization.BLOCKS,
    matching: MatchingOption = Matching.DP,
    buffers: Annotated[
        bool,
        typer.Option(
            "--buffers/--no-buffers", help="Whether batch-norm statistics travel.", rich_help_panel=OPTIONS_PANEL
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Where the target's weights go.", rich_help_panel=OUTPUT_PANEL),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.", rich_help_panel=OUTPUT_PANEL)] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report only; no weights needed.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    table: ShowTable = True,
    json_to: Json = None,
    picture: Picture = None,
) -> None:
    """Write a source's weights into a target of any architecture, and save the target."""
    import torch

    import pyassemble
    from pyassemble.report import alignment_summary, transfer_json, transfer_summary, transfer_table

    source_spec, target_spec = parse(source), parse(target)
    outputs = Outputs.checked(json_to, picture, out)
    _check_weights(source_spec, weights, pretrained, dry_run)
    if not dry_run:
        _check_out(out, force)
    source_network = source_with_weights(source_spec, weights, pretrained)
    torch.manual_seed(seed)
    with working(f"building {target}"):
        target_network = with_weights(target_spec, target_weights)
    with working("transferring"):
        report = pyassemble.transfer(
            source_network,
            target_network,
            standardization=standardization.value,
            matching=matching.value,
            method=method.value,
            buffers=buffers,
            dry_run=dry_run,
            seed=seed,
        )
    if out is not None and not dry_run:
        _save(out, target_network, source, target, report)
    outputs.write({**transfer_json(report), **named(source, target)}, report.alignment, source, target)
    if outputs.json.to_stdout:
        return
    console = Console()
    if table:
        console.print(transfer_table(report), "")
    print_line(console, alignment_summary(report.alignment))
    print_line(console, transfer_summary(report))
    print_line(console, "dry run: nothing was written" if dry_run else f"saved {out}")


def _check_weights(spec: NetworkSpec, weights: Path | None, pretrained: bool, dry_run: bool) -> None:
    """A source needs exactly one set of weights; random ones are never what was meant."""
    if weights is not None and pretrained:
        raise NetworkSpecError("--weights and --pretrained exclude each other: one source, one set of weights")
    if is_tensors(spec) and (weights is not None or pretrained):
        raise NetworkSpecError(f"{spec.text!r} is itself the source's weights; --weights and --pretrained do not apply")
    if not (weights or pretrained or spec.holds_weights or dry_run):
        raise NetworkSpecError(
            f"source {spec.text!r} has no trained weights to transfer; give them with --weights FILE, take the "
            "published ones with --pretrained, or look at the plan with --dry-run"
        )


def _check_out(out: Path | None, force: bool) -> None:
    from pyassemble.network.weights import check_writable

    if out is None:
        raise WeightsFileError("no --out FILE.safetensors to save the target to; --dry-run reports without saving")
    check_writable(out)
    if out.exists() and not force:
        raise WeightsFileError(f"{out} exists; --force overwrites it")


def _save(out: Path, network: nn.Module, source: str, target: str, report: TransferReport) -> None:
    from pyassemble import __version__
    from pyassemble.network.weights import write_weights

    metadata = {
        **named(source, target),
        "method": report.method,
        "matching": report.alignment.matching,
        "standardization": report.alignment.standardization,
        "coverage": f"{report.coverage:.6f}",
        "pyassemble": __version__,
    }
    write_weights(out, network.state_dict(), metadata)
