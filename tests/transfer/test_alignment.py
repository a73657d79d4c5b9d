from __future__ import annotations

import json
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
import timm
import torch
from torch import nn

import pyassemble as pa
from pyassemble.errors import EmptyNetworkError, UnknownOptionError
from pyassemble.network import Element, Layer, LayerSequence
from pyassemble.transfer.matching import MATCHINGS, layer_score, match
from tests.networks import build

if TYPE_CHECKING:
    from pathlib import Path


def test_all_published_reference_pairs(shared: Path) -> None:
    reference = json.loads((shared / "reference" / "dpiat_public.json").read_text())
    with torch.device("meta"):
        networks = {name: timm.create_model(name) for name in reference["models"]}
    assert len(reference["score"]) == 100
    for key, score in reference["score"].items():
        source, target = (networks[name] for name in key.split("->"))
        alignment = pa.align(source, target)
        assert alignment.score == pytest.approx(score, abs=1e-9, rel=0), key
        assert [list(pair) for pair in alignment.pairs] == reference["align"][key], key
        directed = pa.similarity(source, target, directed=True)
        assert directed == pytest.approx(score / reference["score"][f"{key.split('->')[1]}->{key.split('->')[1]}"])


@pytest.mark.parametrize(
    ("source", "target", "published"),
    [("efficientnet_b2", "efficientnet_b0", 0.8973596), ("efficientnet_b0", "efficientnet_b2", 0.7204287),
     ("rexnet_100", "efficientnet_b0", 0.6632721), ("mnasnet_100", "semnasnet_100", 0.7247954)],
)  # fmt: skip
def test_published_similarities(source: str, target: str, published: float) -> None:
    with torch.device("meta"):
        a, b = timm.create_model(source), timm.create_model(target)
    assert pa.similarity(a, b, directed=True) == pytest.approx(published, abs=1e-6)
    symmetric = (pa.similarity(a, b, directed=True) * pa.similarity(b, a, directed=True)) ** 0.5
    assert pa.similarity(a, b) == pytest.approx(symmetric)
    assert pa.similarity(b, a) == pytest.approx(symmetric)


@pytest.mark.parametrize("standardization", ["blocks", "graph"])
@pytest.mark.parametrize("name", ["timm:resnet18", "timm:mobilenetv3_small_050", "timm:vit_tiny_patch16_224"])
def test_a_network_is_most_similar_to_itself(name: str, standardization: str) -> None:
    network = build(name, meta=True)
    alignment = pa.align(network, network, standardization=standardization)
    assert alignment.score == alignment.target.scored == len(alignment)
    assert all(source == target for source, target in alignment.pairs)
    assert alignment.directed == 1.0
    assert pa.similarity(network, network, standardization=standardization) == 1.0


@pytest.mark.parametrize("matching", MATCHINGS)
def test_pairs_are_of_one_kind_in_target_order_and_repeatable(matching: str) -> None:
    source, target = build("timm:resnet18", meta=True), build("timm:efficientnet_b0", meta=True)
    alignment = pa.align(source, target, matching=matching, seed=3)
    assert len(alignment) > 10
    targets = [t for _, t in alignment.indices]
    assert targets == sorted(set(targets))
    for s, t in alignment.indices:
        assert layer_score(alignment.source.layers[s], alignment.target.layers[t]) > 0
    assert alignment == pa.align(source, target, matching=matching, seed=3)
    if matching == "random":
        assert alignment.pairs != pa.align(source, target, matching=matching, seed=4).pairs
    assert str(alignment).count("\n") == len(alignment) + 2


def sequence_of(shapes: list[int], blocks: list[tuple[int, int]] = ()) -> LayerSequence:
    layers = tuple(Layer(f"l{i}", "Linear", (size,)) for i, size in enumerate(shapes))
    elements, i = [], 0
    while i < len(layers):
        stop = next((b for a, b in blocks if a == i), i + 1)
        elements.append(Element(i, stop, stop - i > 1))
        i = stop
    return LayerSequence.of(layers, tuple(elements))


