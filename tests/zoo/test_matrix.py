"""The matrix of all pairs: where it is written, how it is cut, and how it goes on after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyassemble as pa
from pyassemble.network.backend import VARIABLE
from pyassemble.zoo import matrix as matrix_module
from tests.zoo.sequences import networks, zoo_of

if TYPE_CHECKING:
    from pathlib import Path

    from pyassemble.network.layers import LayerSequence
    from pyassemble.zoo import Zoo


@pytest.fixture(scope="module")
def zoo() -> Zoo:
    every = pa.Zoo.timm()
    return every.select(every.names[::30])


@pytest.fixture(scope="module")
def expected(zoo: Zoo) -> np.ndarray:
    return zoo.similarity_matrix(workers=1)


def test_row_is_target_column_is_source() -> None:
    zoo = pa.Zoo()
    zoo.add("short", nn.Linear(4, 4))
    zoo.add("long", nn.Sequential(nn.Linear(4, 4), nn.Conv2d(3, 3, 1)))
    assert zoo.similarity_matrix().tolist() == [[1.0, 1.0], [0.5, 1.0]]


@pytest.mark.parametrize("workers", [1, 2, 5, -1])
@pytest.mark.parametrize("memory", [0, 1 << 16, 1 << 29])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_same_bits_however_computed(
    zoo: Zoo, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, workers: int, memory: int, rows: int
) -> None:
    monkeypatch.setattr(matrix_module, "SHARD_ROWS", rows)
    some = zoo.select(zoo.names[:20])
    assert some.similarity_matrix(workers=workers, memory=memory).tobytes() == expected[:20, :20].tobytes()


@given(networks(), st.integers(1, 4), st.integers(1, 3), st.sampled_from([0, 500, 1 << 20]))
@settings(max_examples=50)
def test_same_bits_of_small_networks(sequences: list[LayerSequence], rows: int, workers: int, memory: int) -> None:
    zoo = zoo_of(sequences)
    with pytest.MonkeyPatch.context() as patch:
        whole = zoo.similarity_matrix(workers=1)
        patch.setattr(matrix_module, "SHARD_ROWS", rows)
        assert zoo.similarity_matrix(workers=workers, memory=memory).tobytes() == whole.tobytes()


def test_empty() -> None:
    assert pa.Zoo().similarity_matrix().shape == (0, 0)


def test_into_an_array(zoo: Zoo, expected: np.ndarray) -> None:
    out = np.full(expected.shape, np.nan)
    assert zoo.similarity_matrix(out=out) is out
    assert out.tobytes() == expected.tobytes()


def test_into_a_memory_map(zoo: Zoo, expected: np.ndarray, tmp_path: Path) -> None:
    out = np.memmap(tmp_path / "raw", np.float64, "w+", shape=expected.shape)
    assert zoo.similarity_matrix(out=out) is out
    out.flush()
    assert (tmp_path / "raw").read_bytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_into_a_file(zoo: Zoo, expected: np.ndarray, tmp_path: Path, kind: object) -> None:
    path = tmp_path / "matrix.npy"
    path.write_bytes(b"something older")
    found = zoo.similarity_matrix(out=kind(path))  # type: ignore[operator]
    assert isinstance(found, np.memmap)
    assert found.tobytes() == expected.tobytes()
    del found
    assert np.load(path).tobytes() == expected.tobytes()


def test_into_what_cannot_take_it(zoo: Zoo) -> None:
    n = len(zoo)
    for out in (np.empty((n, n + 1)), np.empty((n, n), np.float32), np.empty(n * n)):
        with pytest.raises(pa.MatrixError, match=r"out has shape .*; accepted: a writeable, C-contiguous"):
            zoo.similarity_matrix(out=out)
    with pytest.raises(pa.MatrixError, match="out is not C-contiguous"):
        zoo.similarity_matrix(out=np.empty((n, n), order="F"))
    read_only = np.empty((n, n))
    read_only.flags.writeable = False
    with pytest.raises(pa.MatrixError, match="out is read-only"):
        zoo.similarity_matrix(out=read_only)
    with pytest.raises(pa.MatrixError, match="out is a list"):
        zoo.similarity_matrix(out=[[0.0]])  # type: ignore[arg-type]


def test_bad_numbers(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be -1"):
        zoo.similarity_matrix(workers=0, out=tmp_path / "out.npy", shards=tmp_path / "shards")
    with pytest.raises(ValueError, match="memory must not be negative, is -1"):
        zoo.similarity_matrix(memory=-1, out=tmp_path / "out.npy", shards=tmp_path / "shards")
    assert list(tmp_path.iterdir()) == []


def test_on_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = pa.Zoo()
    zoo.add("a", nn.Sequential(nn.Conv2d(3, 9, 3), nn.Linear(5, 7)))
    zoo.add("b", nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 9, 3), nn.Linear(5, 6)))
    core = zoo.similarity_matrix()
    monkeypatch.setenv(VARIABLE, "numba")
    np.testing.assert_allclose(zoo.similarity_matrix(), core, rtol=1e-12)
    zoo.add("c", nn.Linear(5, 5))
    twin = zoo.similarity_matrix()
    monkeypatch.delenv(VARIABLE)
    np.testing.assert_allclose(zoo.similarity_matrix(), twin, rtol=1e-12)


def test_progress(zoo: Zoo, capfd: pytest.CaptureFixture[str]) -> None:
    zoo.similarity_matrix()
    assert capfd.readouterr() == ("", "")
    zoo.similarity_matrix(progress=True)
    output, errors = capfd.readouterr()
    assert output == ""
    assert f"{len(zoo)}/{len(zoo)}" in errors


SCRIPT = """
import sys
import pyassemble as pa
from pyassemble.zoo import matrix

