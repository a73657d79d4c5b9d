"""One point of the zoo's growth law, in a process of its own so that its peak memory can be read.

python -m bench.zoo_growth nearest 10000    or: matrix 1000, rows 10000

Prints one JSON object: seconds, and peak memory above that of the loaded zoo.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import pyassemble as pa
from bench.synthetic import mutated
from pyassemble.network.backend import sequence

QUERIES = 20
SAMPLED_ROWS = 8


def memory(field: str) -> int:
    """``VmRSS``, the memory of this process, or ``VmHWM``, its peak; in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """From now on ``VmHWM`` is the peak since this call (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(what: str, count: int, workers: int) -> dict[str, Any]:
    """Time and memory of one operation on a zoo of that many networks."""
    zoo = pa.Zoo.of(mutated(count))
    start = time.perf_counter()
    engine = zoo._current_engine()
    built = time.perf_counter() - start
    layers, blocks, _ = zoo._index.tables.counts
    forget_peak()
    before = memory("VmRSS")
    result: dict[str, Any] = {"networks": count, "layers": layers, "blocks": blocks, "seconds_to_load": built}
    if what == "nearest":
        # New networks, not of the zoo: mutations with another seed.
        queries = [sequence(entry.layers) for entry in mutated(QUERIES, seed=1)]
        times, aligned = [], []
        engine.nearest(queries[0], 10, True, workers)
        for query in queries:
            start = time.perf_counter()
            aligned.append(engine.nearest(query, 10, True, workers)[2])
            times.append(time.perf_counter() - start)
        result |= {"seconds": statistics.median(times), "slowest": max(times), "aligned": statistics.median(aligned)}
    elif what == "matrix":
        start = time.perf_counter()
        zoo.similarity_matrix(workers=workers)
        result["seconds"] = time.perf_counter() - start
    else:
        out = np.empty((1, count))
        times = []
        for row in np.linspace(0, count - 1, SAMPLED_ROWS).astype(int).tolist():
            start = time.perf_counter()
            engine.directed_rows(row, row + 1, out, 1 << 29, workers)
            times.append(time.perf_counter() - start)
        result["seconds"] = statistics.median(times)
    peak = memory("VmHWM")
    return result | {"bytes": peak - before, "bytes_in_all": peak}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 2)))
