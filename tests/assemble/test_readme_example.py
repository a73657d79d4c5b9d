"""The README's example of assembling by hand: its code runs as it stands, and prints what stands there."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

SECTION = "## A new network from blocks of others\n"


def test_runs_and_prints_what_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ ", readme.partition(SECTION)[2], maxsplit=1, flags=re.MULTILINE)[0]
    (_, code), (_, stated) = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.M | re.S)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), namespace)
    assert printed.getvalue() == stated
    assert sorted(file.name for file in Path("assembly").iterdir()) == ["README.md", "model.safetensors", "recipe.json"]


def test_the_table_it_links_to_is_there() -> None:
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    count, link = re.findall(r"Cut points of (\d+) architectures: \[cut_points\.md\]\((.*?)\)", readme)[0]
    table = (root / link).read_text(encoding="utf-8")
    assert int(count) == len(re.findall(r"^\| .* \| yes \| yes \|", table, re.M)) >= 60
    assert "NO" not in table
