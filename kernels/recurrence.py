"""The alignment recurrence on numba: portable twin of the C++ core, same functions, same bits.

Targets i, sources j, scores S >= 0, D[0][.] = D[.][0] = 0 (DPIAT, arXiv 2212.13970):

    D[i][j] = max(D[i][j-1], D[i-1][j], max over k = i .. 1 of D[k-1][j-1] + (S[k][j] + ... + S[i][j]) / sqrt(i-k+1))

D[i-1][j] replaces D[i][j-1], and a run replaces the best so far, only if strictly greater; k is tried downward. Ties
are decided in float64 by these operations in this order, so nothing here may be contracted or reassociated (no
fastmath). The score between two blocks of layers is the value of the same recurrence between their layers.

The table holds values only. Walking back asks at each cell which alternative, in the order of the ties, has its value:
the first that has it is the one that the recurrence took. All-zero source columns are dropped: each equals the one
before it, and walking back passes it to the left. A target whose own score is zero ends no run that wins, because the
run that stops one earlier has the same sum over a smaller root.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

Function = TypeVar("Function", bound=Callable[..., Any])
Pairs = tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32]]


class Sequence:
    """One standardized network: layers with kind and shape, some of them grouped into blocks. Immutable.

    Args:
        kinds: int32, one per layer; -1 for a layer without weight, otherwise any number that names its kind.
        size_offsets: int64, one more than layers; where the sizes of each layer start and the last one's end.
        sizes: int64, the weight shapes of all layers, one after the other.
        element_offsets: int64, one more than top-level elements; where the layers of each start and the last one's end.
        is_block: bool or uint8, one per element; an element that is no block is exactly one layer.

    Raises:
        TypeError: An array of another type or number of dimensions.
        ValueError: Arrays that contradict each other.
    """

    __slots__ = ("_element_offsets", "_is_block", "_kinds", "_size_offsets", "_sizes")

    def __init__(
        self,
        kinds: npt.NDArray[np.int32],
        size_offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        element_offsets: npt.NDArray[np.int64],
        is_block: npt.NDArray[np.bool_] | npt.NDArray[np.uint8],
    ) -> None:
        self._kinds = _copy(kinds, 1, ("i4",), "kinds must be a one-dimensional int32 array")
        self._size_offsets = _copy(size_offsets, 1, ("i8",), "size_offsets must be a one-dimensional int64 array")
        self._sizes = _copy(sizes, 1, ("i8",), "sizes must be a one-dimensional int64 array")
        self._element_offsets = _copy(
            element_offsets, 1, ("i8",), "element_offsets must be a one-dimensional int64 array"
        )
        self._is_block = _copy(
            is_block, 1, ("b1", "u1"), "is_block must be a one-dimensional bool or uint8 array"
        ).astype(np.bool_)
        self._check()

    def _check(self) -> None:
        _check_offsets("size_offsets", self._size_offsets, len(self._kinds), "sizes", len(self._sizes))
        _check_offsets("element_offsets", self._element_offsets, len(self._is_block), "layers", len(self._kinds))
        lengths = np.diff(self._size_offsets)
        bad_size = np.repeat(self._kinds >= 0, lengths) & (self._sizes <= 0)
        owner = np.repeat(np.arange(len(self._kinds)), lengths)
        first_bad_kind = np.flatnonzero(self._kinds < -1)[:1]
        first_bad_size = np.flatnonzero(bad_size)[:1]
        # The native core reports the first layer that is wrong in either way.
        if len(first_bad_kind) and not (len(first_bad_size) and owner[first_bad_size[0]] < first_bad_kind[0]):
            i = first_bad_kind[0]
            raise ValueError(f"kind of layer {i} must be -1 or more, not {self._kinds[i]}")
        if len(first_bad_size):
            x = first_bad_size[0]
            raise ValueError(f"sizes of layer {owner[x]} must be positive, not {self._sizes[x]}")
        held = np.diff(self._element_offsets)
        for e in np.flatnonzero((held == 0) | (~self._is_block & (held != 1)))[:1]:
            if held[e] == 0:
                raise ValueError(f"element {e} is empty")
            raise ValueError(f"element {e} is no block but holds {held[e]} layers")

    @property
    def num_layers(self) -> int:
        """Number of layers, blocks flattened."""
        return len(self._kinds)

    @property
    def num_elements(self) -> int:
        """Number of top-level elements."""
        return len(self._is_block)

    @property
    def num_scored(self) -> int:
        """Number of layers that carry a weight."""
        return int(np.count_nonzero(self._kinds >= 0))

    def __repr__(self) -> str:
        return f"<Sequence of {self.num_layers} layers in {self.num_elements} elements, {self.num_scored} scored>"

    def _arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return self._kinds, self._size_offsets, self._sizes, self._element_offsets, self._is_block


def align(source: Sequence, target: Sequence) -> Pairs:
    """D(source, target), source layer indices and target layer indices of the pairs, in target order."""
    s, t = _sequence(source, "source"), _sequence(target, "target")
    value, sources, targets = _align(*s._arrays(), *t._arrays())
    return float(value), sources, targets


def score(source: Sequence, target: Sequence) -> float:
    """D(source, target) alone."""
    value, _, _ = recurrence(score_matrix(source, target))
    return value


def score_matrix(source: Sequence, target: Sequence) -> npt.NDArray[np.float64]:
    """Scores between top-level elements, row = target."""
    s, t = _sequence(source, "source"), _sequence(target, "target")
    matrix: npt.NDArray[np.float64] = _element_scores(*s._arrays(), *t._arrays())
    return matrix


def recurrence(scores: npt.NDArray[np.float64]) -> Pairs:
    """One level of the recurrence on any matrix of finite scores >= 0, row = target."""
    value, sources, targets = _walk(_scores(scores))
    return float(value), sources, targets


def recurrence_value(scores: npt.NDArray[np.float64]) -> float:
    """The value of the recurrence alone."""
    return float(_table(_scores(scores))[-1, -1])


def _copy(array: Any, ndim: int, types: tuple[str, ...], expected: str) -> npt.NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.ndim != ndim or not array.dtype.isnative:
        raise TypeError(expected)
    if f"{array.dtype.kind}{array.dtype.itemsize}" not in types:
        raise TypeError(expected)
    return np.array(array, dtype=types[0], order="C", subok=False)


def _check_offsets(name: str, offsets: npt.NDArray[np.int64], parts: int, of: str, length: int) -> None:
    if len(offsets) != parts + 1:
        raise ValueError(f"{name} must have {parts + 1} entries, not {len(offsets)}")
    if offsets[0] != 0:
        raise ValueError(f"{name} must start at 0, not {offsets[0]}")
    for i in np.flatnonzero(offsets[1:] < offsets[:-1])[:1]:
        raise ValueError(f"{name} decreases at index {i + 1}")
    if offsets[-1] != length:
        raise ValueError(f"{name} must end at {length}, the number of {of}, not {offsets[-1]}")


def _sequence(value: Any, name: str) -> Sequence:
    if not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a Sequence, not {type(value).__name__}")
    return value


def _scores(scores: Any) -> npt.NDArray[np.float64]:
    checked = _copy(scores, 2, ("f8",), "scores must be a two-dimensional float64 array")
    if not (np.isfinite(checked) & (checked >= 0.0)).all():
        raise ValueError("scores must be finite and not negative")
    return checked


# Compiled on first call; the machine code is cached on disk. No fastmath: it would reorder the additions.
_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


def _jit(function: Function) -> Function:
    compiled: Function = _compile(function)
    return compiled


@_jit
def _dense_table(scores: Any) -> Any:
    n, m = scores.shape
    table = np.zeros((n + 1, m + 1))
    root = np.sqrt(np.arange(n + 1))
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            best = max(table[i, j - 1], table[i - 1, j])
            if scores[i - 1, j - 1] > 0.0:
                c = 0.0
                for k in range(i, 0, -1):
                    c += scores[k - 1, j - 1]
                    v = c / root[i - k + 1] + table[k - 1, j - 1]
                    if v > best:
                        best = v
            table[i, j] = best
    return table


@_jit
def _scored_columns(scores: Any) -> Any:
    n, m = scores.shape
    columns = np.empty(m, np.int64)
    count = 0
    for j in range(m):
        for i in range(n):
            if scores[i, j] > 0.0:
                columns[count] = j
                count += 1
                break
    return columns[:count]


@_jit
def _keep(scores: Any, columns: Any) -> Any:
    kept = np.empty((scores.shape[0], len(columns)))
    for x in range(len(columns)):
        kept[:, x] = scores[:, columns[x]]
    return kept


@_jit
def _table(scores: Any) -> Any:
    return _dense_table(_keep(scores, _scored_columns(scores)))


@_jit
def _walk(scores: Any) -> Any:
    columns = _scored_columns(scores)
    kept = _keep(scores, columns)
    d = _dense_table(kept)
    i, j = kept.shape
    value = d[i, j]
    sources = np.empty(i, np.int32)  # each target is in one pair at most
    targets = np.empty(i, np.int32)
    count = 0
    while i > 0 and j > 0:
        if d[i, j] == d[i, j - 1]:
            j -= 1
        elif d[i, j] == d[i - 1, j]:
            i -= 1
        else:
            c = 0.0
            k = i
            while k > 0:
                c += kept[k - 1, j - 1]
                if c / np.sqrt(np.float64(i - k + 1)) + d[k - 1, j - 1] == d[i, j]:
                    break
                k -= 1
            for x in range(i, k - 1, -1):
                if kept[x - 1, j - 1] > 0.0:
                    sources[count] = columns[j - 1]
                    targets[count] = x - 1
                    count += 1
            i, j = k - 1, j - 1
    return value, sources[:count][::-1].copy(), targets[:count][::-1].copy()


@_jit
def _layer_scores(
    s_kinds: Any, s_offsets: Any, s_sizes: Any, s_start: Any, s_stop: Any,
    t_kinds: Any, t_offsets: Any, t_sizes: Any, t_start: Any, t_stop: Any,
) -> Any:  # fmt: skip
    scores = np.zeros((t_stop - t_start, s_stop - s_start))
    for i in range(t_start, t_stop):
        for j in range(s_start, s_stop):
            rank = t_offsets[i + 1] - t_offsets[i]
            if t_kinds[i] < 0 or t_kinds[i] != s_kinds[j] or s_offsets[j + 1] - s_offsets[j] != rank:
                continue
            product = 1.0
            for d in range(rank):
                t = np.float64(t_sizes[t_offsets[i] + d])
                s = np.float64(s_sizes[s_offsets[j] + d])
                product *= min(s / t, t / s)
            scores[i - t_start, j - s_start] = product
    return scores


@_jit
def _element_scores(
    s_kinds: Any, s_offsets: Any, s_sizes: Any, s_elements: Any, s_blocks: Any,
    t_kinds: Any, t_offsets: Any, t_sizes: Any, t_elements: Any, t_blocks: Any,
) -> Any:  # fmt: skip
    scores = np.zeros((len(t_blocks), len(s_blocks)))
    for i in range(len(t_blocks)):
        for j in range(len(s_blocks)):
            if t_blocks[i] != s_blocks[j]:
                continue
            inner = _layer_scores(
                s_kinds, s_offsets, s_sizes, s_elements[j], s_elements[j + 1],
                t_kinds, t_offsets, t_sizes, t_elements[i], t_elements[i + 1],
            )  # fmt: skip
            scores[i, j] = _table(inner)[-1, -1] if t_blocks[i] else inner[0, 0]
    return scores


@_jit
def _align(
    s_kinds: Any, s_offsets: Any, s_sizes: Any, s_elements: Any, s_blocks: Any,
    t_kinds: Any, t_offsets: Any, t_sizes: Any, t_elements: Any, t_blocks: Any,
) -> Any:  # fmt: skip
    value, matched_s, matched_t = _walk(
        _element_scores(
            s_kinds, s_offsets, s_sizes, s_elements, s_blocks, t_kinds, t_offsets, t_sizes, t_elements, t_blocks
        )
    )
    sources = np.empty(len(t_kinds), np.int32)
    targets = np.empty(len(t_kinds), np.int32)
    count = 0
    for x in range(len(matched_t)):
        i, j = matched_t[x], matched_s[x]
        inner = _layer_scores(
            s_kinds, s_offsets, s_sizes, s_elements[j], s_elements[j + 1],
            t_kinds, t_offsets, t_sizes, t_elements[i], t_elements[i + 1],
        )  # fmt: skip
        _, inner_s, inner_t = _walk(inner)  # for two single layers: the one pair
        for y in range(len(inner_t)):
            sources[count] = s_elements[j] + inner_s[y]
            targets[count] = t_elements[i] + inner_t[y]
            count += 1
    return value, sources[:count].copy(), targets[:count].copy()
