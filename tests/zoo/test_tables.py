"""Networks as numbered layers and blocks, and as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyassemble.network.backend import backend, kind_id, sequence
from pyassemble.zoo.tables import FIRST_BLOCK, UNSCORED, Arrays, Tables
from tests.zoo.sequences import networks, sequence_of, spelled_out

if TYPE_CHECKING:
    from pyassemble.network.layers import LayerSequence

CONV, NORM, ACT = ("Conv2d", (8, 3, 3, 3)), ("BatchNorm2d", (8,)), (None, ())


def tables_of(sequences: list[LayerSequence]) -> Tables:
    tables = Tables()
    for layers in sequences:
        tables.add(layers)
    return tables


def same(a: Arrays, b: Arrays) -> bool:
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_equal_layers_and_blocks_are_held_once() -> None:
    tables = tables_of(
        [sequence_of([CONV, [CONV, NORM, ACT], [CONV, NORM, ACT]]), sequence_of([[CONV, NORM, ACT], NORM])]
    )
    arrays = tables.arrays()
    assert tables.counts == (2, 1, 2)
    assert list(tables.kinds) == ["Conv2d", "BatchNorm2d"]
    assert arrays.layer_kinds.tolist() == [0, 1]
    assert arrays.sizes.tolist() == [8, 3, 3, 3, 8]
    assert arrays.block_layers.tolist() == [0, 1, UNSCORED]
    assert arrays.network_elements.tolist() == [0, FIRST_BLOCK, FIRST_BLOCK, FIRST_BLOCK, 1]
    assert arrays.network_offsets.tolist() == [0, 3, 5]


def test_an_empty_tensor_is_no_layer() -> None:
    tables = tables_of([sequence_of([("Linear", (0, 8)), ("Linear", (4, 8))])])
    assert spelled_out(tables) == [[None, ("Linear", [4, 8])]]


@given(networks())
def test_arrays_come_back(sequences: list[LayerSequence]) -> None:
    tables = tables_of(sequences)
    again = Tables.from_arrays(tables.kinds, tables.arrays())
    assert same(again.arrays(), tables.arrays())
    assert again.kinds == tables.kinds
    again.add(sequence_of([CONV, [NORM, ACT]]))
    tables.add(sequence_of([CONV, [NORM, ACT]]))
    assert same(again.arrays(), tables.arrays())


@given(networks(), st.integers(0, 7))
def test_what_came_since(sequences: list[LayerSequence], first: int) -> None:
    tables = tables_of(sequences[:first])
    before, since = tables.arrays(), tables.counts
    for layers in sequences[first:]:
        tables.add(layers)
    now, rest = tables.arrays(), tables.arrays(since)
    for name in ("layer_kinds", "sizes", "block_layers", "network_elements"):
        joined = np.concatenate((getattr(before, name), getattr(rest, name)))
        assert np.array_equal(joined, getattr(now, name))
    for name in ("size_offsets", "block_offsets", "network_offsets"):
        old, new = getattr(before, name), getattr(rest, name)
        assert np.array_equal(np.concatenate((old, old[-1] + new[1:])), getattr(now, name))


@given(networks(min_size=1), st.data())
def test_part(sequences: list[LayerSequence], data: st.DataObject) -> None:
    tables = tables_of(sequences)
    chosen = data.draw(st.lists(st.integers(0, len(sequences) - 1)))
    part = tables.part(chosen)
    assert same(part.arrays(), tables_of([sequences[i] for i in chosen]).arrays())
    assert spelled_out(part) == [spelled_out(tables)[i] for i in chosen]


@given(networks())
def test_sequences_are_those_of_the_networks(sequences: list[LayerSequence]) -> None:
    for mine, layers in zip(tables_of(sequences).sequences(), sequences, strict=True):
        theirs = sequence(layers)
        assert (mine.num_layers, mine.num_elements, mine.num_scored) == (
            theirs.num_layers,
            theirs.num_elements,
            theirs.num_scored,
        )
        assert backend().align(mine, theirs)[0] == theirs.num_scored


def test_kinds_are_numbered_as_in_this_process() -> None:
    kind_id("some kind that came first")
    tables = tables_of([sequence_of([NORM, CONV])])
    assert tables.in_process(tables.arrays()).layer_kinds.tolist() == [kind_id("BatchNorm2d"), kind_id("Conv2d")]
    assert Tables().in_process(Tables().arrays()).layer_kinds.tolist() == []


CONTRADICTIONS = {
    "layer_kinds": [[0, 2], [0, -1], [0], [0, 1, 1]],
    "size_offsets": [[0, 4], [0, 4, 6], [1, 4, 5], [0, 6, 5], []],
    "sizes": [[8, 3, 3, 0, 8], [8, 3, 3, -3, 8], [8, 3, 3, 3]],
    "block_offsets": [[0, 0, 3], [0, 4], [0], [0, -1, 3]],
    "block_layers": [[0, 2, -1], [0, 1, -2], [0, 1]],
    "network_offsets": [[0, 4], [3, 2], []],
    "network_elements": [[0, -3, 1], [2, -2, 1], [0, -2], [0, -(2**31), 1]],
}


@pytest.mark.parametrize(("name", "values"), [(name, v) for name, several in CONTRADICTIONS.items() for v in several])
def test_contradictions_are_refused(name: str, values: list[int]) -> None:
    tables = tables_of([sequence_of([CONV, [CONV, NORM, ACT], NORM])])
    arrays = tables.arrays()
    wrong = arrays._replace(**{name: np.array(values, getattr(arrays, name).dtype)})
    with pytest.raises(ValueError, match=r"\w"):
        Tables.from_arrays(tables.kinds, wrong)


@pytest.mark.parametrize("name", Arrays._fields)
def test_other_types_are_refused(name: str) -> None:
    tables = tables_of([sequence_of([CONV, [CONV, NORM, ACT], NORM])])
    arrays = tables.arrays()
    for wrong in (getattr(arrays, name).astype(np.float64), getattr(arrays, name)[None]):
        with pytest.raises(ValueError, match=f"{name} must be a one-dimensional array of int"):
            Tables.from_arrays(tables.kinds, arrays._replace(**{name: wrong}))


def test_repetitions_are_refused() -> None:
    tables = tables_of([sequence_of([CONV, [CONV], [NORM], NORM])])
    arrays = tables.arrays()
    with pytest.raises(ValueError, match="a kind or a layer occurs twice"):
        Tables.from_arrays(["Conv2d", "Conv2d"], arrays)
    twice = arrays._replace(
        size_offsets=np.array([0, 1, 2]), sizes=np.array([8, 8]), layer_kinds=np.array([0, 0], np.int32)
    )
    with pytest.raises(ValueError, match="a kind or a layer occurs twice"):
        Tables.from_arrays(tables.kinds, twice)
    with pytest.raises(ValueError, match="a block occurs twice"):
        Tables.from_arrays(tables.kinds, arrays._replace(block_layers=np.array([1, 1], np.int32)))
