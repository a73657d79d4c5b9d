"""Labels stay apart, and stay where they belong if there is room."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyassemble.report.placement import spread


def test_room_for_all() -> None:
    assert spread([1.0, 3.0, 5.0], 1.0, 6.0) == [1.0, 3.0, 5.0]
    assert spread([], 1.0, 6.0) == []


def test_close_labels_share_the_way() -> None:
    assert spread([2.0, 2.0, 2.0], 1.0, 6.0) == [1.0, 2.0, 3.0]
    assert spread([0.0, 0.0], 1.0, 6.0) == [0.0, 1.0]
    assert spread([6.0, 6.0], 1.0, 6.0) == [5.0, 6.0]


@given(st.lists(st.floats(0, 10), max_size=10).map(sorted))
def test_never_overlap(anchors: list[float]) -> None:
    places = spread(anchors, 1.0, 10.0)
    assert all(b - a >= 1.0 - 1e-9 for a, b in itertools.pairwise(places))
    assert all(-1e-9 <= place <= 10.0 + 1e-9 for place in places)


def test_too_many_begin_before() -> None:
    assert spread([0.0, 0.0, 0.0], 1.0, 1.0) == pytest.approx([-1.0, 0.0, 1.0])
