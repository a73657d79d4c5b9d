"""A matrix of similarities as a file for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyassemble.atomic import replacing
from pyassemble.errors import MissingLibraryError, UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

MATRIX_SUFFIXES = (".parquet", ".npz", ".npy")

# Rows of the matrix that become one row group: what a reader that wants one target has to read.
_ROWS_TOGETHER = 64


def check_matrix_path(path: Path) -> None:
    """Refuses a file that :func:`write_matrix` could not write, before any work is done for it.

    Raises:
        UnknownOptionError: Its ending is that of no format.
        MissingLibraryError: The format needs a library that is not installed.
    """
    if path.suffix not in MATRIX_SUFFIXES:
        raise UnknownOptionError("matrix format", path.suffix or path.name, MATRIX_SUFFIXES)
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise MissingLibraryError(
                f"{path}: writing Parquet needs pyarrow ({error}); pip install pyarrow, or name a .npz file"
            ) from error


def write_matrix(directed: npt.NDArray[np.float64], names: Sequence[str], path: Path) -> None:
    """Write a matrix of directed similarities with its names, in place of an older file only when it is complete.

    A ``.npz`` holds ``names`` and ``directed``. A ``.parquet`` holds a row for each ordered pair: ``target``,
    ``source``, ``directed`` (source → target), ``symmetric``, so that its columns do not depend on the zoo, and a zoo
    of any size is read a part at a time.

    Args:
        directed: ``[i, j]`` = directed(names[j] → names[i]).
        names: The networks.
        path: ``.npz`` or ``.parquet``.

    Raises:
        UnknownOptionError: Another ending.
        MissingLibraryError: Parquet without pyarrow.
        OSError: The file cannot be written.
    """
    check_matrix_path(path)
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            _write_parquet(directed, names, temporary)
        elif path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, names=np.array(names, np.str_), directed=directed)
        else:
            with temporary.open("wb") as file:
                np.save(file, directed, allow_pickle=False)


def symmetric_rows(directed: npt.NDArray[np.float64], first: int, last: int) -> npt.NDArray[np.float64]:
    """Rows of the matrix of symmetric similarities."""
    result: npt.NDArray[np.float64] = np.sqrt(directed[first:last] * directed[:, first:last].T)
    return result


def _write_parquet(directed: npt.NDArray[np.float64], names: Sequence[str], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(names)
    texts = pa.array(names, pa.string())
    # Numbers of texts: pandas reads such a column as a category.
    category = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema(
        [("target", category), ("source", category), ("directed", pa.float64()), ("symmetric", pa.float64())]
    )
    numbers = np.arange(count, dtype=np.int32)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, count, _ROWS_TOGETHER):
            last = min(count, first + _ROWS_TOGETHER)
            columns = [
                pa.DictionaryArray.from_arrays(np.repeat(numbers[first:last], count), texts),
                pa.DictionaryArray.from_arrays(np.tile(numbers, last - first), texts),
                pa.array(directed[first:last].ravel()),
                pa.array(symmetric_rows(directed, first, last).ravel()),
            ]
            writer.write_table(pa.table(columns, schema=schema))
