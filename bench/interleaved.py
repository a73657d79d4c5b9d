"""Timing several functions in turns, so that a change of the machine's speed meets all of them."""

from __future__ import annotations

import ctypes
import platform
import random
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch

CUDA_BYTES = [2**26, 2**28, 2**30, 2**32]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest


def medians(functions: Mapping[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each function; on CUDA by events on the device."""
    if device == "cpu":
        _keep_freed_memory()
    for function in functions.values():  # compilation, caches, allocator
        function()
        function()
    taken: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    for _ in range(rounds):
        # In a fixed order each would always find in the caches what the same one left there.
        for name in order.sample(list(functions), len(functions)):
            taken[name].append(_seconds(functions[name], device))
    return {name: statistics.median(times) for name, times in taken.items()}


def _keep_freed_memory() -> None:
    """Let GNU's allocator return nothing to the system, as if other tensors lay behind, as they do in a network.

    Otherwise it gives back what is free at the end of its memory, and the page faults that follow cost whichever
    function next allocates there, by chance, several times its own work.
    """
    if platform.libc_ver()[0] == "glibc":
        c = ctypes.CDLL(None)
        c.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        c.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the largest there is


def _seconds(function: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_memory(function: Callable[[], Any], device: str) -> int:
    """Bytes allocated at once beyond what was there before; zero on the CPU, where PyTorch does not count."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def smoke_run(config: pytest.Config) -> bool:
    """Whether the benchmarks only have to run, not to measure."""
    return bool(config.getoption("--benchmark-disable") and not config.getoption("--benchmark-enable"))
