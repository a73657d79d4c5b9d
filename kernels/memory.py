"""The memory of dense CPU tensors as numba's kernels see it: an address, and the type of the elements.

Kernels take addresses because making a NumPy array of a tensor takes several calls into PyTorch. Each costs some tens
of microseconds once a pass over a large tensor has driven the interpreter out of the caches.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from pyassemble.kernels.deferred import numba_intrinsic

# Empty arrays, which tell a kernel its elements' type; 16-bit floats are bits (see ``halves``).
ELEMENTS: dict[torch.dtype, Any] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
}


@numba_intrinsic
def elements(context: Any, address: Any, size: Any, like: Any) -> Any:
    """So many elements in the order of memory, as a one-dimensional array of the type of ``like``.

    What ``numba.carray`` gives, compiled in a tenth of the time.
    """
    types = importlib.import_module("numba.core.types")
    arrays = importlib.import_module("numba.np.arrayobj")
    array_type = types.Array(like.dtype, 1, "C")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = arrays.make_array(array_type)(context, builder)
        item = context.get_abi_sizeof(context.get_data_type(like.dtype))
        arrays.populate_array(
            array,
            data=builder.inttoptr(arguments[0], array.data.type),
            shape=[arguments[1]],
            strides=[context.get_constant(types.intp, item)],
            itemsize=context.get_constant(types.intp, item),
            meminfo=None,
        )
        return array._getvalue()

    return array_type(types.int64, types.intp, like), emit
