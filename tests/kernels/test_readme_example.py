"""The README's example of pruning: its code runs as it stands, and prints what stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

SECTION = "### Pruning a network of timm\n"


def blocks(language: str) -> list[str]:
    """The section's fenced blocks."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ ", readme.partition(SECTION)[2], maxsplit=1, flags=re.MULTILINE)[0]
    return [text for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S) if kind == language]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", text)]


@pytest.fixture
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_is_short() -> None:
    training, _ = blocks("python")
    lines = [line for line in training.splitlines() if line and not line.startswith(("import ", "from "))]
    assert len(lines) <= 20


@pytest.mark.usefixtures("_one_thread")
def test_prunes_and_keeps_the_accuracy() -> None:
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for code in blocks("python"):
            exec(compile(code, "README.md", "exec"), namespace)
    stated = "".join(blocks(""))
    assert re.sub(r"[\d.]+(e-\d+)?", "#", printed.getvalue()) == re.sub(r"[\d.]+(e-\d+)?", "#", stated)

    before, after, cut, size = (numbers(line) for line in printed.getvalue().splitlines())
    assert before[1:] == [224, 224, 100]  # accuracy, gates open, of how many, share
    assert before[0] > 90
    assert after[0] > before[0] - 4
    assert 0.15 * 224 < after[1] < 0.35 * 224
    assert cut[0] == pytest.approx(after[0], abs=0.3)  # one image may sit on the fence
    assert cut[1] < 1e-4
    assert size[1] < 0.5 * size[0]

    # Another processor rounds otherwise, which training enlarges.
    first, second, third, last = map(numbers, stated.splitlines())
    assert [before[0], after[0], after[3], cut[0]] == pytest.approx([first[0], second[0], second[3], third[0]], abs=4)
    assert size == pytest.approx(last, rel=0.2)

    network = namespace["network"]
    widths = [block.conv1.weight.shape[0] for block in namespace["blocks"]]
    assert sum(widths) == after[1]
    assert all(block.conv2.weight.shape[1] == width for block, width in zip(namespace["blocks"], widths, strict=True))
    assert not any("loc" in name for name in network.state_dict())
