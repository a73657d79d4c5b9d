"""The page: its data is the matrix, names are data and never markup, and it is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyassemble.errors import MatrixError, UnknownOptionError
from pyassemble.report.heatmap_html import write_heatmap_html
from tests.report.similarities import planted

_NASTY = ["</script><script>alert(1)</script>", "<!--<script>", "a&amp;b", "$content", "\u2028'\"\\ ü", "resnet50"]


class Outline(HTMLParser):
    """The elements that a page opens and closes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.closed: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)


def content_of(path: Path) -> dict[str, Any]:
    page = path.read_text(encoding="utf-8")
    start = page.index('id="content">') + len('id="content">')
    document: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return document


def matrix_of(content: dict[str, Any]) -> np.ndarray:
    count = len(content["names"])
    matrix = np.zeros((count, count))
    rows, columns = np.triu_indices(count)
    matrix[rows, columns] = np.frombuffer(b64decode(content["similarity"]), "<u2") / content["steps"]
    return np.maximum(matrix, matrix.T)


@pytest.mark.parametrize("sizes", [[1], [2], [9, 14, 3]])
def test_data_is_the_matrix(sizes: list[int], tmp_path: Path) -> None:
    matrix, _ = planted(sizes)
    names = [f"resnet{i}" for i in range(len(matrix))]
    write_heatmap_html(matrix, names, tmp_path / "a.html")
    content = content_of(tmp_path / "a.html")
    assert sorted(content["names"]) == sorted(names)
    places = [names.index(name) for name in content["names"]]
    assert np.abs(matrix_of(content) - matrix[np.ix_(places, places)]).max() <= 0.5 / 65535 + 1e-12
    assert content["families"] == ["resnet"] * len(names)
    assert (tmp_path / "a.html").stat().st_size < 6_000_000
    assert os.listdir(tmp_path) == ["a.html"]


def test_names_are_no_markup(tmp_path: Path) -> None:
    matrix, _ = planted([len(_NASTY)])
    details = {name: {"license": name} for name in _NASTY[:-1]} | {"stranger": {"license": "none"}}
    write_heatmap_html(matrix, _NASTY, tmp_path / "a.html", details=details)
    content = content_of(tmp_path / "a.html")
    assert sorted(content["names"]) == sorted(_NASTY)
    for name, said in zip(content["names"], content["details"], strict=True):
        assert said == details.get(name, {})
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    assert "stranger" not in page


def test_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    matrix, _ = planted([len(_NASTY)])
    write_heatmap_html(matrix, _NASTY, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    outline = Outline(page)
    tags = [tag for tag, _ in outline.opened if tag not in ("meta", "input")]
    assert sorted(tags) == sorted(outline.closed)
    assert tags.count("script") == 3
    assert not [attributes for _, attributes in outline.opened if {"src", "href"} & set(attributes)]
    policies = [a["content"] for _, a in outline.opened if a.get("http-equiv") == "Content-Security-Policy"]
    assert [str(policy).split(";")[0] for policy in policies] == ["default-src 'none'"]
    assert "plotly.js v" in page


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_script_reads_the_data(tmp_path: Path) -> None:
    """The page's own functions, run without a browser: the numbers, the nearest, and the search."""
    matrix, _ = planted([6, 5])
    names = [f"resnet{i}" for i in range(11)]
    write_heatmap_html(matrix, names, tmp_path / "a.html")
    content = content_of(tmp_path / "a.html")
    places = [names.index(name) for name in content["names"]]
    expected = matrix[np.ix_(places, places)]
    script = resources.files("pyassemble.report").joinpath("heatmap_page.js").read_text(encoding="utf-8")
    (tmp_path / "content.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "run.js").write_text(
        f"""{script}
        const content = JSON.parse(require("fs").readFileSync("content.json", "utf-8"));
        const count = content.names.length;
        const read = new Similarities(content.similarity, count, content.steps);
        const all = [...Array(count).keys()];
        console.log(JSON.stringify({{
          matrix: all.map((i) => all.map((j) => read.at(i, j))),
          nearest: all.map((i) => read.nearest(i, 3)),
          found: search(content.names, "NET1 res", 5).map((i) => content.names[i]),
          nothing: search(content.names, " ", 5),
          runs: familyRuns(["a", "a", "b"]),
          label: plain("<b>&", 30),
        }}));""",
        encoding="utf-8",
    )
    result = subprocess.run(["node", "run.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert np.abs(np.array(seen["matrix"]) - expected).max() < 1e-5
    ranked = [[int(j) for j in np.argsort(-row) if j != i][:3] for i, row in enumerate(expected)]
    assert seen["nearest"] == ranked
    assert seen["found"] == ["resnet1", "resnet10"]
    assert seen["nothing"] == []
    assert seen["runs"] == [{"family": "a", "start": 0, "stop": 2}, {"family": "b", "start": 2, "stop": 3}]
    assert seen["label"] == "&lt;b&gt;&amp;"


def test_other_input(tmp_path: Path) -> None:
    with pytest.raises(UnknownOptionError, match=r"unknown page format '\.png'; known: \.html"):
        write_heatmap_html(np.ones((1, 1)), ["a"], tmp_path / "a.png")
    with pytest.raises(MatrixError, match="accepted is one name for each row"):
        write_heatmap_html(np.ones((2, 2)), ["a"], tmp_path / "a.html")
    with pytest.raises(MatrixError, match="accepted is a square symmetric matrix"):
        write_heatmap_html(np.ones((2, 1)), ["a", "b"], tmp_path / "a.html")
    assert os.listdir(tmp_path) == []


def test_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.html").write_bytes(b"old")
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_heatmap_html(np.ones((1, 1)), ["a"], tmp_path / "a.html")
    assert (tmp_path / "a.html").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.html"]


def test_plotly_and_matplotlib_wait_for_their_first_use() -> None:
    code = (
        "import sys, pyassemble.report.heatmap, pyassemble.report.heatmap_html; "
        "assert not {'plotly', 'matplotlib', 'scipy.cluster'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
