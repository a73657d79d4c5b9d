"""Pictures: complete, of a sensible size, the same each time, and nothing of the caller's is disturbed."""

from __future__ import annotations

import itertools
import os
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from torch import nn

from pyassemble.errors import UnknownOptionError
from pyassemble.network.layers import Layer, LayerSequence
from pyassemble.report import draw_alignment
from pyassemble.report.labels import element_labels
from pyassemble.report.picture import _COLOURS, _LABEL_STEP, _colours, _spread
from pyassemble.transfer import Alignment, align

if TYPE_CHECKING:
    from pathlib import Path

_SVG = "{http://www.w3.org/2000/svg}"


def drawn(alignment: Alignment, path: Path) -> Path:
    draw_alignment(alignment, path, source_name="timm:source_$1$", target_name="timm:target")
    return path


def svg_texts(path: Path) -> set[str]:
    return {"".join(element.itertext()).strip() for element in ET.parse(path).iter(f"{_SVG}text")}


def test_png(efficientnets: Alignment, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = drawn(efficientnets, tmp_path / "a.png")
    height, width, _ = imread(path).shape
    assert 600 < width < 2000
    assert 1500 < height < 6000
    assert 50_000 < path.stat().st_size < 5_000_000
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["efficientnets", "transformers"])
def test_svg_has_a_line_per_pair_and_every_name(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    alignment: Alignment = request.getfixturevalue(name)
    path = drawn(alignment, tmp_path / "a.svg")
    lines = [e.get("id") for e in ET.parse(path).iter(f"{_SVG}g") if (e.get("id") or "").startswith("pair-")]
    assert sorted(map(str, lines)) == sorted(f"pair-{s}-{t}" for s, t in alignment.indices)
    texts = svg_texts(path)
    assert "timm:source_$1$ → timm:target" in texts
    for network in (alignment.source, alignment.target):
        weighted = [
            label
            for label, (start, stop, _) in zip(element_labels(network), network.elements, strict=True)
            if any(layer.kind for layer in network.layers[start:stop])
        ]
        assert set(weighted) <= texts
        assert {layer.kind for layer in network.layers if layer.kind} <= texts


def test_equal_alignments_equal_files(efficientnets: Alignment, tmp_path: Path) -> None:
    first, second = drawn(efficientnets, tmp_path / "a.svg"), drawn(efficientnets, tmp_path / "b.svg")
    assert first.read_bytes() == second.read_bytes()


def test_small_networks_name_every_layer(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))

    texts = svg_texts(drawn(align(network(), network()), tmp_path / "a.svg"))
    assert {"0", "2.0", "2.1"} <= texts


def test_nothing_in_common(tmp_path: Path) -> None:
    alignment = align(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Conv2d(2, 2, 1)))
    texts = svg_texts(drawn(alignment, tmp_path / "a.svg"))
    assert any("0 of 1 source layers and 0 of 1 target layers matched" in text for text in texts)


def test_no_blocks_and_many_layers(tmp_path: Path) -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(150)))
    alignment = align(network, network)
    flat = Alignment(alignment.source.flat(), alignment.target.flat(), alignment.indices, alignment.score)
    assert {"0", "75", "149"} <= svg_texts(drawn(flat, tmp_path / "a.svg"))


def test_pyplot_is_left_alone(efficientnets: Alignment, tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(efficientnets, tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["a.pdf", "a", "png"])
def test_other_formats(efficientnets: Alignment, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownOptionError, match=r"unknown picture format .*; known: \.png, \.svg"):
        drawn(efficientnets, tmp_path / name)


def test_failure_leaves_the_old_picture(
    efficientnets: Alignment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        drawn(efficientnets, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("height", [1.0, 5.0])
def test_labels_never_overlap(height: float) -> None:
    anchors = [(str(i), height * (0.9 + i / 200), False) for i in range(20)]
    labels = _spread(anchors, height)
    places = [label.placed for label in labels]
    assert all(b - a >= _LABEL_STEP - 1e-9 for a, b in itertools.pairwise(places))
    assert places[-1] <= height
    assert places[0] >= -_LABEL_STEP


def test_colours() -> None:
    usual = _colours(["BatchNorm2d", "Linear", "Conv2d"])
    assert usual == {"BatchNorm2d": _COLOURS[1], "Linear": _COLOURS[2], "Conv2d": _COLOURS[0]}
    many = _colours([f"Module.{i}" for i in range(12)])
    assert len(set(many.values())) == len(_COLOURS) + 1


def test_weightless_layers_are_not_drawn(tmp_path: Path) -> None:
    layers = (Layer("conv", "Conv2d", (2, 2, 1, 1)), Layer("act", None, ()))
    network = LayerSequence.of(layers, ()).flat()
    texts = svg_texts(drawn(Alignment(network, network, ((0, 0),), 1.0), tmp_path / "a.svg"))
    assert "conv" in texts
    assert "act" not in texts
