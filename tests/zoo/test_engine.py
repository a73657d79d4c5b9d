"""The C++ core's zoo against every pair by itself, bit for bit."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyassemble import _native as native
from pyassemble.network.backend import VARIABLE
from pyassemble.network.backend import sequence as backend_sequence
from pyassemble.zoo.engine import PairwiseEngine, count_workers, extend, make_engine
from pyassemble.zoo.tables import Tables
from tests.zoo.sequences import networks, sequence_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyassemble.network.layers import LayerSequence
    from pyassemble.zoo.engine import Engine


def tables_of(sequences: list[LayerSequence]) -> Tables:
    tables = Tables()
    for layers in sequences:
        tables.add(layers)
    return tables


def matrix(engine: Engine, networks: int, *, memory: int = 1 << 20, workers: int = 1) -> np.ndarray:
    out = np.full((networks, networks), np.nan)
    engine.directed_rows(0, networks, out, memory, workers)
    return out


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture
def any_instructions() -> Iterator[None]:
    before = native.instruction_set()
    yield
    native.use_instruction_set(before)


@given(networks(), st.sampled_from([0, 1000, 1 << 30]), st.integers(1, 3), st.data())
def test_rows_are_those_of_single_pairs(
    sequences: list[LayerSequence], memory: int, workers: int, data: st.DataObject
) -> None:
    tables, count = tables_of(sequences), len(sequences)
    witness = PairwiseEngine([backend_sequence(layers) for layers in sequences])
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    found, expected = np.full((2, last - first, count), np.nan)
    make_engine(tables).directed_rows(first, last, found, memory, workers)
    witness.directed_rows(first, last, expected, memory, 1)
    assert same_bits(found, expected)


@given(networks(), networks(min_size=1), st.booleans(), st.integers(0, 9), st.integers(1, 3))
def test_nearest_is_brute_force(
    sequences: list[LayerSequence], queries: list[LayerSequence], symmetric: bool, k: int, workers: int
) -> None:
    engine = make_engine(tables_of(sequences))
    witness = PairwiseEngine([backend_sequence(layers) for layers in sequences])
    for query in map(backend_sequence, queries):
        numbers, values, aligned = engine.nearest(query, k, symmetric, workers)
        expected_numbers, expected_values, _ = witness.nearest(query, k, symmetric, 1)
        assert numbers.tolist() == expected_numbers.tolist()
        assert same_bits(values, expected_values)
        assert aligned <= len(sequences)


@given(networks(), networks())
@settings(max_examples=30)
def test_growing(first: list[LayerSequence], second: list[LayerSequence]) -> None:
    tables = tables_of(first)
    engine, since = make_engine(tables), tables.counts
    for layers in second:
        tables.add(layers)
    assert extend(engine, tables, since)
    count = len(tables)
    assert same_bits(matrix(engine, count), matrix(make_engine(tables), count))


def random_networks(count: int) -> list[LayerSequence]:
    """Longer ones, so that sums are rounded."""
    random = np.random.default_rng(0)

    def layer() -> tuple[str | None, tuple[int, ...]]:
        kind = random.choice(["Conv2d", "Linear", "BatchNorm2d", ""], p=[0.5, 0.2, 0.2, 0.1])
        return (str(kind), tuple(int(size) for size in random.integers(1, 99, 2))) if kind else (None, ())

    blocks = [[layer() for _ in range(random.integers(1, 9))] for _ in range(12)]
    return [
        sequence_of(
            [blocks[random.integers(12)] if random.random() < 0.7 else layer() for _ in range(random.integers(1, 30))]
        )
        for _ in range(count)
    ]


def test_instruction_sets(any_instructions: None) -> None:
    sequences = random_networks(8)
    families: dict[bool, set[bytes]] = {False: set(), True: set()}
    for name in native.instruction_sets():
        native.use_instruction_set(name)
        found = matrix(make_engine(tables_of(sequences)), 8)
        assert same_bits(found, matrix(PairwiseEngine([backend_sequence(s) for s in sequences]), 8))
        families[name in ("avx2", "avx512")].add(found.tobytes())
    # What pyassemble.zoo.cluster relies on when it lets machines work together.
    assert all(len(family) <= 1 for family in families.values())


def test_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = random_networks(5)
    tables = tables_of(sequences)
    core = matrix(make_engine(tables), 5)
    ranking = make_engine(tables).nearest(backend_sequence(sequences[3]), 3, False, 1)[0].tolist()
    monkeypatch.setenv(VARIABLE, "numba")
    twin = make_engine(tables)
    assert isinstance(twin, PairwiseEngine)
    assert not extend(twin, tables, (0, 0, 0))
    found = matrix(twin, 5)
    assert same_bits(found, matrix(PairwiseEngine([backend_sequence(s) for s in sequences]), 5))
    # The core multiplies by a reciprocal where no pairs are asked for, its twin divides.
    np.testing.assert_allclose(found, core, rtol=1e-12)
    assert twin.nearest(backend_sequence(sequences[3]), 3, False, 1)[0].tolist() == ranking


@given(networks(max_size=4), networks(min_size=2, max_size=4))
@settings(max_examples=10)
def test_numba_on_small_networks(sequences: list[LayerSequence], more: list[LayerSequence]) -> None:
    tables = tables_of(sequences + more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "numba")
        found = matrix(make_engine(tables), len(tables))
    np.testing.assert_allclose(found, matrix(make_engine(tables), len(tables)), rtol=1e-12)


def test_scores_whose_squares_vanish() -> None:
    # Sizes so far apart that a score is 2^-610: what squares it, as a bound does, is left with zero.
    small, large = ("Conv2d", (1,) * 10), ("Conv2d", (1 << 61,) * 10)
    sequences = [sequence_of([("Linear", (3,))]), sequence_of([small]), sequence_of([small, small])]
    engine = make_engine(tables_of(sequences))
    witness = PairwiseEngine([backend_sequence(layers) for layers in sequences])
    query = backend_sequence(sequence_of([large, large, large]))
    for k in range(4):
        found, expected = (e.nearest(query, k, False, 1)[:2] for e in (engine, witness))
        assert found[0].tolist() == expected[0].tolist()
        assert same_bits(found[1], expected[1])
    assert expected[1][0] > 0.0


ARRAYS = (
    "layer_kinds",
    "size_offsets",
    "sizes",
    "block_offsets",
    "block_layers",
    "network_offsets",
    "network_elements",
)


@given(networks(max_size=3), networks(max_size=3), st.data())
@settings(max_examples=120)
def test_contradictory_arrays(first: list[LayerSequence], second: list[LayerSequence], data: st.DataObject) -> None:
    tables = tables_of(first)
    engine, since = native.Zoo(), tables.counts
    extend(engine, tables, (0, 0, 0))
    before = matrix(engine, len(engine))
    for layers in second:
        tables.add(layers)
    arrays = dict(zip(ARRAYS, tables.in_process(tables.arrays(since)), strict=True))
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(ARRAYS))
        limits = np.iinfo(arrays[name].dtype)
        value = data.draw(st.one_of(st.integers(-9, 30), st.sampled_from([limits.min, limits.max])))
        at = data.draw(st.integers(0, len(arrays[name])))
        change = data.draw(st.sampled_from(["insert", "drop", "set"]))
        if change == "insert":
            arrays[name] = np.insert(arrays[name], at, value)
        elif at < len(arrays[name]):
            arrays[name] = np.delete(arrays[name], at) if change == "drop" else arrays[name].copy()
            if change == "set":
                arrays[name][at] = value
    try:
        engine.extend(**arrays)
    except ValueError:
        assert len(engine) == len(first)
        assert same_bits(matrix(engine, len(engine)), before)
        # Nothing was left behind: what was meant fits, numbers and all.
        extend(engine, tables, since)
        assert same_bits(matrix(engine, len(engine)), matrix(make_engine(tables), len(tables)))
    else:
        out = matrix(engine, len(engine))
        assert ((out >= 0) & (out <= 1 + 1e-12)).all()


def test_arrays_of_other_types_are_refused() -> None:
    tables = tables_of([sequence_of([("Linear", (3, 4)), [("Linear", (3,))]])])
    arrays = tables.in_process(tables.arrays())
    for i in range(len(arrays)):
        for wrong, error in ((arrays[i].astype(float), TypeError), (arrays[i][None], ValueError), (None, TypeError)):
            engine = native.Zoo()
            with pytest.raises(error):
                engine.extend(*arrays[:i], wrong, *arrays[i + 1 :])
            assert len(engine) == 0


def test_rows_outside_and_other_matrices_are_refused() -> None:
    engine = make_engine(tables_of([sequence_of([("Linear", (3, 4))])] * 3))
    with pytest.raises(IndexError, match="rows must lie within the zoo"):
        engine.directed_rows(2, 4, np.empty((2, 3)), 0, 1)
    with pytest.raises(IndexError, match="rows must lie within the zoo"):
        engine.directed_rows(-1, 1, np.empty((2, 3)), 0, 1)
    for out in (np.empty((3, 2)), np.empty((2, 3)), np.empty(9), np.empty((3, 3), order="F"), np.empty((3, 6))[:, ::2]):
        with pytest.raises(ValueError, match="out must be a C-contiguous float64 array"):
            engine.directed_rows(0, 3, out, 0, 1)
    with pytest.raises(TypeError):
        engine.directed_rows(0, 3, np.empty((3, 3), np.float32), 0, 1)
    read_only = np.empty((3, 3))
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        engine.directed_rows(0, 3, read_only, 0, 1)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        engine.directed_rows(0, 3, np.empty((3, 3)), 0, 0)


def test_one_thread_extends_while_others_search() -> None:
    sequences = random_networks(40)
    tables = tables_of(sequences[:4])
    engine = make_engine(tables)
    query = backend_sequence(sequences[0])
    failures: list[BaseException] = []
    stop = threading.Event()

    def search() -> None:
        try:
            while not stop.is_set():
                numbers, _, _ = engine.nearest(query, 2, True, 2)
                assert numbers[0] == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for layers in sequences[4:]:
        since = tables.counts
        tables.add(layers)
        extend(engine, tables, since)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert same_bits(matrix(engine, 40), matrix(make_engine(tables), 40))


def test_more_workers_than_a_machine_has() -> None:
    sequences = random_networks(6)
    engine = make_engine(tables_of(sequences))
    assert same_bits(matrix(engine, 6, workers=2**31), matrix(engine, 6))


def test_counting_workers() -> None:
    assert count_workers(-1) >= 1
    assert count_workers(3) == 3
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=r"workers must be -1 \(one per core\) or positive, not"):
            count_workers(wrong)
