"""The index file: what is damaged, foreign or a lie is refused in one line, and nothing is ever half written."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyassemble as pa
from pyassemble.network.layers import LayerSequence
from pyassemble.zoo import Entry, Record
from pyassemble.zoo import index as index_module
from pyassemble.zoo.index import read_index
from tests.zoo.sequences import sequence_of, spelled_out, zoo_of

CONV, NORM, ACT = ("Conv2d", (8, 3, 3, 3)), ("BatchNorm2d", (8,)), (None, ())
NETWORKS = [
    sequence_of([CONV, [CONV, NORM, ACT], [CONV, NORM]]),
    sequence_of([NORM, [CONV, NORM]]),
    sequence_of([CONV]),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    zoo_of(NETWORKS).save(tmp_path / "index.npz")
    return tmp_path / "index.npz"


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def header_of(path: Path) -> dict[str, Any]:
    return json.loads(arrays_of(path)["header"].tobytes())


def write(path: Path, header: object, **arrays: np.ndarray) -> None:
    """The file at ``path`` with another header or other arrays."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    np.savez(path, **(arrays_of(path) | {"header": np.frombuffer(text, np.uint8)} | arrays))


def refused(path: Path, reason: str = ".") -> None:
    with pytest.raises(pa.IndexFileError, match=reason) as caught:
        pa.Zoo.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 400 + len(str(path))


def test_everything_comes_back(tmp_path: Path) -> None:
    approximate = LayerSequence(*[getattr(NETWORKS[0], n) for n in ("names", "kinds", "shapes", "elements")], True)
    entries = [
        Entry("a", NETWORKS[0], 12, "mit", "hf-hub:org/name"),
        Entry("ünïcode 漢字 \n \ud800", approximate, 1 << 70),
    ]
    zoo = pa.Zoo.of(entries, {"timm": "1.0", "torch": "2.9"})
    zoo.save(str(tmp_path / "index"))  # under that very name
    loaded = pa.Zoo.load(str(tmp_path / "index"))
    assert loaded["a"] == Record("a", 12, "mit", "hf-hub:org/name")
    assert loaded[entries[1].name] == Record(entries[1].name, 1 << 70, approximate=True)
    assert loaded.libraries == {"timm": "1.0", "torch": "2.9"}
    assert spelled_out(loaded._index.tables) == spelled_out(zoo._index.tables)


def test_equal_zoos_are_equal_files(path: Path, tmp_path: Path) -> None:
    pa.Zoo.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_every_byte(path: Path) -> None:
    sound = path.read_bytes()
    expected = pa.Zoo.load(path)
    survived = 0
    for i in range(len(sound)):
        path.write_bytes(sound[:i] + bytes([sound[i] ^ 0xFF]) + sound[i + 1 :])
        try:
            zoo = pa.Zoo.load(path)
        except pa.IndexFileError as error:
            message = str(error)
        else:
            # Times, attributes and versions in the archive's own headers say nothing of the content.
            survived += 1
            assert zoo.names == expected.names
            assert spelled_out(zoo._index.tables) == spelled_out(expected._index.tables)
            continue
        assert "\n" not in message
    assert survived < len(sound) / 3


