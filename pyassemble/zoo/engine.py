"""What compares networks: the C++ core on tables it shares among them, or, without a compiler, pair by pair."""

from __future__ import annotations

import heapq
import math
import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pyassemble.network.backend import backend, native

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyassemble.network.backend import Sequence
    from pyassemble.zoo.tables import Tables


class Engine(Protocol):
    """Comparisons within one set of networks and with it."""

    def directed_rows(self, first: int, last: int, out: npt.NDArray[np.float64], memory: int, workers: int) -> None:
        """``out[i - first, j]`` = directed(j → i)."""

    def nearest(
        self, query: Any, k: int, symmetric: bool, workers: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], int]:
        """Numbers and similarities of the nearest networks, and how many were aligned to find them."""


def make_engine(tables: Tables) -> Engine:
    """The engine for all networks of these tables as they are now."""
    core = native()
    if core is None:
        return PairwiseEngine(list(tables.sequences()))
    engine: Engine = core.Zoo()
    extend(engine, tables, (0, 0, 0))
    return engine


def extend(engine: Engine, tables: Tables, since: tuple[int, int, int]) -> bool:
    """Bring an engine up to date with tables that have grown since these counts; False if it cannot be."""
    grow = getattr(engine, "extend", None)
    if grow is None:
        return False
    grow(*tables.in_process(tables.arrays(since)))
    return True


def count_workers(workers: int) -> int:
    """Number of threads for a number of workers as users give it: -1 for one per core.

    Raises:
        ValueError: Neither -1 nor positive.
    """
    if workers == -1:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers must be -1 (one per core) or positive, not {workers}")
    return workers


class PairwiseEngine:
    """Every pair by itself, on any backend: slow, for machines without the core and as its witness in tests."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self._sequences = sequences

    def directed_rows(self, first: int, last: int, out: npt.NDArray[np.float64], memory: int, workers: int) -> None:
        """See :class:`Engine`; one thread."""
        for i in range(first, last):
            target = self._sequences[i]
            for j, source in enumerate(self._sequences):
                scored = target.num_scored
                out[i - first, j] = backend().score(source, target) / scored if scored else 0.0

    def nearest(
        self, query: Any, k: int, symmetric: bool, workers: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], int]:
        """See :class:`Engine`; aligns everything."""
        similarities = [self._similarity(network, query, symmetric) for network in self._sequences]
        best = heapq.nsmallest(k, range(len(similarities)), key=lambda i: (-similarities[i], i))
        return np.array(best, np.int32), np.array([similarities[i] for i in best], np.float64), len(similarities)

    def _similarity(self, network: Sequence, query: Any, symmetric: bool) -> float:
        if not network.num_scored or not query.num_scored:
            return 0.0
        forward = float(backend().score(network, query) / query.num_scored)
        if not symmetric:
            return forward
        return math.sqrt(forward * backend().score(query, network) / network.num_scored)
