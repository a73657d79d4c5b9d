"""Running numba kernels on as many threads as PyTorch is set to use: on PyTorch's own where they can be had.

PyTorch's threads are OpenMP's, and after each operation they keep their cores busy for some milliseconds, waiting for
the next one; threads of another pool would have to share the cores with them. ``GOMP_parallel``, which compilers call
for a parallel region (GNU OpenMP has it, LLVM's OpenMP too), is therefore looked up in the very library that PyTorch
has loaded, and told to call machine code on each thread (see ``regions``), or a Python function that hands pieces of
the work to kernels that release the interpreter lock. The lock then changes hands several times, which took 80
microseconds on 2 threads where machine code took 10. Without that library, and in a process forked after this module
was imported, where OpenMP would wait in vain for threads that the fork has not taken along, the threads are Python's
own.

numba's parallel loops were tried instead: they took twice as long to compile (2.8 against 1.4 s of processor time for
the gate), and end a process that enters them on both sides of a fork, as data loaders do.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

GRAIN = 32768  # elements per thread below which waking another one costs more than it saves
PIECES = 4  # per thread

_started_in = os.getpid()


def launch(kernel: Any, units: int, elements: int, *arguments: Any) -> None:
    """Run ``kernel(start, stop, *arguments)`` over all units, a stretch of them on each thread.

    Args:
        kernel: Compiled by numba. What it computes for one unit must not depend on how the units are cut.
        units: Number of units.
        elements: Elements to a unit, for the decision on threads: PyTorch's number, or fewer if there is less to do.
        arguments: Passed on.
    """
    threads = threads_for(units, elements)
    if threads == 1:
        kernel(0, units, *arguments)
        return
    # Whoever is free takes the next piece: a thread may be late, or share its core with another process.
    pieces = min(units, threads * PIECES)
    todo = deque((units * n // pieces, units * (n + 1) // pieces) for n in range(pieces))
    failed: list[BaseException] = []

    def work(_: Any = None) -> None:
        try:
            while todo:
                try:
                    start, stop = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                kernel(start, stop, *arguments)
        except BaseException as error:  # OpenMP's caller would not hear of it
            todo.clear()
            failed.append(error)

    enter = _openmp()
    if enter is not None and os.getpid() == _started_in:
        enter(_FUNCTION(work), None, threads, 0)
        work()  # what is left if an interrupt stopped a thread before it took its first piece
    else:
        _in_pool(work, threads)
    if failed:
        raise failed[0]


def threads_for(units: int, elements: int) -> int:
    """On how many threads to do units of so many elements: PyTorch's number, or fewer if there is less to do."""
    return max(1, min(torch.get_num_threads(), units, units * elements // GRAIN))


_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Entry:
    """Machine code that takes the address of its data."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.call = _FUNCTION(address)


def enter(entry: Entry, data: Any, threads: int) -> None:
    """Call machine code with the same data on so many threads at once, this one among them; the lock is released."""
    if threads == 1:
        entry.call(data)
        return
    parallel = _openmp()
    if parallel is not None and os.getpid() == _started_in:
        parallel(entry.address, data, threads, 0)
    else:
        _in_pool(lambda: entry.call(data), threads)


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP that PyTorch has loaded, if there is one."""
    try:
        enter = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # a symbol is sought in the libraries it depends on, too
    except (OSError, AttributeError):
        return None
    enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    enter.restype = None
    return enter


def _in_pool(work: Callable[[], None], threads: int) -> None:
    """Run the function on so many threads, this one among them."""
    pool = _pool(os.getpid(), threads - 1)
    running = [pool.submit(work) for _ in range(threads - 1)]
    work()
    for part in running:
        if not part.cancel():  # it has started; nothing may be freed that it still writes to
            part.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork, so each process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="pyassemble")
