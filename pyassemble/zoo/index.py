"""The index file: a zoo on disk, as compressed arrays and one JSON header; nothing in it is executed or unpickled.

A NumPy ``.npz`` archive (zip, a CRC-32 per member) with the arrays of :class:`pyassemble.zoo.tables.Arrays` and
``header``, the bytes of a JSON object: the format's number, the kinds of layers, the records of the networks, and the
versions of the libraries that they were built with.
"""

from __future__ import annotations

import json
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyassemble.atomic import replacing
from pyassemble.errors import IndexFileError
from pyassemble.zoo.tables import Arrays, Tables, dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

#: Number of the format that is written, and the only one that is read.
FORMAT = 1

#: Bytes of all arrays together, unpacked: a few kilobytes can claim to be gigabytes. A million networks need less.
LARGEST = 1 << 29

# What zipfile and NumPy raise for damaged archives and arrays, beside their own errors.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    LookupError,
    EOFError,
    RuntimeError,
    OverflowError,
    SyntaxError,
    tokenize.TokenError,
)


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
        IndexFileError: What it would hold could not be read again.
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
    try:
        _check_header(header)
    except ValueError as error:
        raise IndexFileError(f"the zoo cannot be written: {error}") from error
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        **index.tables.arrays()._asdict(),
    }
    size = sum(array.nbytes for array in arrays.values())
    if size > LARGEST:
        raise IndexFileError(f"the zoo cannot be written: it takes {size} bytes, an index at most {LARGEST}")
    with replacing(Path(path)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_index(path: str | Path) -> Index:
    """Read an index file.

    Raises:
        IndexFileError: It is missing, damaged, no index at all, or of another version of the format.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > LARGEST:
                raise ValueError(f"it claims to hold {size} bytes; at most {LARGEST} are read")
            header = _header(path, _array(archive, "header", np.uint8))
            _check_header(header)
            arrays = Arrays(*(_array(archive, name, dtype_of(name)) for name in Arrays._fields))
        tables = Tables.from_arrays(header["kinds"], arrays)
    except FileNotFoundError as error:
        raise IndexFileError(f"there is no index file {path}") from error
    except IndexFileError:
        raise
    except OSError as error:
        raise IndexFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except _DAMAGE as error:
        raise IndexFileError(f"{path} is no sound zoo index: {str(error).partition(chr(10))[0]}") from error
    if len(tables) != len(header["names"]):
        raise IndexFileError(f"{path} is no sound zoo index: {len(tables)} networks have {len(header['names'])} names")
    approximate = set(header["approximate"])
    columns = (header["names"], header["parameters"], header["licenses"], header["weights"])
    records = [Record(*row, approximate=i in approximate) for i, row in enumerate(zip(*columns, strict=True))]
    return Index(tables, records, header["libraries"])


def _array(archive: zipfile.ZipFile, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    # Read to its end, where the checksum is compared; the shape that it claims takes no memory before it is believed.
    content = archive.read(f"{name}.npy")
    stream = BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"{name} is of another version of the array format")
    shape, _, stated = np.lib.format.read_array_header_1_0(stream)
    start = stream.tell()
    if stated != dtype or shape != ((len(content) - start) // stated.itemsize,):
        raise ValueError(f"{name} must be a one-dimensional array of {np.dtype(dtype)}")
    return np.frombuffer(content, stated, offset=start)


def _header(path: Path, text: npt.NDArray[np.uint8]) -> dict[str, Any]:
    try:
        header = json.loads(text.tobytes())
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(header, dict) or type(header.get("format")) is not int:
        raise ValueError("its header has no format number")
    if header["format"] != FORMAT:
        age = "a newer" if header["format"] > FORMAT else "an older"
        raise IndexFileError(
            f"{path} has {age} version of the format, {header['format']}; this pyassemble reads {FORMAT}: "
            "build the index again, or install the version that wrote it"
        )
    return header


def _check_header(header: Mapping[str, Any]) -> None:
    def strings(key: str, *, optional: bool = False) -> None:
        if not isinstance(header.get(key), list) or not all(
            isinstance(item, str) or (optional and item is None) for item in header[key]
        ):
            raise ValueError(f"{key} in its header is no list of texts")

    def counts(key: str) -> None:
        if not isinstance(header.get(key), list) or not all(type(item) is int and item >= 0 for item in header[key]):
            raise ValueError(f"{key} in its header is no list of counts")

    strings("kinds")
    strings("names")
    strings("licenses", optional=True)
    strings("weights", optional=True)
    counts("parameters")
    counts("approximate")
    libraries = header.get("libraries")
    if not isinstance(libraries, dict) or not all(isinstance(version, str) for version in libraries.values()):
        raise ValueError("libraries in its header is no table of versions")
    names = header["names"]
    if not all(len(header[key]) == len(names) for key in ("parameters", "licenses", "weights")):
        raise ValueError("its columns differ in length")
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice")
