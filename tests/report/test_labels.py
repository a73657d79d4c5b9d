"""Names for blocks: the shared prefix where it tells them apart."""

from __future__ import annotations

import pytest

from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.report.labels import common_prefix, element_labels, element_of_layer, shape_text, shortened, within


def sequence(*runs: tuple[str, ...]) -> LayerSequence:
    layers: list[Layer] = []
    elements: list[Element] = []
    for run in runs:
        elements.append(Element(len(layers), len(layers) + len(run), len(run) > 1))
        layers += [Layer(name, "Linear", (1, 1)) for name in run]
    return LayerSequence.of(tuple(layers), tuple(elements))


def test_prefix_of_whole_parts() -> None:
    assert common_prefix(["blocks.1.conv", "blocks.1.bn"]) == "blocks.1"
    assert common_prefix(["blocks.1.conv", "blocks.10.conv"]) == "blocks"
    assert common_prefix(["a", "b"]) == ""
    assert common_prefix(["a.b"]) == "a.b"


def test_labels_tell_elements_apart() -> None:
    labels = element_labels(sequence(("stem",), ("b.0.c", "b.0.n"), ("f.1", "f.2"), ("f.3", "f.4"), ("x", "y")))
    assert labels == ["stem", "b.0", "f.1 … f.2", "f.3 … f.4", "x … y"]


def test_element_of_layer() -> None:
    assert element_of_layer(sequence(("a",), ("b.0", "b.1"), ("c",))) == [0, 1, 1, 2]


def test_short_texts() -> None:
    assert within("b.0.conv", "b.0") == "conv"
    assert within("other.conv", "b.0") == "other.conv"
    assert shape_text((3, 4)) == "3×4"
    assert shape_text(()) == "scalar"


@pytest.mark.parametrize("width", [5, 6, 11, 12, 20])
def test_shortened(width: int) -> None:
    text = shortened("abcdefghijkl", width)
    assert len(text) == min(width, 12)
    assert text.startswith("ab")
    assert text.endswith("kl")
