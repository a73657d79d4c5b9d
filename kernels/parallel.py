"""Running machine code on as many threads as PyTorch is set to use: on PyTorch's own where they can be had.

PyTorch's threads are OpenMP's, and after each operation they keep their cores busy for some milliseconds, waiting for
the next one; threads of another pool would have to share the cores with them. ``GOMP_parallel``, which compilers call
for a parallel region (GNU OpenMP has it, LLVM's OpenMP too), is therefore looked up in the very library that PyTorch
has loaded, and told to call machine code on each thread (see ``regions``). A Python function in its place took 80
microseconds on 2 threads instead of 10, as the interpreter's lock changed hands. Without that library, and in a process
forked after this module was imported, where OpenMP would wait in vain for threads that the fork has not taken along,
the threads are Python's own.

numba's parallel loops were tried instead: they took twice as long to compile (2.8 against 1.4 s of processor time for
the gate), and end a process that enters them on both sides of a fork, as data loaders do.
"""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

GRAIN = 32768  # elements per thread below which waking another one costs more than it saves

_started_in = os.getpid()


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
