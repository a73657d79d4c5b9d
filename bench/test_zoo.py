"""The zoo: all pairs against DPIAT's published code, the nearest source, loading, and how they grow with the zoo.

Targets: all pairs of timm in 10 s on two cores and 100 000 × per pair; nearest in 50 ms; index in 100 ms and 3 MB.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch

import pyassemble as pa
from bench.peers import iatransfer
from pyassemble.zoo.shipped import shipped_index

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = 2
PAIRS = 100


def is_smoke_run(config: pytest.Config) -> bool:
    return bool(config.getoption("benchmark_disable") and not config.getoption("benchmark_enable"))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def zoo() -> pa.Zoo:
    return pa.Zoo.timm(progress=False)


@pytest.mark.benchmark(group="all pairs of timm")
def test_all_pairs(request: pytest.FixtureRequest, benchmark: Any, record: Any, zoo: pa.Zoo) -> None:
    published = iatransfer()
    matching = published.DPMatching()
    matching.set_score(published.ShapeScore())
    standardize = published.BlocksStandardization()
    generator = random.Random(0)
    pairs = [generator.sample(range(len(zoo)), 2) for _ in range(PAIRS)]
    matrix = zoo.similarity_matrix(workers=WORKERS)

    def published_seconds(source: int, target: int) -> float:
        with torch.device("meta"):
            networks = [standardize(timm.create_model(zoo.names[i])) for i in (source, target)]
        return seconds(lambda: matching.match(*networks))

    if is_smoke_run(request.config):
        pairs = pairs[:3]  # a smoke run
    theirs = statistics.mean(published_seconds(*pair) for pair in pairs)
    mine = statistics.median(seconds(lambda: zoo.similarity_matrix(workers=WORKERS)) for _ in range(3))
    assert np.isfinite(matrix).all()
    record(f"all {len(zoo) ** 2:,} ordered pairs of timm, {WORKERS} threads", mine, "s")
    per_pair = mine / len(zoo) ** 2
    record("per pair", per_pair, "s", peer=f"iatransfer 1.0.3, mean of {len(pairs)} sampled pairs", peer_value=theirs)
    benchmark.extra_info["ratio"] = theirs / per_pair
    benchmark.pedantic(zoo.similarity_matrix, kwargs={"workers": WORKERS}, rounds=1)


@pytest.mark.benchmark(group="nearest source in all of timm")
def test_nearest(request: pytest.FixtureRequest, benchmark: Any, record: Any, zoo: pa.Zoo) -> None:
    names = zoo.names[::300] if is_smoke_run(request.config) else zoo.names[::3]
    times = []
    for name in names:
        with torch.device("meta"):
            query = timm.create_model(name, num_classes=10)
        # The first call after loading brings the tables into the core.
        first = None if times else seconds(lambda q=query: pa.Zoo.timm(progress=False).nearest(q))
        if first is not None:
            record("nearest in timm, load and first call together", first, "s")
            zoo.nearest(query)
        times.append(statistics.median(seconds(lambda q=query: zoo.nearest(q)) for _ in range(3)))
    asked = f"nearest in timm, {len(times)} new modules (every third architecture)"
    record(f"{asked}: median", statistics.median(times), "s")
    record(f"{asked}: slowest", max(times), "s")
    record(f"{asked}: above 50 ms", 100 * sum(t > 0.05 for t in times) / len(times), "%")
    benchmark(zoo.nearest, query)


@pytest.mark.benchmark(group="index of timm")
def test_load(benchmark: Any, record: Any) -> None:
    path = Path(str(shipped_index()))
    record("load timm's index", statistics.median(seconds(lambda: pa.Zoo.load(path)) for _ in range(20)), "s")
    record("size of timm's index", path.stat().st_size / 1e6, "MB")
    benchmark(pa.Zoo.load, path)


@pytest.mark.parametrize(
    ("what", "networks"),
    [
        ("nearest", 1_000),
        ("nearest", 10_000),
        ("nearest", 100_000),
        ("matrix", 1_000),
        ("matrix", 3_000),
        ("rows", 10_000),
        ("rows", 100_000),
    ],
)
def test_growth(request: pytest.FixtureRequest, record: Any, what: str, networks: int) -> None:
    if networks > 1_000 and is_smoke_run(request.config):
        pytest.skip("a smoke run: the large zoos take minutes")
    command = [sys.executable, "-m", "bench.zoo_growth", what, str(networks), str(WORKERS)]
    point = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name = {"nearest": "nearest", "matrix": "matrix", "rows": "one row of the matrix"}[what]
    size = f"{networks:,} synthetic networks ({point['blocks']:,} distinct blocks)"
    record(f"{name}, {size}", point["seconds"], "s")
    record(f"{name}, {size}: memory beside the zoo", point["bytes"] / 1e6, "MB")
    if what == "nearest":
        record(f"{name}, {size}: aligned", point["aligned"], "networks")
