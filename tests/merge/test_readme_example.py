"""The README's example of merging: its code runs as it stands, and prints what stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

SECTION = "## Two networks into one of the same size\n"


def blocks(language: str) -> list[str]:
    """The section's fenced blocks."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", readme.partition(SECTION)[2], maxsplit=1, flags=re.MULTILINE)[0]
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S) if kind == language]


def test_merges_two_networks() -> None:
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks("python")[0], "README.md", "exec"), namespace)
    stated, found = blocks("")[0], printed.getvalue()
    assert re.sub(r"\d+(\.\d+)?", "#", found) == re.sub(r"\d+(\.\d+)?", "#", stated)
    # Another processor rounds otherwise, which training enlarges.
    percent = r"(\d+\.\d)%"
    assert list(map(float, re.findall(percent, found))) == pytest.approx(
        list(map(float, re.findall(percent, stated))), abs=6
    )
    result, (first, second) = namespace["result"], namespace["networks"]
    assert type(result.network) is type(first)
    shapes = {name: value.shape for name, value in first.state_dict().items()}
    assert {name: value.shape for name, value in result.network.state_dict().items()} == shapes
    assert float(re.findall(percent, found)[-1]) > 92
    assert not torch.equal(first.state_dict()["conv1.0.weight"], second.state_dict()["conv1.0.weight"])


def test_the_loop_of_ones_own_runs() -> None:
    import pyassemble as pa

    networks = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)) for _ in range(2)]
    namespace: dict[str, Any] = {
        "pa": pa,
        "torch": torch,
        "a": networks[0].eval(),
        "b": networks[1].eval(),
        "example_input": torch.rand(2, 3),
        "epochs": 2,
        "loader": [(torch.rand(6, 3), torch.tensor([0, 1] * 3))] * 2,
        "criterion": torch.nn.CrossEntropyLoss(),
    }
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks("python")[1], "README.md", "exec"), namespace)
    assert printed.getvalue() == "{'0': [4, 4]}\n"
    assert type(namespace["network"]) is torch.nn.Sequential
    assert all(loc.grad is not None for loc in namespace["student"].gate_parameters())
