"""The C++ core's copies of regions, and its look at whether numbers are finite, against NumPy."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given

from pyassemble import _native as native


@st.composite
def regions(draw: st.DrawFn) -> tuple[list[list[int]], type[np.generic]]:
    """Source shape, target shape, starts in both, extents; and an element type."""
    columns: list[list[int]] = []
    for _ in range(draw(st.integers(0, 4))):
        extent = draw(st.integers(0, 9))
        before, after = draw(st.tuples(st.integers(0, 3), st.integers(0, 3))), draw(st.integers(0, 3))
        other = draw(st.integers(0, 3))
        columns.append([before[0] + extent + after, before[1] + extent + other, before[0], before[1], extent])
    # A long last dimension: rows that are copied in vectors, and in several pieces.
    if columns and draw(st.booleans()):
        wide = draw(st.integers(100, 40_000)) if len(columns) < 3 else 100
        columns[-1] = [wide + 1, wide + 2, 1, 1, wide]
    kind = draw(st.sampled_from([np.uint8, np.uint16, np.float32, np.float64, np.complex128]))
    return [list(row) for row in zip(*columns, strict=True)] or [[]] * 5, kind


@given(regions())
def test_save_and_copy_is_what_slices_do(case: tuple[list[list[int]], type[np.generic]]) -> None:
    (source_shape, target_shape, source_starts, target_starts, extents), kind = case
    crop = native.Crop(source_shape, target_shape, source_starts, target_starts, extents)
    source = np.arange(np.prod(source_shape, dtype=int)).astype(kind).reshape(source_shape)
    target = (np.arange(np.prod(target_shape, dtype=int)) + 7).astype(kind).reshape(target_shape)
    from_, to = (
        tuple(slice(start, start + extent) for start, extent in zip(starts, extents, strict=True))
        for starts in (source_starts, target_starts)
    )
    held = target[to].copy()
    expected = target.copy()
    expected[to] = source[from_]
    assert crop.elements == held.size
    saved = np.full(held.size + 16, 3, kind)
    done: list[bool] = []
    native.save_and_copy(
        [crop], [source.ctypes.data], [target.ctypes.data], [saved.ctypes.data], [source.itemsize], done
    )
    assert done == [True]
    assert np.array_equal(target, expected)
    assert np.array_equal(saved[: held.size], held.ravel())
    assert (saved[held.size :] == 3).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ([2], [2], [0], [0], [3]),
        ([4], [2], [0], [1], [2]),
        ([2], [4], [1], [0], [2]),
        ([2], [2], [-1], [0], [1]),
        ([2], [2], [0], [-1], [1]),
        ([2], [2], [0], [0], [-1]),
        ([2, 2], [2], [0], [0], [1]),
        ([2**40, 2**40], [1, 1], [0, 0], [0, 0], [1, 1]),
    ],
)
def test_crop_refuses_regions_outside_their_arrays(arguments: tuple[list[int], ...]) -> None:
    with pytest.raises(ValueError, match=r"region must lie|one number of dimensions|too many elements"):
        native.Crop(*arguments)


def test_lists_of_unequal_length_are_refused() -> None:
    done: list[bool] = []
    with pytest.raises(ValueError, match="equally long"):
        native.save_and_copy([], [1], [], [], [], done)
    assert done == []
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
