"""Arithmetic on a line of memory at a time, in numba, with a choice that its compiler does not offer: where to store.

A store that goes straight past the caches (see ``streaming``) takes a whole vector at a known alignment. LLVM knows
none when it makes vectors of a loop over elements, so here they are written out, 64 bytes at once.

Lines are of float32 or float64. The 16-bit floats, which are bits to numba (see ``halves``), have none: what is for
whole lines then passes over nothing, and the loop over the remaining elements does all.
"""

from __future__ import annotations

import importlib
from typing import Any

from pyassemble.kernels.deferred import numba_intrinsic

LINE = 64  # bytes; of x86 and most ARM processors


@numba_intrinsic
def in_whole_lines(context: Any, size: Any, like: Any) -> Any:
    """How many of so many elements of an array's type fill whole lines, counted from the first."""
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _in_whole_lines(context, builder, arguments[0], like.dtype)

    return types.int64(types.int64, like), emit


@numba_intrinsic
def are_lines(context: Any, address: Any, size: Any, like: Any) -> Any:
    """Whether so many elements from an address on are whole lines, each at a multiple of its size."""
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size, _ = arguments
        beyond = builder.urem(address, context.get_constant(types.int64, LINE))
        at_a_line = builder.icmp_unsigned("==", beyond, context.get_constant(types.int64, 0))
        whole = builder.icmp_unsigned("==", _in_whole_lines(context, builder, size, like.dtype), size)
        return builder.and_(at_a_line, whole)

    return types.boolean(types.int64, types.int64, like), emit


def _in_whole_lines(context: Any, builder: Any, size: Any, dtype: Any) -> Any:
    types = importlib.import_module("numba.core.types")
    if not isinstance(dtype, types.Float):
        return context.get_constant(types.int64, 0)
    lanes = context.get_constant(types.int64, LINE * 8 // dtype.bitwidth)
    return builder.sub(size, builder.urem(size, lanes))


@numba_intrinsic
def scale_line(context: Any, y: Any, x: Any, gate: Any, i: Any, past: Any) -> Any:
    """Write x gate to y in the line from element i on.

    Past the caches if ``past``: y's line must then start at a multiple of its size.
    """
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if isinstance(x.dtype, types.Float):
            line = _Line(context, builder, signature, arguments, x.dtype)
            line.store(0, arguments[3], builder.fmul(line.load(1, arguments[3]), line.all_of(2)), arguments[4])
        return context.get_dummy_value()

    return types.void(y, x, gate, i, past), emit


@numba_intrinsic
def scale_and_add_line(context: Any, dx: Any, lanes: Any, dy: Any, x: Any, gate: Any, i: Any, past: Any) -> Any:
    """Write dy gate to dx in the line from element i on, and add dy x to ``lanes``, which are a line's."""
    types = importlib.import_module("numba.core.types")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if isinstance(x.dtype, types.Float):
            line = _Line(context, builder, signature, arguments, x.dtype)
            start, first = arguments[5], context.get_constant(types.int64, 0)
            d = line.load(2, start)
            line.store(1, first, builder.fadd(line.load(1, first), builder.fmul(d, line.load(3, start))))
            line.store(0, start, builder.fmul(d, line.all_of(4)), arguments[6])
        return context.get_dummy_value()

    return types.void(dx, lanes, dy, x, gate, i, past), emit


@numba_intrinsic
def copy_line(context: Any, target: Any, source: Any) -> Any:
    """Copy a line from any address to one that is a multiple of its size, past the caches."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.IntType(32), LINE // 4).as_pointer()
        value = builder.load(builder.inttoptr(arguments[1], line), align=1)
        _mark(builder, builder.store(value, builder.inttoptr(arguments[0], line), align=LINE))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


class _Line:
    """Lines of an intrinsic's arguments, each named by its number; all are of one type."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, dtype: Any) -> None:
        self._ir = importlib.import_module("llvmlite.ir")
        self._arrays = importlib.import_module("numba.np.arrayobj")
        self._context, self._builder, self._kinds, self._arguments = context, builder, signature.args, arguments
        self._item = dtype.bitwidth // 8
        self._vector = self._ir.VectorType(context.get_data_type(dtype), LINE // self._item)

    def load(self, n: int, start: Any) -> Any:
        return self._builder.load(self._place(n, start), align=self._item)

    def all_of(self, n: int) -> Any:
        """A number in every lane."""
        nothing = self._ir.Constant(self._vector, self._ir.Undefined)
        one = self._builder.insert_element(nothing, self._arguments[n], self._ir.IntType(32)(0))
        first = self._ir.Constant(self._ir.VectorType(self._ir.IntType(32), self._vector.count), None)
        return self._builder.shuffle_vector(one, nothing, first)

    def store(self, n: int, start: Any, value: Any, past: Any = None) -> None:
        place = self._place(n, start)
        if past is None:
            self._builder.store(value, place, align=self._item)
            return
        with self._builder.if_else(past) as (then, otherwise):
            with then:
                _mark(self._builder, self._builder.store(value, place, align=LINE))
            with otherwise:
                self._builder.store(value, place, align=self._item)

    def _place(self, n: int, start: Any) -> Any:
        array = self._arrays.make_array(self._kinds[n])(self._context, self._builder, self._arguments[n])
        return self._builder.bitcast(self._builder.gep(array.data, [start]), self._vector.as_pointer())


def _mark(builder: Any, store: Any) -> None:
    """Let a store go past the caches."""
    one = importlib.import_module("llvmlite.ir").IntType(32)(1)
    store.set_metadata("nontemporal", builder.module.add_metadata([one]))
