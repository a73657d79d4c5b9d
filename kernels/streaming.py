"""Writing results that are larger than the caches, in numba: a line of memory at a time, straight past the caches.

An ordinary store first reads the line that it writes to, so that a pass over x that writes y moves three times x's size
instead of two. A kernel that is bound by memory therefore computes a part of its output in a small buffer, which stays
in a core's own cache, and streams it to where it belongs with the processor's non-temporal stores, 64 bytes at once.
What is small enough to be found in a cache by whoever reads it next is better written there in the ordinary way.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.kernels.deferred import numba_intrinsic, numba_jit

if TYPE_CHECKING:
    import torch

LINE = 64  # bytes; of x86 and most ARM processors
LEAST = 2**23  # bytes of an output from which on it is streamed


def worthwhile(output: torch.Tensor, *inputs: torch.Tensor) -> bool:
    """Whether an output is to be streamed: it is large, and none of the inputs, whose lines have just been read."""
    return output.nbytes >= LEAST and all(output.data_ptr() != x.data_ptr() for x in inputs)


@numba_intrinsic
def _copy_line(context: Any, target: Any, source: Any) -> Any:
    """Copy a line to an address that is a multiple of its size, both addresses as int64."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        value = builder.load(builder.inttoptr(arguments[1], line), align=1)
        written = builder.store(value, builder.inttoptr(arguments[0], line), align=LINE)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@numba_intrinsic
def finish(context: Any) -> Any:
    """Let no later store overtake the streamed ones: to be called before another thread is told that they are there."""
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


@numba_jit()
def buffer(like: Any, size: Any) -> Any:
    """Scratch for so many elements of an array's type, at the start of a line: unaligned, streaming takes longer."""
    raw = np.empty(size + LINE // like.itemsize, like.dtype)
    skipped = (-np.int64(raw.ctypes.data) % LINE) // raw.itemsize
    return raw[skipped : skipped + size]


@numba_jit()
def stream(target: Any, source: Any) -> None:
    """Copy an array to another of its size and type, past the caches but for broken lines at either end."""
    each = LINE // target.itemsize
    start = min(target.size, (-np.int64(target.ctypes.data) % LINE) // target.itemsize)
    lines = (target.size - start) // each
    for i in range(start):
        target[i] = source[i]
    to = np.int64(target[start:].ctypes.data)
    come = np.int64(source[start:].ctypes.data)
    for k in range(lines):
        _copy_line(to + k * LINE, come + k * LINE)
    for i in range(start + lines * each, target.size):
        target[i] = source[i]