def brute_force(weights: np.ndarray) -> float:
    n, m = weights.shape
    if n > m:
        return brute_force(weights.T)
    return max(sum(weights[i, j] for i, j in enumerate(columns)) for columns in permutations(range(m), n))


@pytest.mark.parametrize("seed", range(8))
def test_bipartite_is_the_best_assignment(seed: int) -> None:
    draw = np.random.default_rng(seed)
    source = sequence_of(draw.integers(1, 9, draw.integers(1, 6)).tolist())
    target = sequence_of(draw.integers(1, 9, draw.integers(1, 6)).tolist())
    n, m = len(target.layers), len(source.layers)
    weights = np.array([[layer_score(source.layers[j], target.layers[i]) * (1 - (i / n - j / m) ** 2)
                         for j in range(m)] for i in range(n)])  # fmt: skip
    for matching in ("bipartite", "n_bipartite"):
        value, pairs = match(source, target, matching, torch.Generator())
        assert value == pytest.approx(brute_force(weights))
        assert value == pytest.approx(sum(weights[t, s] for s, t in pairs))
        assert len({s for s, _ in pairs}) == len(pairs) == min(n, m)


def test_nested_assignment_normalizes_block_values() -> None:
    network = sequence_of([1, 2, 4, 8, 16], blocks=[(1, 5)])
    value, pairs = match(network, network, "n_bipartite", torch.Generator())
    assert value == pytest.approx(2.0)  # a layer and a block, each worth at most 1
    assert pairs == [(i, i) for i in range(5)]


def test_blocks_and_single_layers_do_not_mix() -> None:
    block, single = sequence_of([4, 4], blocks=[(0, 2)]), sequence_of([4])
    for matching in ("dp", "bipartite", "n_bipartite"):
        assert match(block, single, matching, torch.Generator()) == (0.0, [])
    assert len(match(block, single, "dp_flat", torch.Generator())[1]) == 1


def test_random_pairs_each_layer_at_most_once() -> None:
    source, target = sequence_of([1] * 7), sequence_of([1] * 5)
    _, pairs = match(source, target, "random", torch.Generator().manual_seed(0))
    assert len({s for s, _ in pairs}) == len({t for _, t in pairs}) == 5


@pytest.mark.parametrize("call", [pa.align, pa.transfer])
def test_unknown_strategies_list_the_known(call: object) -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(
        UnknownOptionError, match=r"matching 'best'; known: dp, dp_flat, bipartite, n_bipartite, random"
    ):
        call(network, network, matching="best")
    with pytest.raises(UnknownOptionError, match=r"standardization 'x'; known: blocks, graph"):
        call(network, network, standardization="x")


def test_networks_without_layers_are_refused() -> None:
    empty, full = nn.Sequential(nn.ReLU()), nn.Linear(2, 2)
    with pytest.raises(EmptyNetworkError, match="source network Sequential has no convolution"):
        pa.align(empty, full)
    with pytest.raises(EmptyNetworkError, match="target network Sequential"):
        pa.similarity(full, empty)
    with pytest.raises(EmptyNetworkError, match="source"):
        pa.align({}, full)
    with pytest.raises(EmptyNetworkError, match="parameter"):
        pa.align(full, empty, standardization="graph")


def test_nothing_in_common_is_zero_similarity() -> None:
    assert pa.similarity(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)) == 0.0
    assert pa.align(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)).pairs == []


def test_an_alignment_prints_as_a_table() -> None:
    text = str(pa.align(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 3))))
    assert text.splitlines()[0].split() == ["source", "shape", "target", "shape", "score"]
    assert "3×2" in text
    assert "1 of 1 target layers served by 1 of 2 source layers; score 1.0000, directed 1.0000" in text
