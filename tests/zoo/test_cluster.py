"""Comparisons spread over a cluster of Ray and one of Dask, each with two workers on this machine."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import joblib
import pytest
from torch import nn

import pyassemble as pa
from pyassemble.zoo import cluster as spreading
from pyassemble.zoo import matrix as matrix_module
from tests.networks import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

    from pyassemble.zoo import Zoo

pytestmark = pytest.mark.cluster

# Both close sockets and warn of options to come in ways that are theirs.
QUIET = ("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning")


def ray_cluster() -> Iterator[dict[str, object]]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install pyassemble[cluster])")
    from ray.util.joblib import register_ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    register_ray()
    try:
        yield {"backend": "ray", "n_jobs": 2}
    finally:
        ray.shutdown()


def dask_cluster() -> Iterator[dict[str, object]]:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (pip install pyassemble[cluster])")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
        distributed.Client(local),
    ):
        yield {"backend": "dask"}


@pytest.fixture(scope="module", params=[ray_cluster, dask_cluster], ids=["ray", "dask"])
def config(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from request.param()


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    return pa.Zoo.timm("resnet*").select(pa.Zoo.timm("resnet*").names[:40])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_module, "SHARD_ROWS", 7)


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("the cluster should compute, not this process")


@pytest.mark.filterwarnings(*QUIET)
def test_matrix_has_the_same_bits(zoo: Zoo, config: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = zoo.similarity_matrix()
    monkeypatch.setattr(zoo, "_current_engine", never)
    with joblib.parallel_config(**config):
        found = zoo.similarity_matrix(memory=10_000)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.filterwarnings(*QUIET)
def test_nearest_is_the_same(zoo: Zoo, config: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    query = build("timm:resnet10t", meta=True)
    twins = pa.Zoo()
    for name in ("b", "a", "c"):
        twins.add(name, nn.Linear(3, 4))
    # Few, as joblib starts Ray's workers anew for each.
    questions = [(twins, nn.Linear(3, 4), 2, "symmetric"), (zoo, query, 7, "directed")]
    if config["backend"] == "dask":
        questions += [(zoo, query, 100, "symmetric"), (zoo, query, 0, "directed"), (pa.Zoo(), query, 3, "symmetric")]
    expected = [some.nearest(network, k, similarity=s) for some, network, k, s in questions]
    assert expected[0] == [("b", 1.0), ("a", 1.0)]
    monkeypatch.setattr(pa.Zoo, "_current_engine", never)
    with joblib.parallel_config(**config):
        assert [some.nearest(network, k, similarity=s) for some, network, k, s in questions] == expected


@pytest.mark.filterwarnings(*QUIET)
def test_shards_are_resumed(
    zoo: Zoo, config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    expected = zoo.similarity_matrix()
    write = matrix_module.ShardFolder.write

    def write_two(self: matrix_module.ShardFolder, shard: matrix_module.Shard, rows: np.ndarray) -> None:
        if shard.first >= 14:
            raise KeyboardInterrupt
        write(self, shard, rows)

    with joblib.parallel_config(**config):
        monkeypatch.setattr(matrix_module.ShardFolder, "write", write_two)
        with pytest.raises(KeyboardInterrupt):
            zoo.similarity_matrix(shards=folder)
        monkeypatch.setattr(matrix_module.ShardFolder, "write", write)
        assert sorted(file.name for file in folder.glob("rows-*")) == [
            "rows-0000000-0000007.npy",
            "rows-0000007-0000014.npy",
        ]
        asked: list[tuple[int, int]] = []
        rows = spreading.Cluster.rows

        def remember(self: spreading.Cluster, ranges: list[tuple[int, int]], memory: int) -> object:
            asked.extend(ranges)
            return rows(self, ranges, memory)

        monkeypatch.setattr(spreading.Cluster, "rows", remember)
        assert zoo.similarity_matrix(shards=folder).tobytes() == expected.tobytes()
    assert asked == [(14, 21), (21, 28), (28, 35), (35, 40)]
    assert not folder.exists()


@pytest.mark.filterwarnings(*QUIET)
def test_another_arithmetic_is_refused(zoo: Zoo, config: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_arithmetic", lambda: "abacus")
    # Without a number of jobs, too, it is the workers that compute, and therefore notice.
    with (
        joblib.parallel_config(backend=config["backend"]),
        pytest.raises(pa.WorkerError, match=r"computes in another way .* \(abacus\)"),
    ):
        zoo.similarity_matrix()


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing", "sequential"])
def test_backends_of_one_machine_stay_in_this_process(zoo: Zoo, backend: str) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert spreading.spread(zoo._index.tables) is None
    assert spreading.spread(zoo._index.tables) is None


def test_a_worker_keeps_what_it_was_asked_about(zoo: Zoo) -> None:
    content = spreading._pack(zoo._index.tables)
    mine = spreading._arithmetic()
    first = spreading._engine(mine, *content[:2], content[2:])
    assert spreading._engine(mine, *content[:2], content[2:]) is first
    for i in range(5):
        other = spreading._pack(zoo.select(zoo.names[i : i + 1])._index.tables)
        spreading._engine(mine, *other[:2], other[2:])
    assert len(spreading._engines) <= spreading._KEPT
    assert spreading._engine(mine, *content[:2], content[2:]) is not first
