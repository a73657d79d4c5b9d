"""The command line: a command reads, validates, calls one public function and prints."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from pyassemble.errors import NetworkSpecError, PyAssembleError, WeightsFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pyassemble.network.sources import NetworkSpec
    from pyassemble.transfer import Alignment, TransferReport

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

SIMILARITY_FORMAT = "pyassemble.similarity"
SIMILARITY_VERSION = 1

_STDOUT = "-"


class Standardization(StrEnum):
    """How a network becomes a sequence; the names of :data:`pyassemble.network.standardize.STANDARDIZATIONS`."""

    BLOCKS = "blocks"
    GRAPH = "graph"


class Matching(StrEnum):
    """How layers are paired; the names of :data:`pyassemble.transfer.MATCHINGS`."""

    DP = "dp"
    DP_FLAT = "dp_flat"
    BIPARTITE = "bipartite"
    N_BIPARTITE = "n_bipartite"
    RANDOM = "random"


class Method(StrEnum):
    """How a tensor is fitted into another shape; the names of :data:`pyassemble.transfer.METHODS`."""

    CLIP = "clip"
    CLIP_NORM = "clip_norm"
    FULL = "full"
    MAGNITUDE = "magnitude"


_NETWORK_HELP = "timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, a folder, or path/to/file.py:factory"
_OPTIONS = "What is computed"
_WEIGHTS = "Weights"
_OUTPUT = "Output"


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Prints warnings as one line on stderr, without the source line that Python shows."""

    def show(message: Warning | str, *args: object, **kwargs: object) -> None:
        _say("warning", "yellow", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _say(kind: str, style: str, message: str) -> None:
    console = _errors()
    console.print(f"[bold {style}]{kind}:[/]", end=" ")
    _print_line(console, " ".join(message.split()))


def _print_line(console: Console, text: str) -> None:
    # No markup: a name in the text may hold brackets. No wrapping: one line stays one line in a log.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Commands(TyperGroup):
    """Turns what the package raises on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; ``--debug`` lets errors through with their traceback."""
        try:
            with _one_line_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _say("interrupted", "red", "nothing further was written")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise  # whoever read the output has left; typer ends quietly
        except (PyAssembleError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            _say("error", "red", str(error))
            raise typer.Exit(EXIT_ERROR) from error


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the ``pyassemble`` command."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from pyassemble import __version__

        print(f"pyassemble {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Reuse pretrained neural networks: transfer across architectures, merge, assemble."""


Network = Annotated[str, typer.Argument(help=f"{_NETWORK_HELP}.", show_default=False)]
Source = Annotated[
    str, typer.Argument(help=f"{_NETWORK_HELP}; or only tensors: FILE.safetensors, .pt, .pth.", show_default=False)
]
StandardizationOption = Annotated[
    Standardization,
    typer.Option(help="How a network is read: as published, or as it executes.", rich_help_panel=_OPTIONS),
]
MatchingOption = Annotated[
    Matching,
    typer.Option(help="How layers are paired.", rich_help_panel=_OPTIONS),
]
ShowTable = Annotated[bool, typer.Option("--table/--no-table", help="Print the table.", rich_help_panel=_OUTPUT)]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON; - for stdout, alone.", rich_help_panel=_OUTPUT),
]
Picture = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Draw the alignment, .png or .svg; repeatable.", rich_help_panel=_OUTPUT),
]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for what it makes.")] = Path("pyassemble-quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Train a small network, carry it into another architecture, and compare: a first look, in about a minute."""
    from pyassemble.quickstart import run

    run(out, seed, console=Console())


@app.command()
def similarity(
    source: Source,
    target: Network,
    directed: Annotated[
        bool, typer.Option("--directed", help="Only source → target.", rich_help_panel=_OPTIONS)
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

    source_spec, target_spec = _parse(source), _parse(target)
    outputs = _Outputs.checked(json_to, picture)
    source_network = _source_on_meta(source_spec)
    with _working(f"building {target}"):
        target_network = _on_meta(target_spec)
    with _working("aligning"):
        forward = align(source_network, target_network, standardization=standardization.value, matching=matching.value)
        backward = None
        if not directed:
            backward = align(
                target_network, source_network, standardization=standardization.value, matching=matching.value
            )
    result = _Similarity(source, target, forward, backward)
    outputs.write(result.document(), forward, source, target)
    if outputs.to_stdout:
        return
    console = Console()
    if table:
        console.print(alignment_table(forward), "")
    console.print(result.table())
    _print_line(console, alignment_summary(forward))


@app.command()
def transfer(
    source: Source,
    target: Network,
    weights: Annotated[
        Path | None, typer.Option(help="The source's weights.", rich_help_panel=_WEIGHTS, show_default=False)
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained", help="Use the weights published for the source, or its factory's.", rich_help_panel=_WEIGHTS
        ),
    ] = False,
    target_weights: Annotated[
        Path | None,
        typer.Option(help="The target's weights; random without.", rich_help_panel=_WEIGHTS, show_default=False),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the target's random weights and of random choices.", rich_help_panel=_WEIGHTS)
    ] = 0,
    method: Annotated[
        Method,
        typer.Option(help="How a tensor is fitted into another shape.", rich_help_panel=_OPTIONS),
    ] = Method.CLIP,
    standardization: StandardizationOption = Standardization.BLOCKS,
    matching: MatchingOption = Matching.DP,
    buffers: Annotated[
        bool,
        typer.Option("--buffers/--no-buffers", help="Whether batch-norm statistics travel.", rich_help_panel=_OPTIONS),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Where the target's weights go.", rich_help_panel=_OUTPUT),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.", rich_help_panel=_OUTPUT)] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report only; no weights needed.", rich_help_panel=_OUTPUT)
    ] = False,
    table: ShowTable = True,
    json_to: Json = None,
    picture: Picture = None,
) -> None:
    """Write a source's weights into a target of any architecture, and save the target."""
    import torch

    import pyassemble
    from pyassemble.report import alignment_summary, transfer_json, transfer_summary, transfer_table

    source_spec, target_spec = _parse(source), _parse(target)
    outputs = _Outputs.checked(json_to, picture, out)
    _check_weights(source_spec, weights, pretrained, dry_run)
    if not dry_run:
        _check_out(out, force)
    source_network = _source_with_weights(source_spec, weights, pretrained)
    torch.manual_seed(seed)
    with _working(f"building {target}"):
        target_network = _with_weights(target_spec, target_weights)
    with _working("transferring"):
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
    outputs.write({**transfer_json(report), **_named(source, target)}, report.alignment, source, target)
    if outputs.to_stdout:
        return
    console = Console()
    if table:
        console.print(transfer_table(report), "")
    _print_line(console, alignment_summary(report.alignment))
    _print_line(console, transfer_summary(report))
    _print_line(console, "dry run: nothing was written" if dry_run else f"saved {out}")


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
        from pyassemble.report import alignment_json

        return {
            "format": SIMILARITY_FORMAT,
            "version": SIMILARITY_VERSION,
            **_named(self.source, self.target),
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


@dataclass(frozen=True)
class _Outputs:
    """Where a result goes besides the terminal."""

    json_file: Path | None
    to_stdout: bool
    pictures: tuple[Path, ...]

    @classmethod
    def checked(cls, json_to: str | None, pictures: list[Path] | None, out: Path | None = None) -> _Outputs:
        """Takes the options, and refuses what could not be written before any work is done for it.

        ``out`` is not among the outputs; it is only compared with them, as no two may be one file.
        """
        from pyassemble.atomic import check_replaceable
        from pyassemble.report.picture import check_picture_path

        json_file = Path(json_to) if json_to not in (None, _STDOUT) else None
        for path in pictures or ():
            check_picture_path(path)
        written = [("--picture", path) for path in pictures or ()]
        if json_file is not None:
            written.append(("--json", json_file))
        _check_distinct([("--out", out), *written] if out is not None else written)
        for _, path in written:
            check_replaceable(path)
        return cls(json_file, json_to == _STDOUT, tuple(pictures or ()))

    def write(self, document: dict[str, Any], alignment: Alignment, source: str, target: str) -> None:
        from pyassemble.atomic import replacing
        from pyassemble.report import draw_alignment

        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        if self.json_file is not None:
            with replacing(self.json_file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.to_stdout:
            sys.stdout.write(text)
        for path in self.pictures:
            with _working(f"drawing {path}"):
                draw_alignment(alignment, path, source_name=source, target_name=target)


def _named(source: str, target: str) -> dict[str, str]:
    return {"source": source, "target": target}


def _parse(text: str) -> NetworkSpec:
    from pyassemble.network.sources import NetworkSpec

    return NetworkSpec.parse(text)


def _on_meta(spec: NetworkSpec) -> nn.Module:
    from pyassemble.network.sources import load_network

    return load_network(spec, meta=True)


def _with_weights(spec: NetworkSpec, weights: Path | None) -> nn.Module:
    from pyassemble.network.sources import load_network

    return load_network(spec, weights=weights)


def _source_on_meta(spec: NetworkSpec) -> nn.Module | Path:
    """A source for comparing shapes: a network without weights, or the file that its tensors are in."""
    if _is_tensors(spec):
        return _file_of(spec)
    with _working(f"building {spec.text}"):
        return _on_meta(spec)


def _source_with_weights(spec: NetworkSpec, weights: Path | None, pretrained: bool) -> nn.Module | Path:
    from pyassemble.network.sources import load_network

    if _is_tensors(spec):
        return _file_of(spec)
    doing = "fetching" if pretrained else "building"
    with _working(f"{doing} {spec.text}"):
        return load_network(spec, weights=weights, pretrained=pretrained)


def _is_tensors(spec: NetworkSpec) -> bool:
    from pyassemble.network.sources import SpecKind

    return spec.kind is SpecKind.WEIGHTS


def _file_of(spec: NetworkSpec) -> Path:
    if spec.path is None:
        raise AssertionError(f"{spec.kind} has no path")
    return spec.path


def _check_weights(spec: NetworkSpec, weights: Path | None, pretrained: bool, dry_run: bool) -> None:
    """A source needs exactly one set of weights; random ones are never what was meant."""
    if weights is not None and pretrained:
        raise NetworkSpecError("--weights and --pretrained exclude each other: one source, one set of weights")
    if _is_tensors(spec) and (weights is not None or pretrained):
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


def _check_distinct(written: list[tuple[str, Path]]) -> None:
    """Of two outputs in one file only the later would be left."""
    options: dict[str, str] = {}
    for option, path in written:
        file = os.path.realpath(path)
        if file in options:
            raise PyAssembleError(f"{options[file]} and {option} both name {path}; each output needs a file of its own")
        options[file] = option


def _save(out: Path, network: nn.Module, source: str, target: str, report: TransferReport) -> None:
    from pyassemble import __version__
    from pyassemble.network.weights import write_weights

    metadata = {
        **_named(source, target),
        "method": report.method,
        "matching": report.alignment.matching,
        "standardization": report.alignment.standardization,
        "coverage": f"{report.coverage:.6f}",
        "pyassemble": __version__,
    }
    write_weights(out, network.state_dict(), metadata)


def _errors() -> Console:
    # Made anew each time: stderr may have been replaced since the import.
    return Console(stderr=True)


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A spinner on stderr while something takes its time; nothing where stderr is no terminal."""
    from rich.markup import escape

    with _errors().status(escape(what)):
        yield
