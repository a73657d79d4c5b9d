"""All pairs of a zoo, in shards of rows: on this machine's threads, or over a cluster; resumable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyassemble.atomic import replacing
from pyassemble.errors import ShardError
from pyassemble.zoo.cluster import spread
from pyassemble.zoo.engine import count_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from pyassemble.zoo.engine import Engine
    from pyassemble.zoo.tables import Tables

# Rows of one shard. Targets of one shard share the scores of their blocks; names that are neighbours are often of one
# family and share many.
SHARD_ROWS = 128


@dataclass(frozen=True)
class Shard:
    """Rows ``first`` to ``last`` of the matrix."""

    first: int
    last: int

    @property
    def file(self) -> str:
        """Name of the file that keeps it."""
        return f"rows-{self.first:07d}-{self.last:07d}.npy"


def fill(
    tables: Tables,
    engine: Callable[[], Engine],
    out: npt.NDArray[np.float64],
    *,
    workers: int,
    memory: int,
    keep: ShardFolder | None,
    done: Callable[[int], None],
) -> None:
    """Write the whole matrix into ``out``.

    Args:
        tables: The networks.
        engine: Gives the engine of this process, where it is needed.
        out: float64, shape (networks, networks).
        workers: Threads on this machine; ignored by a distributed backend.
        memory: Bytes for tables of scores, in each process.
        keep: Where finished shards are kept until all are there.
        done: Told how many rows were finished, as they are.
    """
    count = len(tables)
    shards = [Shard(first, min(count, first + SHARD_ROWS)) for first in range(0, count, SHARD_ROWS)]
    missing = []
    for shard in shards:
        rows = None if keep is None else keep.read(shard, count)
        if rows is None:
            missing.append(shard)
        else:
            out[shard.first : shard.last] = rows
            done(shard.last - shard.first)
    distributed = spread(tables)
    if distributed is not None:
        finished: Iterator[tuple[Shard, npt.NDArray[np.float64]]] = (
            (Shard(first, last), rows)
            for (first, last), rows in distributed.rows([(s.first, s.last) for s in missing], memory)
        )
    else:
        finished = _local(engine(), missing, out, count_workers(workers), memory) if missing else iter(())
    for shard, rows in finished:
        out[shard.first : shard.last] = rows
        if keep is not None:
            keep.write(shard, rows)
        done(shard.last - shard.first)
    if keep is not None:
        keep.remove()


def _local(
    engine: Engine, shards: list[Shard], out: npt.NDArray[np.float64], workers: int, memory: int
) -> Iterator[tuple[Shard, npt.NDArray[np.float64]]]:
    for shard in shards:
        rows = out[shard.first : shard.last]
        engine.directed_rows(shard.first, shard.last, rows, memory, workers)
        yield shard, rows


class ShardFolder:
    """Finished shards on disk, and which networks they belong to.

    Raises:
        ShardError: A folder of something else, or of shards of other networks.
    """

    def __init__(self, folder: Path, tables: Tables) -> None:
        self._folder = folder
        digest = hashlib.sha256(json.dumps(list(tables.kinds)).encode())
        for array in tables.arrays():
            digest.update(array.tobytes())
        self._identity = {"networks": len(tables), "digest": digest.hexdigest()}
        if folder.exists() and not folder.is_dir():
            raise ShardError(f"{folder} is a file; name a folder for the shards")
        folder.mkdir(parents=True, exist_ok=True)
        self._manifest = folder / "shards.json"
        self._sweep()
        if not self._manifest.exists():
            if any(folder.iterdir()):
                raise ShardError(f"{folder} is neither empty nor a folder of shards; name an empty or a new one")
            with replacing(self._manifest) as temporary:
                temporary.write_text(json.dumps(self._identity))
        elif self._known() != self._identity:
            raise ShardError(f"{folder} holds shards of other networks; name another folder, or delete it")

    def _known(self) -> object:
        try:
            return json.loads(self._manifest.read_text())
        except ValueError:
            return None

    def _sweep(self) -> None:
        """Delete what a process that was killed while it wrote left behind."""
        for pattern in (".rows-*.npy.*.tmp", ".shards.json.*.tmp"):
            for file in self._folder.glob(pattern):
                file.unlink(missing_ok=True)

    def read(self, shard: Shard, columns: int) -> npt.NDArray[np.float64] | None:
        """The rows, or None if they are not there or damaged."""
        try:
            # Mapped, not read: the size that a damaged file claims takes no memory.
            rows = np.load(self._folder / shard.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, OverflowError):
            return None  # not there, or cut off: it is computed again
        fits = rows.shape == (shard.last - shard.first, columns) and rows.dtype == np.float64
        return rows if fits else None

    def write(self, shard: Shard, rows: npt.NDArray[np.float64]) -> None:
        """Keep these rows."""
        with replacing(self._folder / shard.file) as temporary, temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)

    def remove(self) -> None:
        """Delete the shards, which the caller now has as a whole; leaves anything else that lies there."""
        for file in self._folder.glob("rows-*.npy"):
            file.unlink()
        self._sweep()
        self._manifest.unlink()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()
