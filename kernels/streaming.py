"""Reading and writing what is larger than the caches, in numba: a line of memory at a time, past the caches.

An ordinary store first reads the line that it writes to, so that a pass over x that writes y moves three times x's size
instead of two. A kernel that is bound by memory therefore computes a part of its output in a small buffer, which stays
in a core's own cache, and streams it to where it belongs with the processor's non-temporal stores, 64 bytes at once.
What is small enough to be found in a cache by whoever reads it next is better written there in the ordinary way.

Everything here is in addresses and bytes, whatever the elements are: numba compiles integers faster than arrays.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pyassemble.kernels.deferred import numba_intrinsic, numba_jit

if TYPE_CHECKING:
    import torch

LINE = 64  # bytes; of x86 and most ARM processors
BUFFER = 2**16  # bytes of a buffer, on the stack
LEAST = 2**23  # bytes of an output from which on it is streamed


def worthwhile(unit: int, output: torch.Tensor, *inputs: torch.Tensor) -> bool:
    """Whether to stream an output: a unit of so many elements fits the buffer, and the output is large and none of the
    inputs, whose lines have just been read.
    """  # noqa: D205
    fits = unit * output.element_size() <= BUFFER
    return fits and output.nbytes >= LEAST and all(output.data_ptr() != x.data_ptr() for x in inputs)


@numba_intrinsic
def prefetch(context: Any, address: Any) -> Any:
    """Have the line of memory at any address on its way, to be read once: it shall not take the place of others.

    The address may lie behind a tensor's end, or be nobody's: then nothing happens.
    """
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, integer, integer, integer])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, once, data = integer(0), integer(0), integer(1)
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, once, data])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@numba_intrinsic
def buffer(context: Any) -> Any:
    """Address of the calling function's buffer, at the start of a line: unaligned, streaming takes longer."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():  # once, whatever loop the call is in
            place = builder.alloca(ir.ArrayType(ir.IntType(8), BUFFER))
        place.align = LINE
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(), emit


@numba_intrinsic
def _copy_line(context: Any, target: Any, source: Any) -> Any:
    """Copy a line from any address to one that is a multiple of its size, past the caches."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        value = builder.load(builder.inttoptr(arguments[1], line), align=1)
        store = builder.store(value, builder.inttoptr(arguments[0], line), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@numba_intrinsic
def _copy_two_bytes(context: Any, target: Any, source: Any) -> Any:
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        two = ir.IntType(16).as_pointer()
        builder.store(builder.load(builder.inttoptr(arguments[1], two)), builder.inttoptr(arguments[0], two))
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


@numba_jit(inline=True)
def stream(target: Any, source: Any, size: Any) -> None:
    """Copy an even number of bytes from address to address, past the caches but for broken lines at either end."""
    start = -target % LINE
    start = size if size < start else start
    stop = size - (size - start) % LINE
    for i in range(0, start, 2):
        _copy_two_bytes(target + i, source + i)
    for i in range(start, stop, LINE):
        _copy_line(target + i, source + i)
    for i in range(stop, size, 2):
        _copy_two_bytes(target + i, source + i)
