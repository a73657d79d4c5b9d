"""Which source layer serves which target layer: DPIAT's dynamic programming and the variants of its ablation.

Each matching is a function of two sequences and a generator; it returns the value that it maximizes and the pairs
(source layer index, target layer index) in target order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyassemble.network.backend import backend, sequence
from pyassemble.network.layers import Element, Layer, LayerSequence

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pairs = list[tuple[int, int]]
Matching = Callable[[LayerSequence, LayerSequence, torch.Generator], tuple[float, Pairs]]


def _dp(source: LayerSequence, target: LayerSequence, generator: torch.Generator) -> tuple[float, Pairs]:
    """The two-level recurrence (SPEC 1.3): blocks against blocks, then the layers inside matched blocks."""
    score, source_index, target_index = backend().align(sequence(source), sequence(target))
    return score, list(zip(source_index.tolist(), target_index.tolist(), strict=True))


def _dp_flat(source: LayerSequence, target: LayerSequence, generator: torch.Generator) -> tuple[float, Pairs]:
    """The same recurrence over all layers, without blocks."""
    return _dp(source.flat(), target.flat(), generator)


def _bipartite(source: LayerSequence, target: LayerSequence, generator: torch.Generator) -> tuple[float, Pairs]:
    """Maximum-weight assignment between top-level elements, the recurrence inside matched blocks."""
    scores = backend().score_matrix(sequence(source), sequence(target))
    weight, assigned = _assignment(scores)
    pairs: Pairs = []
    for i, j in assigned:
        source_element, target_element = source.elements[j], target.elements[i]
        if target_element.is_block:
            inside = _dp_flat(_part(source, source_element), _part(target, target_element), generator)[1]
            pairs.extend((source_element.start + s, target_element.start + t) for s, t in inside)
        else:
            pairs.append((source_element.start, target_element.start))
    return weight, pairs


def _n_bipartite(source: LayerSequence, target: LayerSequence, generator: torch.Generator) -> tuple[float, Pairs]:
    """Assignment at both levels; a block pair counts its assignment as a share of the largest possible."""
    layers = backend().score_matrix(sequence(source.flat()), sequence(target.flat()))
    scores = np.zeros((len(target.elements), len(source.elements)))
    inside: dict[tuple[int, int], Pairs] = {}
    known: dict[tuple[tuple[Layer, ...], tuple[Layer, ...]], tuple[float, Pairs]] = {}
    for i, t in enumerate(target.elements):
        for j, s in enumerate(source.elements):
            if t.is_block != s.is_block:
                continue
            if not t.is_block:
                scores[i, j] = layers[t.start, s.start]
                continue
            key = (_anonymous(target, t), _anonymous(source, s))
            if key not in known:
                known[key] = _block_value(layers[t.start : t.stop, s.start : s.stop])
            scores[i, j], inside[i, j] = known[key]
    weight, assigned = _assignment(scores)
    pairs: Pairs = []
    for i, j in assigned:
        s, t = source.elements[j], target.elements[i]
        pairs.extend((s.start + b, t.start + a) for a, b in inside.get((i, j), [(0, 0)]))
    return weight, pairs


def _random(source: LayerSequence, target: LayerSequence, generator: torch.Generator) -> tuple[float, Pairs]:
    """Layers of one kind paired at random, each at most once: the ablation's baseline; its value sums their scores."""
    buckets: dict[tuple[str, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, network in enumerate((source, target)):
        for index, layer in enumerate(network.layers):
            if layer.kind is not None:
                buckets[layer.kind, len(layer.shape)][side].append(index)
    pairs: Pairs = []
    for sources, targets in buckets.values():
        shuffled = [sources[i] for i in torch.randperm(len(sources), generator=generator, device="cpu").tolist()]
        chosen = [targets[i] for i in torch.randperm(len(targets), generator=generator, device="cpu").tolist()]
        pairs.extend(zip(shuffled, chosen, strict=False))
    pairs.sort(key=lambda pair: pair[1])
    return sum(layer_score(source.layers[s], target.layers[t]) for s, t in pairs), pairs


_MATCHINGS: dict[str, Matching] = {
    "dp": _dp,
    "dp_flat": _dp_flat,
    "bipartite": _bipartite,
    "n_bipartite": _n_bipartite,
    "random": _random,
}

#: Names accepted as ``matching``.
MATCHINGS = tuple(_MATCHINGS)


def match(
    source: LayerSequence, target: LayerSequence, matching: str, generator: torch.Generator
) -> tuple[float, Pairs]:
    """Value and pairs of a named matching."""
    return _MATCHINGS[matching](source, target, generator)


def layer_score(source: Layer, target: Layer) -> float:
    """Similarity of two layers' weight shapes in [0, 1] (SPEC 1.2); 0 for different kinds."""
    if source.kind is None or source.kind != target.kind or len(source.shape) != len(target.shape):
        return 0.0
    score = 1.0
    for s, t in zip(source.shape, target.shape, strict=True):
        if s == 0 or t == 0:
            return 0.0
        score *= min(s / t, t / s)
    return score


def _assignment(scores: NDArray[np.float64]) -> tuple[float, Pairs]:
    """Assignment of rows (target) to columns (source) that maximizes score times nearness of relative positions."""
    from scipy.optimize import linear_sum_assignment

    n, m = scores.shape
    if not n or not m:
        return 0.0, []
    distance = np.arange(n)[:, None] / n - np.arange(m)[None, :] / m
    weights = scores * (1.0 - distance**2)
    rows, columns = linear_sum_assignment(weights, maximize=True)
    kept = scores[rows, columns] > 0
    rows, columns = rows[kept], columns[kept]
    return float(weights[rows, columns].sum()), list(zip(rows.tolist(), columns.tolist(), strict=True))


def _block_value(scores: NDArray[np.float64]) -> tuple[float, Pairs]:
    """A block pair's assignment as a share of the sum of column maxima, which bounds it, and its pairs."""
    n, m = scores.shape
    distance = np.arange(n)[:, None] / n - np.arange(m)[None, :] / m
    bound = float((scores * (1.0 - distance**2)).max(axis=0).sum())
    weight, pairs = _assignment(scores)
    return (weight / bound if bound else 0.0), pairs


def _part(network: LayerSequence, element: Element) -> LayerSequence:
    """A block's layers as a sequence of their own."""
    layers = network.layers[element.start : element.stop]
    return LayerSequence.of(layers, (Element(i, i + 1, False) for i in range(len(layers))))


def _anonymous(network: LayerSequence, element: Element) -> tuple[Layer, ...]:
    return tuple(layer._replace(name="") for layer in network.layers[element.start : element.stop])
