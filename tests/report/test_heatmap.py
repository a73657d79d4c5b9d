"""Heat maps: every name where there is room, families where there is not, and nothing half-written."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pyassemble.errors import MatrixError, UnknownOptionError
from pyassemble.report.heatmap import draw_heatmap, order
from tests.report.similarities import planted

if TYPE_CHECKING:
    from pathlib import Path

_SVG = "{http://www.w3.org/2000/svg}"


def svg_texts(path: Path) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.parse(path).iter(f"{_SVG}text")]


def clusters(*sizes: int) -> tuple[np.ndarray, list[str]]:
    matrix, cluster = planted(list(sizes))
    return matrix, [f"{'abcdefgh'[member]}net{index}_$x$" for index, member in enumerate(cluster)]


def test_small_names_every_network_twice(tmp_path: Path) -> None:
    matrix, names = clusters(12, 1, 20)
    draw_heatmap(matrix, names, tmp_path / "a.svg", title="All $of$ <them>")
    texts = svg_texts(tmp_path / "a.svg")
    assert all(texts.count(name) == 2 for name in names)
    assert (texts.count("anet"), texts.count("bnet"), texts.count("cnet")) == (2, 0, 2)  # brackets join two or more
    assert {"All $of$ <them>", "symmetric similarity", "33 networks of 3 families, clustered"} <= set(texts)


def test_large_names_families_only(tmp_path: Path) -> None:
    matrix, names = clusters(50, 30, 60)
    draw_heatmap(matrix, names, tmp_path / "a.svg")
    texts = svg_texts(tmp_path / "a.svg")
    assert not set(names) & set(texts)
    assert [texts.count(f"{letter}net") for letter in "abc"] == [2, 2, 2]


def test_labels_follow_the_order(tmp_path: Path) -> None:
    matrix, names = clusters(5, 9)
    draw_heatmap(matrix, names, tmp_path / "a.svg")
    shown = [text for text in svg_texts(tmp_path / "a.svg") if text in names]
    assert shown[::2] == [names[place] for place in order(matrix)]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_png(count: int, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw_heatmap(np.ones((count, count)), [f"resnet{i}" for i in range(count)], tmp_path / "a.png")
    height, width, _ = imread(tmp_path / "a.png").shape
    assert 400 < height < 3000
    assert 600 < width < 3000
    assert os.listdir(tmp_path) == ["a.png"]


def test_equal_matrices_equal_files(tmp_path: Path) -> None:
    matrix, names = clusters(5, 9)
    for name in ("a.svg", "b.svg"):
        draw_heatmap(matrix, names, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_settings_are_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_heatmap(np.ones((2, 2)), ["a", "b"], tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["a.pdf", "a"])
def test_other_formats(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownOptionError, match=r"unknown picture format .*; known: \.png, \.svg"):
        draw_heatmap(np.ones((1, 1)), ["a"], tmp_path / name)


def test_other_input(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match="accepted is one name for each row"):
        draw_heatmap(np.ones((2, 2)), ["a"], tmp_path / "a.png")
    with pytest.raises(MatrixError, match="accepted is a square symmetric matrix"):
        draw_heatmap(np.full((2, 2), np.nan), ["a", "b"], tmp_path / "a.png")
    assert os.listdir(tmp_path) == []


def test_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_heatmap(np.ones((1, 1)), ["a"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]
