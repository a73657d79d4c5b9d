"""Parallel regions: numba functions that threads enter directly, with no Python on the way.

A region gets the address of a block of 64-bit words that all its threads share: two counters, how many pieces and units
the work is cut into, and what the region is told, integers and float64. Each thread takes the next piece until none is
left: one may be late, or share its core with another process. What is computed for one unit must not depend on how the
units are cut. Regions take their scratch memory from the caller, so that nothing in them can fail.
"""

from __future__ import annotations

import ctypes
import importlib
import struct
import threading
from typing import TYPE_CHECKING, Any

from pyassemble.kernels import parallel
from pyassemble.kernels.deferred import numba_intrinsic, numba_jit, numba_region
from pyassemble.kernels.memory import ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

PIECES_EACH = 4  # per thread
TAKEN, ARRIVED, PIECES, UNITS, FIRST = range(5)  # words of a block; from FIRST on the region's own


class Region:
    """A function of a block, compiled for each combination of types of elements that it is run with.

    Args:
        function: Of the block; ``like`` tells it the types.
        words: What it is told, in the letters of ``struct``: q for an integer, d for a float64.
    """

    def __init__(self, function: Callable[[Any], None], words: str) -> None:
        self._deferred = numba_region(function)
        self._block = struct.Struct(f"=4q{words}")
        self._entries: dict[tuple[torch.dtype, ...], parallel.Entry] = {}
        self._lock = threading.Lock()

    def run(self, types: tuple[torch.dtype, ...], units: int, threads: int, *words: Any) -> None:
        """Run over all units.

        Args:
            types: Of the elements, in the order in which ``like`` counts them.
            units: Number of units.
            threads: Number of threads, this one among them.
            words: What the region is told.
        """
        entry = self._entries.get(types) or self._compile(types)
        pieces = min(units, threads * PIECES_EACH) if threads > 1 else 1
        block = ctypes.create_string_buffer(self._block.pack(0, 0, pieces, units, *words), self._block.size)
        parallel.enter(entry, block, threads)

    def _compile(self, types: tuple[torch.dtype, ...]) -> parallel.Entry:
        with self._lock:
            if types not in self._entries:
                kinds: Any = importlib.import_module("numba.core.types")
                from_dtype = importlib.import_module("numba.np.numpy_support").from_dtype
                elements = kinds.Tuple([from_dtype(ELEMENTS[dtype].dtype) for dtype in types])
                self._entries[types] = parallel.Entry(self._deferred(kinds.void(kinds.CPointer(elements))))
            return self._entries[types]


def region(words: str) -> Callable[[Callable[[Any], None]], Region]:
    """Make a region of a function that is told such words."""
    return lambda function: Region(function, words)


@numba_intrinsic
def like(context: Any, block: Any, which: Any) -> Any:
    """An empty array of one of the types that the region is compiled for."""
    types = importlib.import_module("numba.core.types")
    if not isinstance(which, types.IntegerLiteral):
        return None
    return _empty(types, block.dtype[which.literal_value], block, which)


@numba_intrinsic
def wide_like(context: Any, block: Any) -> Any:
    """An empty array of the type that the first type's elements are computed in."""
    types = importlib.import_module("numba.core.types")
    return _empty(types, types.float64 if block.dtype[0] == types.float64 else types.float32, block)


def _empty(types: Any, dtype: Any, *arguments: Any) -> Any:
    arrays = importlib.import_module("numba.np.arrayobj")
    array_type = types.Array(dtype, 1, "C")

    def emit(context: Any, builder: Any, signature: Any, _: Any) -> Any:
        array = arrays.make_array(array_type)(context, builder)
        zero, item = (context.get_constant(types.intp, n) for n in (0, dtype.bitwidth // 8))
        arrays.populate_array(
            array, data=context.get_constant_null(types.CPointer(dtype)), shape=[zero], strides=[item], itemsize=item,
            meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return array_type(*arguments), emit


@numba_intrinsic
def word(context: Any, block: Any, number: Any) -> Any:
    """One of the block's integers."""
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(builder, arguments[0], arguments[1], _int64()))

    return types.int64(block, types.int64), emit


@numba_intrinsic
def real(context: Any, block: Any, number: Any) -> Any:
    """One of the block's float64 numbers."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(builder, arguments[0], arguments[1], ir.DoubleType()))

    return types.float64(block, types.int64), emit


@numba_intrinsic
def count(context: Any, block: Any, number: Any) -> Any:
    """The value of a counter, which whoever asks next finds one higher."""
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw(
            "add", _place(builder, arguments[0], arguments[1], _int64()), _int64()(1), "monotonic"
        )

    return types.int64(block, types.int64), emit


@numba_jit(inline=True)
def cut(block: Any, piece: Any) -> Any:
    """First unit of a piece."""
    return word(block, UNITS) * piece // word(block, PIECES)


def _int64() -> Any:
    return importlib.import_module("llvmlite.ir").IntType(64)


def _place(builder: Any, block: Any, number: Any, kind: Any) -> Any:
    return builder.gep(builder.bitcast(block, kind.as_pointer()), [number])
