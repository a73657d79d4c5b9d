"""16-bit floats in numba: every float16, and float32 numbers around every rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.halves import load, store
from pyassemble.kernels.memory import ELEMENTS, elements


@numba_jit()
def convert(size: Any, source_like: Any, source: Any, target_like: Any, target: Any) -> None:
    read, written = elements(source, size, source_like), elements(target, size, target_like)
    for i in range(size):
        store(written, i, load(read, i))


def converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.empty(x.shape, dtype=dtype)
    convert(x.numel(), ELEMENTS[x.dtype], x.data_ptr(), ELEMENTS[dtype], y.data_ptr())
    return y


def test_every_half_is_read() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        np.testing.assert_array_equal(converted(x, torch.float32).numpy(), x.float().numpy())


def test_rounding_is_that_of_pytorch() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        edges = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float()
        middle = (edges[1:].double() + edges[:-1].double()).div(2).float()  # ties
        x = torch.cat([edges, middle, middle.nextafter(middle + 1), middle.nextafter(middle - 1)])
        x = torch.cat([x, torch.tensor([65519.9, 65520.0, 3.4e38, -3.4e38, 2.0**-25, 2.0**-150])])
        ours, theirs = converted(x, dtype), x.to(dtype)
        np.testing.assert_array_equal(ours.float().numpy(), theirs.float().numpy())
        assert torch.equal(torch.signbit(ours[~ours.isnan()]), torch.signbit(theirs[~theirs.isnan()]))
