"""A folder with networks, and the command line run in it as a user runs it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from pyassemble import cli
from pyassemble.network.sources import load_network

if TYPE_CHECKING:
    from pathlib import Path

NETWORKS = """
from torch import nn

def network(width, classes):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )

def small(): return network(4, 2)
def large(): return network(8, 2)
def broken(): raise ValueError("no such width")
def leaving(): raise SystemExit(3)
def no_weights(): return nn.Sequential(nn.ReLU())
def only_linear(): return nn.Sequential(nn.Linear(3, 3))
"""


class Work:
    """A folder with networks, and the command line run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nets.py").write_text(NETWORKS)
        self.small = f"{folder / 'nets.py'}:small"
        self.large = f"{folder / 'nets.py'}:large"
        self.weights = folder / "small.safetensors"
        self.out = folder / "out.safetensors"
        torch.manual_seed(5)
        self.source = load_network(self.small)
        save_file(self.source.state_dict(), self.weights)

    def spec(self, factory: str) -> str:
        return f"{self.folder / 'nets.py'}:{factory}"

    def run(self, *arguments: object) -> Result:
        return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(cli.app, [str(a) for a in arguments])

    def good(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def error(self, *arguments: object) -> str:
        """The one line that a failing command leaves on stderr."""
        result = self.run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
        return result.stderr

    def transfer(self, *arguments: object) -> str:
        return self.good("transfer", self.small, self.large, "--weights", self.weights, *arguments)
