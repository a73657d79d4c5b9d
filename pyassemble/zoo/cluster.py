"""Comparisons spread over other machines by joblib's backends: Ray, Dask, or any other that is registered.

A backend is chosen with joblib's own ``parallel_config``. Its workers get the networks as arrays and number kinds of
layers for themselves; each comparison is computed as on one machine, so the results have the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import platform
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.errors import WorkerError
from pyassemble.network.backend import native
from pyassemble.zoo.engine import Engine, make_engine
from pyassemble.zoo.tables import Arrays, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from pyassemble.network.layers import LayerSequence

# Backends of joblib that stay on this machine, where threads that share memory are better than processes.
_LOCAL = ("LokyBackend", "MultiprocessingBackend", "ThreadingBackend", "SequentialBackend")

# Shards handed out per worker at a time: results come back, and are kept, in between.
_ROUNDS = 2


def spread(tables: Tables) -> Cluster | None:
    """The cluster that joblib is set to use here; None if it is to stay on this machine."""
    if "joblib" not in sys.modules:
        return None  # nobody has set it, and importing it takes longer than most searches
    from joblib.parallel import get_active_backend

    active, jobs = get_active_backend()
    if type(active).__module__.startswith("joblib.") and type(active).__name__ in _LOCAL:
        return None
    # Without a number, joblib would use one worker of Ray, which is none: it then stays in this process.
    return Cluster(tables, -1 if jobs is None else jobs)


class Cluster:
    """Workers of joblib's active backend: as many as ``jobs`` says in joblib's way, -1 for all."""

    def __init__(self, tables: Tables, jobs: int) -> None:
        self._tables = tables
        self._jobs = jobs

    def rows(
        self, ranges: list[tuple[int, int]], memory: int
    ) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.float64]]]:
        """Rows of the matrix of directed similarities, range by range.

        Raises:
            WorkerError: A worker computes in another way than this process.
        """
        from joblib import Parallel, delayed

        content = _pack(self._tables)
        with Parallel(n_jobs=self._jobs) as parallel:
            together = _workers(self._jobs) * _ROUNDS
            for at in range(0, len(ranges), together):
                asked = ranges[at : at + together]
                parts = parallel(delayed(_rows)(_arithmetic(), *range_, memory, *content) for range_ in asked)
                yield from zip(asked, parts, strict=True)

    def nearest(self, query: LayerSequence, k: int, symmetric: bool) -> list[tuple[int, float]]:
        """Numbers and similarities of the nearest networks, each worker searching a part of them.

        Raises:
            WorkerError: A worker computes in another way than this process.
        """
        from joblib import Parallel, delayed

        wanted = Tables()
        wanted.add(query)
        packed = _pack(wanted)
        with Parallel(n_jobs=self._jobs) as parallel:
            bounds = np.linspace(0, len(self._tables), _workers(self._jobs) + 1).astype(int).tolist()
            ranges = [(first, last) for first, last in itertools.pairwise(bounds) if last > first]
            parts = parallel(
                delayed(_nearest)(_arithmetic(), packed, k, symmetric, *_pack(self._tables.part(range(*range_))))
                for range_ in ranges
            )
        found = [
            (first + number, value) for (first, _), part in zip(ranges, parts, strict=True) for number, value in part
        ]
        return sorted(found, key=lambda item: (-item[1], item[0]))[:k]


def _workers(jobs: int) -> int:
    # Asked only once the backend is running: Ray cannot count before.
    from joblib.parallel import get_active_backend

    return max(1, int(get_active_backend()[0].effective_n_jobs(jobs)))


def _arithmetic() -> str:
    """What the last bits of a similarity depend on: whether a product and a sum are rounded once or twice."""
    core = native()
    if core is None:
        return "numba"
    return "fused" if core.instruction_set() in ("avx2", "avx512") else "separate"


def _pack(tables: Tables) -> tuple[Any, ...]:
    """A digest, the kinds of layers, and the arrays, one by one: Dask sends each array to a worker once."""
    kinds, arrays = list(tables.kinds), tables.arrays()
    digest = hashlib.sha256("\0".join(kinds).encode())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest(), kinds, *arrays


# What this worker was asked about last; the tasks of one call share it, and some backends run them in threads.
_engines: OrderedDict[str, Engine] = OrderedDict()
_engines_lock = threading.Lock()
_KEPT = 4


def _engine(arithmetic: str, digest: str, kinds: list[str], arrays: tuple[Any, ...]) -> Engine:
    if arithmetic != _arithmetic():
        raise WorkerError(
            f"the worker on {platform.node()} computes in another way ({_arithmetic()}) than the process that asks "
            f"({arithmetic}), so the last bits would differ; accepted: machines that have the compiled core, all with "
            "AVX2 or all without, or none that has the core"
        )
    with _engines_lock:
        engine = _engines.pop(digest, None)
        if engine is None:
            engine = make_engine(Tables.from_arrays(kinds, Arrays(*arrays)))
        _engines[digest] = engine
        while len(_engines) > _KEPT:
            _engines.popitem(last=False)
    return engine


def _rows(
    arithmetic: str, first: int, last: int, memory: int, digest: str, kinds: list[str], *arrays: Any
) -> npt.NDArray[np.float64]:
    out = np.empty((last - first, len(Arrays(*arrays).network_offsets) - 1))
    # One thread: a backend's workers share the machines they run on.
    _engine(arithmetic, digest, kinds, arrays).directed_rows(first, last, out, memory, 1)
    return out


def _nearest(
    arithmetic: str,
    query: tuple[Any, ...],
    k: int,
    symmetric: bool,
    digest: str,
    kinds: list[str],
    *arrays: Any,
) -> list[tuple[int, float]]:
    engine = _engine(arithmetic, digest, kinds, arrays)
    _, query_kinds, *query_arrays = query
    (sequence,) = Tables.from_arrays(query_kinds, Arrays(*query_arrays)).sequences()
    numbers, similarities, _ = engine.nearest(sequence, k, symmetric, 1)
    return list(zip(numbers.tolist(), similarities.tolist(), strict=True))
