"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


NETWORK_HELP = "timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, a folder, or path/to/file.py:factory"

# Headings under which the help lists options.
OPTIONS_PANEL = "What is computed"
WEIGHTS_PANEL = "Weights"
OUTPUT_PANEL = "Output"

Network = Annotated[str, typer.Argument(help=f"{NETWORK_HELP}.", show_default=False)]
Source = Annotated[
    str, typer.Argument(help=f"{NETWORK_HELP}; or only tensors: FILE.safetensors, .pt, .pth.", show_default=False)
]
StandardizationOption = Annotated[
    Standardization,
    typer.Option(help="How a network is read: as published, or as it executes.", rich_help_panel=OPTIONS_PANEL),
]
MatchingOption = Annotated[
    Matching,
    typer.Option(help="How layers are paired.", rich_help_panel=OPTIONS_PANEL),
]
ShowTable = Annotated[bool, typer.Option("--table/--no-table", help="Print the table.", rich_help_panel=OUTPUT_PANEL)]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON; - for stdout, alone.", rich_help_panel=OUTPUT_PANEL),
]
Picture = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="Draw the alignment, .png or .svg; repeatable.", rich_help_panel=OUTPUT_PANEL),
]