matrix.SHARD_ROWS = 4
write = matrix.ShardFolder.write

def say(self, shard, rows):
    write(self, shard, rows)
    print(shard.first, flush=True)
    if shard.first == 12:
        sys.stdin.read()  # until it is interrupted or killed

matrix.ShardFolder.write = say
try:
    pa.Zoo.load(sys.argv[1]).similarity_matrix(shards=sys.argv[2], workers=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_goes_on_after_it_was_stopped(
    zoo: Zoo, expected: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    zoo.save(tmp_path / "index.npz")
    folder = tmp_path / "shards"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "index.npz"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(4)] == ["0\n", "4\n", "8\n", "12\n"]
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert output == ("interrupted\n" if how == signal.SIGINT else "")
    # What a process leaves that is killed while it writes.
    (folder / ".rows-0000016-0000020.npy.01234567.tmp").write_bytes(b"half")
    assert len(list(folder.glob("rows-*.npy"))) == 4

    monkeypatch.setattr(matrix_module, "SHARD_ROWS", 4)
    asked, local = [], matrix_module._local

    def remember(engine: object, shards: list[matrix_module.Shard], *rest: object) -> object:
        asked.extend(shard.first for shard in shards)
        return local(engine, shards, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(matrix_module, "_local", remember)
    assert zoo.similarity_matrix(shards=folder).tobytes() == expected.tobytes()
    assert asked == list(range(16, len(zoo), 4))
    assert not folder.exists()


@pytest.fixture
def half_done(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two shards of four rows."""
    write = matrix_module.ShardFolder.write

    def stop(self: matrix_module.ShardFolder, shard: matrix_module.Shard, rows: np.ndarray) -> None:
        if shard.first == 8:
            raise KeyboardInterrupt
        write(self, shard, rows)

    monkeypatch.setattr(matrix_module, "SHARD_ROWS", 4)
    monkeypatch.setattr(matrix_module.ShardFolder, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        zoo.similarity_matrix(shards=tmp_path / "shards")
    monkeypatch.setattr(matrix_module.ShardFolder, "write", write)
    assert len(list((tmp_path / "shards").iterdir())) == 3
    return tmp_path / "shards"


def test_shards_are_taken_as_they_are(zoo: Zoo, expected: np.ndarray, half_done: Path) -> None:
    file = half_done / "rows-0000004-0000008.npy"
    np.save(file, np.full((4, len(zoo)), 0.25))
    found = zoo.similarity_matrix(shards=half_done)
    assert (found[4:8] == 0.25).all()
    found[4:8] = expected[4:8]
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"no array at all",
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (4, 10000000000000), }".ljust(127)
        + b"\n",
    ],
    ids=range(4),
)
def test_damaged_shards_are_computed_again(zoo: Zoo, expected: np.ndarray, half_done: Path, content: bytes) -> None:
    (half_done / "rows-0000004-0000008.npy").write_bytes(content)
    assert zoo.similarity_matrix(shards=half_done).tobytes() == expected.tobytes()
    assert not half_done.exists()


@pytest.mark.parametrize("rows", [np.zeros((4, 3)), np.zeros((4, 46), np.float32), np.array([None])])
def test_shards_of_another_shape_are_computed_again(
    zoo: Zoo, expected: np.ndarray, half_done: Path, rows: np.ndarray
) -> None:
    np.save(half_done / "rows-0000004-0000008.npy", rows)
    assert zoo.similarity_matrix(shards=half_done).tobytes() == expected.tobytes()


def test_truncated_shards_are_computed_again(zoo: Zoo, expected: np.ndarray, half_done: Path) -> None:
    file = half_done / "rows-0000004-0000008.npy"
    file.write_bytes(file.read_bytes()[:-9])
    assert zoo.similarity_matrix(shards=half_done).tobytes() == expected.tobytes()


def test_shards_of_other_networks_are_refused(zoo: Zoo, half_done: Path) -> None:
    before = {file.name: file.read_bytes() for file in half_done.iterdir()}
    for other in (zoo.select(zoo.names[:-1]), zoo.select(zoo.names[::-1]), pa.Zoo()):
        with pytest.raises(pa.ShardError, match="holds shards of other networks; name another folder, or delete it"):
            other.similarity_matrix(shards=half_done)
    assert {file.name: file.read_bytes() for file in half_done.iterdir()} == before


def test_names_do_not_matter_to_shards(zoo: Zoo, expected: np.ndarray, half_done: Path, tmp_path: Path) -> None:
    # The same networks, read from a file.
    zoo.save(tmp_path / "index.npz")
    assert pa.Zoo.load(tmp_path / "index.npz").similarity_matrix(shards=half_done).tobytes() == expected.tobytes()


@pytest.mark.parametrize("manifest", [b"", b"{", b"\xff", b"[]", json.dumps({"networks": 46}).encode()])
def test_damaged_manifests_are_refused(zoo: Zoo, half_done: Path, manifest: bytes) -> None:
    (half_done / "shards.json").write_bytes(manifest)
    with pytest.raises(pa.ShardError, match="holds shards of other networks"):
        zoo.similarity_matrix(shards=half_done)


def test_folders_of_something_else_are_refused(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(pa.ShardError, match="is neither empty nor a folder of shards"):
        zoo.similarity_matrix(shards=tmp_path)
    with pytest.raises(pa.ShardError, match=r"thesis\.tex is a file; name a folder"):
        zoo.similarity_matrix(shards=tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_may_be_given_and_other_files_stay(zoo: Zoo, expected: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    assert zoo.similarity_matrix(shards=folder).tobytes() == expected.tobytes()
    assert not folder.exists()


def test_a_foreign_folder_costs_no_older_result(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "matrix.npy").write_bytes(b"an older result")
    with pytest.raises(pa.ShardError):
        zoo.similarity_matrix(out=tmp_path / "matrix.npy", shards=tmp_path)
    assert (tmp_path / "matrix.npy").read_bytes() == b"an older result"


LONG = """
import numpy as np
from pyassemble.network.backend import sequence
from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.zoo import Entry, Zoo

zoo = Zoo()
for n in range(6):
    layers = [Layer(str(i), "Linear", (n + 1, i + 1)) for i in range(6000)]
    network = LayerSequence.of(layers, [Element(i, i + 1, False) for i in range(6000)])
    zoo.add_entry(Entry(str(n), network, 0))
engine = zoo._current_engine()
query = sequence(network)
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    "call",
    [
        "zoo.similarity_matrix(workers=2)",
        "engine.nearest(query, 6, True, 2)",
    ],
)
def test_ctrl_c(call: str) -> None:
    # All of it would take longer than the time that is waited below.
    process = subprocess.Popen(
        [sys.executable, "-c", LONG.format(call=call)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()  # nothing goes on computing after a failed test
    assert output == "interrupted\n", errors
    assert process.returncode == 0
