"""The index file: a zoo on disk, as compressed arrays and one JSON header; nothing in it is executed or unpickled.

A NumPy ``.npz`` archive (zip, a CRC-32 per member) with the arrays of :class:`pyassemble.zoo.tables.Arrays` and
``header``, the UTF-8 bytes of a JSON object: the format's number, the kinds of layers, the records of the networks, and
the versions of the libraries that they were built with.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.atomic import replacing
from pyassemble.errors import IndexFileError
from pyassemble.zoo.tables import Arrays, Tables

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Number of the format that is written, and the only one that is read.
FORMAT = 1

_LARGEST = 1 << 33  # bytes of one array; a lie about sizes must not take all memory


@dataclass(frozen=True)
class Record:
    """What a zoo says of a network.

    Attributes:
        name: What the zoo calls it.
        parameters: Number of its parameters.
        license: License of its weights; None where unknown.
        weights: Where its pretrained weights come from; None where there are none, or none are known.
        approximate: Whether names and shapes were all that was known of it (SPEC 1.7).
    """

    name: str
    parameters: int
    license: str | None = None
    weights: str | None = None
    approximate: bool = False


@dataclass
class Index:
    """The content of an index file.

    Attributes:
        tables: The networks' layers and blocks.
        records: What is said of each network, in the order of the tables.
        libraries: Versions of the libraries that the networks were built with, by name.
    """

    tables: Tables = field(default_factory=Tables)
    records: list[Record] = field(default_factory=list)
    libraries: dict[str, str] = field(default_factory=dict)


def write_index(index: Index, path: str | Path) -> None:
    """Write an index file, in place of an older one only when it is complete.

    Raises:
        OSError: The file cannot be written.
    """
    header = {
        "format": FORMAT,
        "kinds": list(index.tables.kinds),
        "names": [record.name for record in index.records],
        "parameters": [record.parameters for record in index.records],
        "licenses": [record.license for record in index.records],
        "weights": [record.weights for record in index.records],
        "approximate": [i for i, record in enumerate(index.records) if record.approximate],
        "libraries": index.libraries,
    }
    text = np.frombuffer(json.dumps(header, ensure_ascii=False).encode(), np.uint8)
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=text, **index.tables.arrays()._asdict())


def read_index(path: str | Path) -> Index:
    """Read an index file.

    Raises:
        IndexFileError: It is missing, damaged, no index at all, or of another version of the format.
    """
    path = Path(path)
    try:
        # Opened here, because np.load leaves a damaged archive's file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            header = _header(path, archive)
            arrays = Arrays(*(_member(archive, name) for name in Arrays._fields))
            tables = Tables.from_arrays(header["kinds"], arrays)
    except FileNotFoundError as error:
        raise IndexFileError(f"there is no index file {path}") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        if isinstance(error, IndexFileError):
            raise
        raise IndexFileError(f"{path} is no sound zoo index: {error}") from error
    if len(tables) != len(header["names"]):
        raise IndexFileError(f"{path} is no sound zoo index: {len(tables)} networks have {len(header['names'])} names")
    approximate = set(header["approximate"])
    columns = (header["names"], header["parameters"], header["licenses"], header["weights"])
    records = [Record(*row, approximate=i in approximate) for i, row in enumerate(zip(*columns, strict=True))]
    return Index(tables, records, header["libraries"])


def _member(archive: Any, name: str) -> Any:
    declared = archive.zip.getinfo(f"{name}.npy").file_size
    if declared > _LARGEST:
        raise ValueError(f"{name} claims {declared} bytes")
    return archive[name]


def _header(path: Path, archive: Any) -> dict[str, Any]:
    if not hasattr(archive, "zip"):
        raise ValueError("it is a bare array")
    header = json.loads(bytes(_member(archive, "header")))
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ValueError("its header has no format number")
    if header["format"] != FORMAT:
        age = "a newer" if header["format"] > FORMAT else "an older"
        raise IndexFileError(
            f"{path} has {age} version of the format, {header['format']}; this pyassemble reads {FORMAT}: "
            "build the index again, or install the version that wrote it"
        )
    _check_header(header)
    return header


def _check_header(header: Mapping[str, Any]) -> None:
    def strings(key: str, *, optional: bool = False) -> None:
        if not isinstance(header.get(key), list) or not all(
            isinstance(item, str) or (optional and item is None) for item in header[key]
        ):
            raise ValueError(f"{key} in its header are no list of texts")

    def counts(key: str) -> None:
        if not isinstance(header.get(key), list) or not all(type(item) is int and item >= 0 for item in header[key]):
            raise ValueError(f"{key} in its header are no list of counts")

    strings("kinds")
    strings("names")
    strings("licenses", optional=True)
    strings("weights", optional=True)
    counts("parameters")
    counts("approximate")
    libraries = header.get("libraries")
    if not isinstance(libraries, dict) or not all(isinstance(version, str) for version in libraries.values()):
        raise ValueError("libraries in its header are no versions by name")
    names = header["names"]
    if not all(len(header[key]) == len(names) for key in ("parameters", "licenses", "weights")):
        raise ValueError("its columns differ in length")
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
