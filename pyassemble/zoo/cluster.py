"""Comparisons spread over other machines by joblib's backends: Ray, Dask, or any other that is registered.

A backend is chosen with joblib's own ``parallel_config``. Its workers get the networks as arrays and number kinds of
layers for themselves; each comparison is computed as on one machine, so the results have the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.zoo.engine import Engine, count_workers, make_engine
from pyassemble.zoo.tables import Arrays, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pyassemble.network.layers import LayerSequence

#: Kinds of layers, and the arrays of the tables.
_Content = tuple[list[str], tuple[Any, ...]]

# Backends of joblib that stay on this machine, where threads that share memory are better than processes.
_LOCAL = ("LokyBackend", "MultiprocessingBackend", "ThreadingBackend", "SequentialBackend")

# Shards handed out per worker at a time: results come back, and are kept, in between.
_ROUNDS = 2


def spread(tables: Tables) -> Cluster | None:
    """The cluster that joblib is set to use here; None if it is to stay on this machine."""
    from joblib.parallel import get_active_backend

    active, jobs = get_active_backend()
    if type(active).__module__.startswith("joblib.") and type(active).__name__ in _LOCAL:
        return None
    return Cluster(tables, max(1, active.effective_n_jobs(jobs)))


class Cluster:
    """Workers of joblib's active backend."""

    def __init__(self, tables: Tables, workers: int) -> None:
        self._content: _Content = list(tables.kinds), tuple(tables.arrays())
        self._networks = len(tables)
        digest = hashlib.sha256("\0".join(self._content[0]).encode())
        for array in self._content[1]:
            digest.update(array.tobytes())
        self._digest = digest.hexdigest()
        self._workers = workers

    def rows(
        self, ranges: list[tuple[int, int]], memory: int
    ) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.float64]]]:
        """Rows of the matrix of directed similarities, range by range."""
        from joblib import Parallel, delayed

        together = self._workers * _ROUNDS
        for at in range(0, len(ranges), together):
            asked = ranges[at : at + together]
            parts = Parallel()(delayed(_rows)(self._digest, self._content, *range_, memory) for range_ in asked)
            yield from zip(asked, parts, strict=True)

    def nearest(self, query: LayerSequence, k: int, symmetric: bool) -> list[tuple[int, float]]:
        """Numbers and similarities of the nearest networks, each worker searching a part of them."""
        from joblib import Parallel, delayed

        bounds = np.linspace(0, self._networks, self._workers + 1).astype(int).tolist()
        parts = Parallel()(
            delayed(_nearest)(self._digest, self._content, first, last, query, k, symmetric)
            for first, last in itertools.pairwise(bounds)
            if last > first
        )
        return sorted((item for part in parts for item in part), key=lambda item: (-item[1], item[0]))[:k]


# What a worker was last asked about: tasks of one call share it.
_engines: dict[tuple[str, int, int], Engine] = {}


def _engine(digest: str, content: _Content, first: int, last: int) -> Engine:
    """The engine for networks ``first`` to ``last``; for all of them where ``last`` is -1."""
    key = digest, first, last
    if key not in _engines:
        _engines.clear()
        kinds, arrays = content
        tables = Tables.from_arrays(kinds, Arrays(*arrays))
        _engines[key] = make_engine(tables if last < 0 else tables.part(range(first, last)))
    return _engines[key]


def _rows(digest: str, content: _Content, first: int, last: int, memory: int) -> npt.NDArray[np.float64]:
    out = np.empty((last - first, len(content[1][5]) - 1))
    # One thread: a backend's workers share the machines they run on.
    _engine(digest, content, 0, -1).directed_rows(first, last, out, memory, 1)
    return out


def _nearest(
    digest: str, content: _Content, first: int, last: int, query: LayerSequence, k: int, symmetric: bool
) -> list[tuple[int, float]]:
    from pyassemble.network.backend import sequence

    engine = _engine(digest, content, first, last)
    networks, similarities, _ = engine.nearest(sequence(query), k, symmetric, count_workers(1))
    return [(first + number, value) for number, value in zip(networks.tolist(), similarities.tolist(), strict=True)]
