"""The build's cache: every cut and every flipped byte costs the records it hits and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torch import nn

from pyassemble.errors import BuildCacheError
from pyassemble.zoo.cache import BuildCache
from pyassemble.zoo.entry import Entry

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = {f"key{i}": Entry.of(f"net {i}\n", nn.Linear(i + 1, 2), license="mit") for i in range(4)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    with BuildCache(path) as cache:
        for key, entry in ENTRIES.items():
            cache.append(key, entry)
    return path


def read(path: Path) -> dict[str, Entry]:
    with BuildCache(path) as cache:
        return cache.read(ENTRIES)


def test_round_trip(path: Path) -> None:
    assert read(path) == ENTRIES
    with BuildCache(path) as cache:
        assert cache.read({"key1", "other"}) == {"key1": ENTRIES["key1"]}


def test_last_record_of_a_key_counts(path: Path) -> None:
    newer = Entry.of("newer", nn.Linear(7, 7))
    with BuildCache(path) as cache:
        cache.append("key2", newer)
    assert read(path) == ENTRIES | {"key2": newer}


def test_cut_anywhere(path: Path) -> None:
    """Whole records before the cut are there, and the file takes new ones."""
    content = path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        kept = sum(end <= length for end in ends[1:])
        with BuildCache(path) as cache:
            assert list(cache.read(ENTRIES)) == list(ENTRIES)[:kept]
            cache.append("key3", ENTRIES["key3"])
        assert read(path)["key3"] == ENTRIES["key3"]


def test_damage_anywhere(path: Path) -> None:
    content = path.read_bytes()
    for position in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        found = read(path)
        assert len(found) >= len(ENTRIES) - 2  # a line end hit joins two
        assert all(entry == ENTRIES[key] for key, entry in found.items())


def test_other_format_is_begun_anew(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"format 1", b"format 2", 1))
    assert read(path) == {}
    assert path.read_bytes() == b"pyassemble zoo cache, format 1\n"


@pytest.mark.parametrize("content", [b"import torch\n", b"\x80\x04", b"\n", b"x" * 100_000])
def test_other_file_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.py"
    path.write_bytes(content)
    with pytest.raises(BuildCacheError, match=r"model\.py is not the cache of a build"):
        BuildCache(path)
    assert path.read_bytes() == content


def test_in_use(path: Path) -> None:
    with BuildCache(path), pytest.raises(BuildCacheError, match="in use"):
        BuildCache(path)
    assert read(path) == ENTRIES


@pytest.mark.parametrize("name", ["", "none/cache"])
def test_no_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(BuildCacheError, match="cannot be the build's cache"):
        BuildCache(tmp_path / name)
