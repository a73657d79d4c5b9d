"""The alignment recurrence as the specification writes it (DPIAT, arXiv 2212.13970).

Slow on purpose: full tables of Python floats, no layer or block scored only once, nothing skipped. A block is a list of
layers, a layer a pair (kind, shape) with kind ``None`` for one that carries no weight, a network a list of both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Layer = tuple[int | None, tuple[int, ...]]
Element = Layer | list[Layer]
Pairs = list[tuple[int, int]]


def recurrence(scores: Sequence[Sequence[float]], sources: int) -> tuple[float, Pairs]:
    """D[n][m] and the pairs (source, target) in target order; ``scores[i][j]`` is target i against source j."""
    n, m = len(scores), sources
    table = [[0.0] * (m + 1) for _ in range(n + 1)]
    move = [[0] * (m + 1) for _ in range(n + 1)]  # 0: to the left, -1: up, k: run k .. i
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            best, how = table[i][j - 1], 0
            if table[i - 1][j] > best:
                best, how = table[i - 1][j], -1
            c = 0.0
            for k in range(i, 0, -1):
                c += scores[k - 1][j - 1]
                v = c / math.sqrt(i - k + 1)
                if v + table[k - 1][j - 1] > best:
                    best, how = v + table[k - 1][j - 1], k
            table[i][j], move[i][j] = best, how

    pairs: Pairs = []
    i, j = n, m
    while i > 0 and j > 0:
        how = move[i][j]
        if how == 0:
            j -= 1
        elif how == -1:
            i -= 1
        else:
            pairs += [(j - 1, x - 1) for x in range(i, how - 1, -1) if scores[x - 1][j - 1] > 0.0]
            i, j = how - 1, j - 1
    return table[n][m], pairs[::-1]


def layer_score(source: Layer, target: Layer) -> float:
    """Product over dimensions of min(s/t, t/s)."""
    if source[0] is None or source[0] != target[0] or len(source[1]) != len(target[1]):
        return 0.0
    score = 1.0
    for s, t in zip(source[1], target[1], strict=True):
        score *= min(s / t, t / s)
    return score


def align_layers(source: Sequence[Layer], target: Sequence[Layer]) -> tuple[float, Pairs]:
    """The recurrence between two flat lists of layers."""
    return recurrence([[layer_score(s, t) for s in source] for t in target], len(source))


def element_score(source: Element, target: Element) -> float:
    """Score between two top-level elements."""
    if isinstance(source, list) and isinstance(target, list):
        return align_layers(source, target)[0]
    if isinstance(source, list) or isinstance(target, list):
        return 0.0
    return layer_score(source, target)


def align(source: Sequence[Element], target: Sequence[Element]) -> tuple[float, Pairs]:
    """D(source, target) and the pairs of layers, counted over the flattened networks."""
    value, matched = recurrence([[element_score(s, t) for s in source] for t in target], len(source))
    pairs: Pairs = []
    for j, i in matched:
        s, t = source[j], target[i]
        first_s, first_t = _size(source[:j]), _size(target[:i])
        if isinstance(s, list) and isinstance(t, list):
            pairs += [(first_s + x, first_t + y) for x, y in align_layers(s, t)[1]]
        else:
            pairs.append((first_s, first_t))
    return value, pairs


def _size(elements: Sequence[Element]) -> int:
    return sum(len(element) if isinstance(element, list) else 1 for element in elements)
