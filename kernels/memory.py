"""The memory of dense CPU tensors as numba's kernels see it: an address, and the type of the elements.

Kernels take addresses because making a NumPy array of a tensor takes several calls into PyTorch. Each costs some tens
of microseconds once a pass over a large tensor has driven the interpreter out of the caches.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyassemble.kernels.deferred import numba_intrinsic, numba_jit

if TYPE_CHECKING:
    from numba import carray  # type: ignore[attr-defined]

# Empty arrays, which tell a kernel its elements' type; 16-bit floats are bits (see ``halves``).
ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
}


@numba_intrinsic
def _pointer(context: Any, address: Any) -> Any:
    """An int64 as untyped pointer, for ``numba.carray``."""
    types = importlib.import_module("numba.core.types")

    def convert(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), convert


@numba_jit()
def elements(address: Any, size: Any, like: Any) -> Any:
    """So many elements in the order of memory, as a one-dimensional array of the type of ``like``."""
    return carray(_pointer(address), (size,), like.dtype)