@given(st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_several_bytes(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = path.with_name("damaged")
    damaged.write_bytes(content)
    try:
        found = pa.Zoo.load(damaged)
    except pa.IndexFileError:
        return
    assert spelled_out(found._index.tables) == spelled_out(pa.Zoo.load(path)._index.tables)


def test_truncated(path: Path) -> None:
    sound = path.read_bytes()
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        refused(path, "is no sound zoo index")


def test_what_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "there is no index file")
    refused(tmp_path, "cannot be read: Is a directory")
    with pytest.raises(pa.IndexFileError, match="cannot be read"):
        pa.Zoo.load(tmp_path / ("x" * 300))


def test_no_permission(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    path.chmod(0)
    refused(path, "cannot be read: Permission denied")


def test_foreign_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    refused(tmp_path / "foreign.npz", "no item named 'header.npy'")
    np.save(tmp_path / "array.npy", np.zeros(3))
    refused(tmp_path / "array.npy", "not a zip file")
    (tmp_path / "text").write_text("not at all\nan index")
    refused(tmp_path / "text", "not a zip file")


def test_other_formats(path: Path) -> None:
    header = header_of(path)
    write(path, {"format": 2, "nothing": "else that is known"})
    refused(path, "has a newer version of the format, 2; this pyassemble reads 1: build the index again")
    write(path, header | {"format": 0})
    refused(path, "has an older version of the format, 0")
    for wrong in ("1", 1.0, True, None):
        write(path, header | {"format": wrong})
        refused(path, "its header has no format number")


HEADERS = [
    ({"names": ["a", "b"]}, "columns differ in length"),
    ({"names": ["a", "b", "b"]}, "a name occurs twice"),
    ({"names": ["a", "b", 3]}, "names in its header is no list of texts"),
    ({"names": None}, "names in its header is no list of texts"),
    ({"parameters": [1, 2, -3]}, "parameters in its header is no list of counts"),
    ({"parameters": [1, 2, True]}, "parameters in its header is no list of counts"),
    ({"parameters": [1, 2, 3.5]}, "parameters in its header is no list of counts"),
    ({"parameters": [1, 2]}, "columns differ in length"),
    ({"licenses": [1, None, None]}, "licenses in its header is no list of texts"),
    ({"weights": {}}, "weights in its header is no list of texts"),
    ({"approximate": "all"}, "approximate in its header is no list of counts"),
    ({"libraries": {"timm": 1}}, "libraries in its header is no table of versions"),
    ({"kinds": ["Conv2d"]}, "layer_kinds must lie in"),
    ({"kinds": ["Conv2d", "Conv2d"]}, "a kind or a layer occurs twice"),
    (
        {"names": list("abcd"), "parameters": [1] * 4, "licenses": [None] * 4, "weights": [None] * 4},
        "3 networks have 4 names",
    ),
]


@pytest.mark.parametrize(("change", "reason"), HEADERS)
def test_headers_that_lie(path: Path, change: dict[str, object], reason: str) -> None:
    write(path, header_of(path) | change)
    refused(path, f"is no sound zoo index: .*{reason}")


NO_HEADERS = [b"", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("text", NO_HEADERS, ids=range(len(NO_HEADERS)))
def test_headers_that_are_none(path: Path, text: bytes) -> None:
    write(path, text)
    refused(path)


def test_arrays_that_lie(path: Path) -> None:
    header, arrays = header_of(path), arrays_of(path)
    sound = path.read_bytes()
    for name, array in arrays.items():
        if name == "header":
            continue
        for wrong in (array.astype(np.float32), array[None], np.array(3), array.astype(array.dtype.newbyteorder(">"))):
            write(path, header, **{name: wrong})
            refused(path, f"{name} must be a one-dimensional array")
            path.write_bytes(sound)
    write(path, header, network_elements=arrays["network_elements"] + 1)
    refused(path, "network_elements must lie in")


def npy(claim: str, content: bytes = b"") -> bytes:
    text = claim.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000,)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}"),
        npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**40},)}}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').abort()}"),
        npy("{'descr': '|V0', 'fortran_order': False, 'shape': (1,)}"),
        npy("((((((", b"{}"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"\x93NUMPY",
        b"",
    ],
    ids=range(9),
)
@pytest.mark.filterwarnings("ignore:Reading .npy or .npz file required additional header parsing")
def test_array_headers_that_lie(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", content)
    refused(path, "is no sound zoo index")


def test_a_bomb(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = arrays_of(path)
    monkeypatch.setattr(index_module, "LARGEST", 1 << 20)
    np.savez_compressed(path, **arrays | {"sizes": np.zeros(1 << 20, np.int64)})
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # it is not unpacked to find out
    refused(path, r"it claims to hold \d+ bytes; at most 1048576 are read")


def test_a_bomb_that_denies_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    np.save(content, np.zeros(1 << 20, np.int64))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", content.getvalue())
    size = struct.pack("<I", len(content.getvalue()))
    bytes_ = path.read_bytes()
    assert bytes_.count(size) == 2  # before the member and in the directory
    path.write_bytes(bytes_.replace(size, struct.pack("<I", 200)))
    refused(path, "is no sound zoo index: Bad CRC-32")


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["header", "sizes", "network_elements"])
def test_a_pickle_is_not_executed(path: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    np.savez(path, allow_pickle=True, **(arrays_of(path) | {name: np.array([Trap(mark)], dtype=object)}))
    refused(path, f"{name} must be a one-dimensional array of")
    path.write_bytes(pickle.dumps(Trap(mark)))
    refused(path, "not a zip file")
    assert not mark.exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    before = path.read_bytes()
    real = np.savez_compressed

    def half(file: Any, **arrays: np.ndarray) -> None:
        real(file, **dict(list(arrays.items())[:3]))
        file.flush()
        raise failure

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(type(failure)):
        zoo_of(NETWORKS[:2]).save(path)
    assert path.read_bytes() == before
    with pytest.raises(type(failure)):
        zoo_of(NETWORKS[:2]).save(path.with_name("new"))
    assert os.listdir(path.parent) == [path.name]


def test_what_could_not_be_read_is_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    zoo = pa.Zoo.of([Entry("a", NETWORKS[0], 3, license=["mit"])])  # type: ignore[arg-type]
    with pytest.raises(
        pa.IndexFileError, match="the zoo cannot be written: licenses in its header is no list of texts"
    ):
        zoo.save(path)
    monkeypatch.setattr(index_module, "LARGEST", 100)
    with pytest.raises(pa.IndexFileError, match=r"the zoo cannot be written: it takes \d+ bytes, an index at most 100"):
        zoo_of(NETWORKS).save(path)
    assert path.read_bytes() == before


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        zoo_of(NETWORKS).save(tmp_path / "missing" / "index.npz")


def test_read_index_keeps_the_order(path: Path) -> None:
    index = read_index(path)
    assert [record.name for record in index.records] == ["net0", "net1", "net2"]
    assert [record.parameters for record in index.records] == [7, 8, 9]
