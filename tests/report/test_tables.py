"""The tables: every matched layer is there, and 80 columns are enough."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
import torch
from rich.console import Console
from torch import nn

from pyassemble.report import (
    alignment_summary,
    alignment_table,
    transfer_json,
    transfer_summary,
    transfer_table,
)
from pyassemble.transfer import Alignment, TransferReport, align
from pyassemble.transfer import transfer as transfer_weights

if TYPE_CHECKING:
    from rich.table import Table


def printed(table: Table, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width, 2))


@pytest.fixture
def report() -> TransferReport:
    return transfer_weights(network(4), network(8))


@pytest.mark.parametrize("name", ["efficientnets", "transformers"])
def test_mentions_every_pair(name: str, request: pytest.FixtureRequest) -> None:
    alignment: Alignment = request.getfixturevalue(name)
    lines = printed(alignment_table(alignment))
    assert max(map(len, lines)) <= 80
    seen, blocks = [], ("", "")
    for line in lines[2:]:
        cells = line.split()
        if not cells:
            blocks = ("", "")
        elif cells[-1] in ("pair", "pairs"):
            blocks = (cells[0] + ".", cells[1] + ".")
        else:
            seen.append((blocks[0] + cells[0], blocks[1] + cells[1]))
    assert seen == list(alignment.pairs)


def test_pairs_show_shapes_and_scores() -> None:
    lines = printed(alignment_table(align(network(4), network(8))))
    assert [line.split() for line in lines[2:] if line.strip()] == [
        ["0", "0", "4×3×3×3", "→", "8×3×3×3", "0.500"],
        ["1", "1", "4", "→", "8", "0.500"],
        ["4", "4", "2×4", "→", "2×8", "0.500"],
    ]


def test_names_are_no_markup() -> None:
    odd = nn.ModuleDict({"[bold]": nn.Linear(2, 2), "x": nn.Linear(3, 2)})
    assert any("[bold]" in line for line in printed(alignment_table(align(odd, odd))))


def test_alignment_summary(efficientnets: Alignment) -> None:
    assert alignment_summary(efficientnets) == (
        "185 pairs: 185 of 185 target layers matched (0 not), 131 of 131 source layers matched (0 not)"
    )


def test_approximate_is_said() -> None:
    assert "approximate" in alignment_summary(align(network(4).state_dict(), network(8)))


def test_transfer_table(report: TransferReport) -> None:
    lines = [line.split() for line in printed(transfer_table(report))[2:] if line.strip()]
    assert lines[0] == ["0", "0", "4×3×3×3", "→", "8×3×3×3", "50%"]
    assert [line[0] for line in lines] == ["0", "1", "4"]


def test_transfer_summary(report: TransferReport) -> None:
    assert transfer_summary(report) == (
        f"{len(report.tensors)} tensors written, {len(report.untouched)} untouched: "
        f"{report.coverage:.1%} of the target's elements"
    )
    dry = transfer_weights(network(4), network(8), dry_run=True)
    assert "would be written" in transfer_summary(dry)


@pytest.mark.parametrize("method", ["clip", "full", "magnitude"])
def test_transfer_json(method: str) -> None:
    report = transfer_weights(network(8), network(4), method=method)
    document = json.loads(json.dumps(transfer_json(report), allow_nan=False))
    assert document == transfer_json(report)
    assert (document["format"], document["version"]) == ("pyassemble.transfer", 1)
    assert document["coverage"] == report.coverage
    assert [row["target"] for row in document["tensors"]] == [record.target for record in report.tensors]
    assert document["alignment"]["format"] == "pyassemble.alignment"
