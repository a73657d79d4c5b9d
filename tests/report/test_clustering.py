"""The order is a permutation that puts planted clusters together."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from pyassemble.errors import MatrixError, PyAssembleError
from pyassemble.report import clustering
from pyassemble.report.clustering import order
from pyassemble.report.matrices import checked_similarity
from tests.report.similarities import planted


@pytest.mark.parametrize("best", [0, 1500])
@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_stand_together(best: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_BEST_LEAVES", best)
    matrix, cluster = planted([7, 1, 12, 4, 20], seed)
    places = order(matrix)
    assert places.dtype == np.intp
    assert sorted(places) == list(range(len(matrix)))
    assert len(list(itertools.groupby(cluster[places]))) == 5
    assert (order(matrix) == places).all()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_few_or_equal(count: int, value: float) -> None:
    assert sorted(order(np.full((count, count), value))) == list(range(count))


def test_neighbours_are_the_nearest() -> None:
    """Networks along a line come back in the line's order, from one end or the other."""
    places = np.random.default_rng(0).permutation(30)
    line = places[:, None] - places[None, :]
    found = places[order(1.0 - np.abs(line) / 100)]
    assert list(found) in (list(range(30)), list(range(30))[::-1])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        (np.ones(4), r"shape \(4,\)"),
        (np.ones((0, 0)), r"shape \(0, 0\).*at least one row"),
        (np.array([[1, np.nan], [np.nan, 1]]), r"entry \[0, 1\] is nan"),
        (np.array([[1, np.inf], [np.inf, 1]]), r"entry \[0, 1\] is inf"),
        (np.array([[1, -0.1], [-0.1, 1]]), r"entry \[0, 1\] is -0.1"),
        (np.array([[1, 0.5], [0.25, 1]]), r"entry \[0, 1\] is 0.5 and \[1, 0\] is 0.25.*sqrt"),
        (np.array([["a"]]), "dtype"),
        (np.ones((1, 1), complex), "dtype complex"),
    ],
)
def test_other_matrices(matrix: np.ndarray, message: str) -> None:
    with pytest.raises(MatrixError, match=message) as caught:
        order(matrix)
    assert isinstance(caught.value, PyAssembleError)
    assert "square symmetric matrix of finite numbers from 0 to 1" in str(caught.value)


def test_other_number_of_names() -> None:
    with pytest.raises(MatrixError, match=re.escape("1 names for a matrix of shape (2, 2)")):
        checked_similarity(np.ones((2, 2)), ["a"])


def test_rounding_is_no_error() -> None:
    matrix = np.array([[1.0 + 1e-12, -1e-12], [0.0, 1.0]])
    assert checked_similarity(matrix).tolist() == [[1.0, 0.0], [0.0, 1.0]]
