"""The C++ core's copies of regions, and its look at whether numbers are finite, against NumPy."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given

from pyassemble import _native as native
from pyassemble.transfer.methods import crop

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
KINDS = {"float32": np.float32, "float64": np.float64, "float16": np.float16, "int64": np.int64}


@st.composite
def shapes(draw: st.DrawFn) -> Shapes:
    """Shapes of a source and of a target, of one number of dimensions."""
    sizes = st.tuples(st.integers(0, 9), st.integers(0, 9))
    columns = draw(st.lists(sizes, max_size=4))
    # A long last dimension: rows that are copied in vectors.
    if columns and draw(st.booleans()):
        columns[-1] = draw(st.tuples(st.integers(60, 700), st.integers(60, 700)))
    return tuple(s for s, _ in columns), tuple(t for _, t in columns)


def place_of_saving(size: int) -> npt.NDArray[np.uint8]:
    """Room that starts on a cache line, with marks after its end."""
    memory = np.full(size + 128, 3, np.uint8)
    return memory[-memory.ctypes.data % 64 :][: size + 64]


def copies_of(sources: list[npt.NDArray[Any]], targets: list[npt.NDArray[Any]], dtypes: list[str]) -> native.Copies:
    return native.Copies(
        [source.ctypes.data for source in sources],
        [target.ctypes.data for target in targets],
        [source.shape for source in sources],
        [target.shape for target in targets],
        dtypes,
    )


@given(st.lists(st.tuples(shapes(), st.sampled_from(sorted(KINDS))), min_size=1, max_size=4), st.integers(1, 3))
def test_save_and_write_is_what_slices_do(cases: list[tuple[Shapes, str]], workers: int) -> None:
    # Numbers up to 2008, which float16 holds too.
    sources = [(np.arange(np.prod(s, dtype=int)) % 1000).astype(KINDS[kind]).reshape(s) for (s, _), kind in cases]
    targets = [
        (np.arange(np.prod(t, dtype=int)) % 1000 + 1009).astype(KINDS[kind]).reshape(t) for (_, t), kind in cases
    ]
    regions = [crop(*shapes) for shapes, _ in cases]
    held = [target[region.target].copy() for target, region in zip(targets, regions, strict=True)]
    expected = [target.copy() for target in targets]
    for target, source, region in zip(expected, sources, regions, strict=True):
        target[region.target] = source[region.source]
    copies = copies_of(sources, targets, [kind for _, kind in cases])
    assert len(copies) == len(cases)
    assert copies.elements == sum(array.size for array in held)
    assert copies.disjoint()
    saved = place_of_saving(copies.saved_bytes)
    done: list[bool] = []
    assert copies.save_and_write(saved.ctypes.data, done, workers) == len(cases)
    assert done == [True]
    for target, other in zip(targets, expected, strict=True):
        assert np.array_equal(target, other)
    for start, array in zip(copies.saved_starts, held, strict=True):
        assert np.array_equal(saved[start : start + array.nbytes].view(array.dtype), array.ravel())
    assert (saved[copies.saved_bytes :] == 3).all()


@given(
    cases=st.lists(shapes(), min_size=1, max_size=5),
    where=st.tuples(st.integers(0, 4), st.integers(0, 10**6)),
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    kind=st.sampled_from(["float16", "float32", "float64"]),
    workers=st.integers(1, 3),
)
def test_a_number_that_is_not_finite_leaves_every_target_as_it_was(
    cases: list[Shapes], where: tuple[int, int], bad: float, kind: str, workers: int
) -> None:
    sources = [np.ones(s, KINDS[kind]) for s, _ in cases]
    targets = [np.full(t, 5, KINDS[kind]) for _, t in cases]
    index = where[0] % len(cases)
    assume(sources[index].size)
    sources[index].reshape(-1)[where[1] % sources[index].size] = bad  # anywhere, also where nothing is read
    copies = copies_of(sources, targets, [kind] * len(cases))
    saved = place_of_saving(copies.saved_bytes)
    done: list[bool] = []
    assert copies.save_and_write(saved.ctypes.data, done, workers) == index
    assert done == []
    assert all((target == 5).all() for target in targets)


def test_integers_have_no_numbers_that_are_not_finite() -> None:
    source, target = np.full(100, -1), np.zeros(100, np.int64)
    copies = copies_of([source], [target], ["int64"])
    assert copies.save_and_write(place_of_saving(copies.saved_bytes).ctypes.data, [], 1) == 1
    assert (target == -1).all()


@pytest.mark.parametrize(
    ("source", "targets", "disjoint"),
    [
        ((0, 4), ((4, 8), (8, 12)), True),
        ((0, 4), ((4, 8), (7, 12)), False),
        ((0, 4), ((6, 9), (4, 6)), True),
        ((0, 4), ((3, 6), (6, 9)), False),
        ((6, 8), ((5, 9), (0, 3)), False),
        ((3, 3), ((0, 6), (6, 9)), True),
        ((0, 4), ((4, 8), (6, 6)), True),
    ],
)
def test_disjoint(source: tuple[int, int], targets: tuple[tuple[int, int], ...], disjoint: bool) -> None:
    memory = np.zeros(16, np.float32)
    sources = [memory[slice(*source)]] * len(targets)
    copies = copies_of(sources, [memory[slice(*target)] for target in targets], ["float32"] * len(targets))
    assert copies.disjoint() is disjoint


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0], [], [], [], []), ValueError, "equally long"),
        (([0], [0], [(2,)], [(2, 2)], ["float32"]), ValueError, "one number of dimensions"),
        (([0], [0], [(-2,)], [(2,)], ["float32"]), ValueError, "must not be negative"),
        (([0], [0], [(2**40, 2**40)], [(1, 1)], ["float32"]), ValueError, "too many elements"),
        (([0], [0], [(2,)], [(2,)], ["int8"]), ValueError, "dtype must be .* not int8"),
        (([0], [0], [[2]], [(2,)], ["float32"]), TypeError, "tuples of integers"),
    ],
)
def test_bad_columns_are_refused(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        native.Copies(*arguments)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        native.Copies([], [], [], [], []).save_and_write(8, [], 1)
    with pytest.raises(ValueError, match="equally long"):
        native.first_nonfinite([1], [], "float32")
    with pytest.raises(ValueError, match="dtype must be"):
        native.first_nonfinite([], [], "int8")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(
    arrays=st.lists(hnp.arrays(np.float64, st.integers(0, 40), elements=st.floats(-6e4, 6e4)), min_size=1, max_size=5),
    where=st.tuples(st.integers(0, 4), st.integers(0, 39)),
    bad=st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0]),
)
def test_first_nonfinite_names_the_first_array(
    dtype: torch.dtype, arrays: list[npt.NDArray[np.float64]], where: tuple[int, int], bad: float
) -> None:
    tensors = [torch.from_numpy(array).to(dtype) for array in arrays]
    index = where[0] % len(tensors)
    if len(tensors[index]):
        tensors[index][where[1] % len(tensors[index])] = bad
    expected = next((i for i, tensor in enumerate(tensors) if not tensor.isfinite().all()), len(tensors))
    found = native.first_nonfinite([t.data_ptr() for t in tensors], [t.numel() for t in tensors], str(dtype)[6:])
    assert found == expected
