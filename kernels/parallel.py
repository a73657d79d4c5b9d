"""Running numba kernels on tensors: their memory as arrays, and as many threads as PyTorch is set to use.

The threads are Python's own, and the kernels release the interpreter lock. numba's parallel loops were tried instead:
they took twice as long to compile (2.8 against 1.4 s of processor time for the gate), and GNU OpenMP ends a process
that enters it on both sides of a fork, as data loaders do.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy.typing as npt

GRAIN = 32768  # elements per thread below which waking another one costs more than it saves
PIECES = 4  # per thread


def launch(kernel: Any, units: int, elements: int, *arguments: Any) -> None:
    """Run ``kernel(start, stop, *arguments)`` over all units, a stretch of them on each thread.

    Args:
        kernel: Compiled by numba. What it computes for one unit must not depend on how the units are cut.
        units: Number of units.
        elements: Elements to a unit, for the decision on threads: PyTorch's number, or fewer if there is less to do.
        arguments: Passed on.
    """
    threads = max(1, min(torch.get_num_threads(), units, units * elements // GRAIN))
    if threads == 1:
        kernel(0, units, *arguments)
        return
    # Whoever is free takes the next piece: a thread of OpenMP that waits for work may hold a core for milliseconds.
    pieces = min(units, threads * PIECES)
    todo = deque((units * n // pieces, units * (n + 1) // pieces) for n in range(pieces))

    def work() -> None:
        while todo:
            try:
                start, stop = todo.popleft()
            except IndexError:  # another thread was faster
                return
            kernel(start, stop, *arguments)

    pool = _pool(os.getpid(), threads - 1)
    running = [pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:  # nothing may be freed that a thread still writes to
        todo.clear()
        for part in running:
            if not part.cancel():  # it has started
                part.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork, so each process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="pyassemble")


def memory(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The elements of a dense CPU tensor in the order of memory; 16-bit floats as bits (see ``halves``)."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))
    if tensor.dtype is torch.bfloat16:
        flat = flat.view(torch.uint16)
    elif tensor.dtype is torch.float16:
        flat = flat.view(torch.int16)
    array: npt.NDArray[Any] = flat.numpy()
    return array
