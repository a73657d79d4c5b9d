"""C++ core, numba twin and textbook oracle agree bit for bit; core and twin refuse bad inputs in the same words."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from pyassemble import _native as native
from pyassemble.kernels import recurrence as twin
from tests.oracles import recurrence as oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

BOTH = pytest.mark.parametrize("module", [native, twin], ids=["native", "numba"])
# Vectors hold 2, 4 or 8 doubles, rows are handled by four: sizes on both sides of each multiple.
LENGTHS = st.one_of(st.integers(0, 9), st.integers(10, 40))
FEW = [
    [0.0, 0.25, 0.5, 1.0],
    [0.0, 0.0, 0.0, 0.0, 0.0, 1.0 / 3.0, 1.0],
    [1.0],
    [0.0, 5e-324, 1e-320, 2.5e-308, 1e-289, 1.0],
]


@pytest.fixture(autouse=True)
def _restore_instruction_set() -> Iterator[None]:
    before = native.instruction_set()
    yield
    native.use_instruction_set(before)


def bits(value: float) -> str:
    return float(value).hex()


def listed(result: tuple[float, Any, Any]) -> tuple[str, list[tuple[int, int]]]:
    value, sources, targets = result
    assert sources.dtype == targets.dtype == np.int32
    return bits(value), list(zip(sources.tolist(), targets.tolist(), strict=True))


def arrays(network: list[oracle.Element]) -> tuple[np.ndarray, ...]:
    layers = [layer for element in network for layer in (element if isinstance(element, list) else [element])]
    lengths = [len(element) if isinstance(element, list) else 1 for element in network]
    return (
        np.array([-1 if kind is None else kind for kind, _ in layers], np.int32),
        np.cumsum([0, *[len(shape) for _, shape in layers]], dtype=np.int64),
        np.array([size for _, shape in layers for size in shape], np.int64),
        np.cumsum([0, *lengths], dtype=np.int64),
        np.array([isinstance(element, list) for element in network], np.bool_),
    )


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    shape = (draw(LENGTHS), draw(LENGTHS))
    # Random numbers come from one drawn seed: drawing 1600 floats one by one would only slow the search down.
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    palette = draw(st.one_of(st.none(), st.sampled_from(FEW)))
    return random.random(shape) if palette is None else random.choice(palette, shape)


sizes = st.sampled_from([1, 2, 3, 4, 8, 16, 24])
layers = st.tuples(st.sampled_from([None, 0, 0, 1, 2]), st.lists(sizes, max_size=3).map(tuple))
networks = st.lists(st.one_of(layers, st.lists(layers, min_size=1, max_size=9)), max_size=12)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(matrices())
def test_recurrence_is_the_oracle(scores: np.ndarray) -> None:
    value, pairs = oracle.recurrence(scores.tolist(), scores.shape[1])
    expected = bits(value), pairs
    for name in native.instruction_sets():
        native.use_instruction_set(name)
        assert listed(native.recurrence(scores)) == expected
        assert native.recurrence_value(scores) == pytest.approx(value, rel=1e-12, abs=0)
    assert listed(twin.recurrence(scores)) == expected
    assert bits(twin.recurrence_value(scores)) == expected[0]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks, networks)
def test_align_is_the_oracle(source: list[oracle.Element], target: list[oracle.Element]) -> None:
    value, pairs = oracle.align(source, target)
    matrix = [[oracle.element_score(s, t) for s in source] for t in target]
    modules: list[tuple[ModuleType, str | None]] = [(native, name) for name in native.instruction_sets()]
    for module, name in [*modules, (twin, None)]:
        if name is not None:
            native.use_instruction_set(name)
        s, t = module.Sequence(*arrays(source)), module.Sequence(*arrays(target))
        assert listed(module.align(s, t)) == (bits(value), pairs)
        assert module.score(s, t) == pytest.approx(value, rel=1e-12, abs=0)
        assert module.score_matrix(s, t).shape == (len(target), len(source))
        assert module.score_matrix(s, t).tolist() == matrix


@pytest.mark.parametrize("shape", [(200, 130), (97, 301)])
@pytest.mark.parametrize("palette", [None, *FEW[:2]], ids=["random", "ties", "sparse"])
def test_large_matrices_agree(shape: tuple[int, int], palette: list[float] | None) -> None:
    random = np.random.default_rng(1)
    scores = random.random(shape) if palette is None else random.choice(palette, shape)
    expected = listed(twin.recurrence(scores))
    for name in native.instruction_sets():
        native.use_instruction_set(name)
        assert listed(native.recurrence(scores)) == expected
        assert native.recurrence_value(scores) == pytest.approx(float.fromhex(expected[0]), rel=1e-12)


@BOTH
def test_a_network_matches_itself_completely(module: ModuleType) -> None:
    network: list[oracle.Element] = [(0, (8, 3)), [(0, (8, 8)), (None, ()), (1, (8,))], (2, ()), [(1, (8,))]]
    sequence = module.Sequence(*arrays(network))
    value, sources, targets = module.align(sequence, sequence)
    assert (sequence.num_layers, sequence.num_elements, sequence.num_scored) == (6, 4, 5)
    assert value == 5.0
    assert sources.tolist() == targets.tolist() == [0, 1, 3, 4, 5]
    assert repr(sequence) == "<Sequence of 6 layers in 4 elements, 5 scored>"


@BOTH
def test_a_block_of_one_layer_is_no_layer(module: ModuleType) -> None:
    block, layer = module.Sequence(*arrays([[(0, (4,))]])), module.Sequence(*arrays([(0, (4,))]))
    assert module.align(block, layer)[0] == module.score(layer, block) == 0.0
    assert module.align(block, block)[0] == 1.0


@BOTH
def test_one_source_serves_a_run_and_gaps_count_in_its_length(module: ModuleType) -> None:
    value, sources, targets = module.recurrence(np.array([[1.0], [0.0], [1.0]]))
    assert value == 2 / np.sqrt(3)
    assert (sources.tolist(), targets.tolist()) == ([0, 0], [0, 2])


@BOTH
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_nothing_to_match(module: ModuleType, shape: tuple[int, int]) -> None:
    assert listed(module.recurrence(np.zeros(shape))) == (bits(0.0), [])
    assert module.recurrence_value(np.zeros(shape)) == 0.0


@BOTH
def test_any_memory_layout(module: ModuleType) -> None:
    scores = np.random.default_rng(0).random((12, 9))
    expected = listed(module.recurrence(scores))
    unaligned = np.zeros(scores.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(scores.shape)
    unaligned[:] = scores
    read_only = scores.copy()
    read_only.flags.writeable = False
    for variant in (
        np.asfortranarray(scores),
        np.repeat(scores, 2, 1)[:, ::2],
        scores[::-1].copy()[::-1],
        unaligned,
        read_only,
    ):
        assert listed(module.recurrence(variant)) == expected


def outcome(call: Callable[[], Any]) -> tuple[type, str] | None:
    try:
        call()
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None


GOOD = arrays([(0, (4, 2)), [(1, (4,)), (None, ())]])
BROKEN = {
    "short size_offsets": (ValueError, 1, np.array([0, 2, 3])),
    "late size_offsets": (ValueError, 1, np.array([1, 2, 3, 3])),
    "decreasing size_offsets": (ValueError, 1, np.array([0, 4, 3, 3])),
    "unfinished size_offsets": (ValueError, 1, np.array([0, 1, 2, 2])),
    "empty size_offsets": (ValueError, 1, np.array([], np.int64)),
    "zero size": (ValueError, 2, np.array([4, 0, 4])),
    "negative size": (ValueError, 2, np.array([4, 2, -4])),
    "bad kind": (ValueError, 0, np.array([0, -2, -1], np.int32)),
    "empty element": (ValueError, 3, np.array([0, 0, 3])),
    "long layer": (ValueError, 3, np.array([0, 2, 3])),
    "late element_offsets": (ValueError, 3, np.array([1, 2, 3])),
    "decreasing element_offsets": (ValueError, 3, np.array([0, 4, 3])),
    "unfinished element_offsets": (ValueError, 3, np.array([0, 1, 2])),
    "long is_block": (ValueError, 4, np.array([False, True, True])),
    "int64 kinds": (TypeError, 0, np.array([0, 1, -1])),
    "float sizes": (TypeError, 2, np.array([4.0, 2.0, 4.0])),
    "unsigned sizes": (TypeError, 2, np.array([4, 2, 4], np.uint64)),
    "swapped bytes": (TypeError, 2, np.array([4, 2, 4], np.dtype(np.int64).newbyteorder())),
    "two dimensions": (TypeError, 0, np.array([[0, 1, -1]], np.int32)),
    "list": (TypeError, 3, [0, 1, 3]),
    "int64 is_block": (TypeError, 4, np.array([0, 1])),
    "none": (TypeError, 4, None),
}


@pytest.mark.parametrize(("error", "position", "array"), BROKEN.values(), ids=BROKEN)
def test_contradicting_arrays_are_refused(error: type, position: int, array: Any) -> None:
    broken = [*GOOD[:position], array, *GOOD[position + 1 :]]
    found = outcome(lambda: native.Sequence(*broken))
    assert found is not None
    assert found[0] is error
    assert found == outcome(lambda: twin.Sequence(*broken))


def test_is_block_may_be_uint8_and_unscored_layers_any_shape() -> None:
    for module in (native, twin):
        sequence = module.Sequence(*GOOD[:4], GOOD[4].astype(np.uint8))
        assert module.align(sequence, module.Sequence(*GOOD))[0] == 2.0
        odd = module.Sequence(
            np.array([-1], np.int32), np.array([0, 2]), np.array([0, -7]), np.array([0, 1]), np.array([False])
        )
        assert (odd.num_layers, odd.num_scored) == (1, 0)


@pytest.mark.parametrize(
    ("error", "scores"),
    [
        (ValueError, np.array([[np.nan]])),
        (ValueError, np.array([[0.5, np.inf]])),
        (ValueError, np.array([[0.5], [-1e-300]])),
        (TypeError, np.zeros((2, 2), np.float32)),
        (TypeError, np.zeros(2)),
        (TypeError, np.zeros((1, 1, 1))),
        (TypeError, np.zeros((2, 2), np.dtype(np.float64).newbyteorder())),
        (TypeError, [[0.5]]),
        (TypeError, None),
    ],
)
def test_scores_that_are_none(error: type, scores: Any) -> None:
    for name in ("recurrence", "recurrence_value"):
        found = outcome(lambda name=name: getattr(native, name)(scores))
        assert found is not None
        assert found[0] is error
        assert found == outcome(lambda name=name: getattr(twin, name)(scores))


def test_only_sequences_are_aligned() -> None:
    for name in ("align", "score", "score_matrix"):
        for wrong in ([lambda sequence: (None, sequence)], [lambda sequence: (sequence, 5)]):
            make = wrong[0]
            results = [
                outcome(lambda m=m, n=name, f=make: getattr(m, n)(*f(m.Sequence(*GOOD)))) for m in (native, twin)
            ]
            assert results[0] is not None
            assert results[0] == results[1]
    with pytest.raises(TypeError, match="source must be a Sequence, not Sequence"):
        native.align(twin.Sequence(*GOOD), native.Sequence(*GOOD))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.none(), hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    st.lists(
        st.one_of(
            st.none(),
            hnp.arrays(
                st.sampled_from([np.int32, np.int64, np.bool_, np.uint8]),
                st.integers(0, 5),
                elements={"min_value": 0, "max_value": 5},
            ),
        ),
        min_size=5,
        max_size=5,
    ),
)
def test_arbitrary_arrays_never_crash(matrix: Any, parts: list[Any]) -> None:
    assert outcome(lambda: native.recurrence(matrix)) == outcome(lambda: twin.recurrence(matrix))
    assert outcome(lambda: native.Sequence(*parts)) == outcome(lambda: twin.Sequence(*parts))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.int32, 3, elements=st.integers(-3, 3)),
    hnp.arrays(np.int64, 4, elements=st.integers(-1, 6)),
    hnp.arrays(np.int64, st.integers(0, 6), elements=st.integers(-1, 6)),
    hnp.arrays(np.int64, st.integers(0, 4), elements=st.integers(-1, 4)),
    hnp.arrays(np.bool_, st.integers(0, 3)),
)
def test_arrays_of_the_right_type_are_judged_alike(
    kinds: np.ndarray, size_offsets: np.ndarray, sizes: np.ndarray, element_offsets: np.ndarray, is_block: np.ndarray
) -> None:
    parts = (kinds, size_offsets, sizes, element_offsets, is_block)
    assert outcome(lambda: native.Sequence(*parts)) == outcome(lambda: twin.Sequence(*parts))


def test_instruction_sets() -> None:
    names = native.instruction_sets()
    assert names[0] == "scalar"
    assert native.instruction_set() == names[-1]
    with pytest.raises(ValueError, match=f"unknown instruction set 'mmx'; known: {', '.join(names)}"):
        native.use_instruction_set("mmx")
    assert native.instruction_set() == names[-1]


def test_rates_are_positive() -> None:
    assert native.fma_rate(0.01) > 0
    assert native.recurrence_rate(5, 7, exact=True, seconds=0.01) > 0
    with pytest.raises(ValueError, match="positive"):
        native.recurrence_rate(0, 7, exact=False)


def test_other_threads_run_meanwhile() -> None:
    ticks = 0
    inside, finished = threading.Event(), threading.Event()

    def work() -> None:
        inside.set()
        native.fma_rate(0.5)
        finished.set()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    while not finished.is_set():
        ticks += 1
        finished.wait(0.001)
    thread.join()
    assert ticks > 20


def test_threads_share_sequences() -> None:
    random = np.random.default_rng(3)
    network: list[oracle.Element] = [[(int(random.integers(0, 3)), (8, 8)) for _ in range(8)] for _ in range(40)]
    sequence = native.Sequence(*arrays(network))
    expected = listed(native.align(sequence, sequence))
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(listed(native.align(sequence, sequence)))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8
