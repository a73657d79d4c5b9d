"""Many networks, compared with each other and with a new one (DPIAT, arXiv 2212.13970, section on similarity)."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyassemble.errors import DuplicateNameError, EmptyNetworkError, MatrixError, UnknownOptionError
from pyassemble.network.backend import native, sequence
from pyassemble.network.standardize import NetworkLike, standardize
from pyassemble.zoo.cluster import spread
from pyassemble.zoo.engine import count_workers, extend, make_engine
from pyassemble.zoo.entry import Entry
from pyassemble.zoo.index import Index, Record, read_index, write_index
from pyassemble.zoo.matrix import ShardFolder, fill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

    from pyassemble.zoo.engine import Engine

SIMILARITIES = ("symmetric", "directed")


class Zoo:
    """Networks that are candidates to start from.

    Held as layers and blocks that are shared among all networks, so that equal ones are scored once for everyone; the
    networks themselves are not kept. Several threads may compare at once; none may do so while another one adds.
    """

    def __init__(self) -> None:
        self._index = Index()
        self._numbers: dict[str, int] = {}
        self._engine: Engine | None = None
        self._engine_counts = (0, 0, 0)
        self._engine_lock = threading.Lock()

    def __getstate__(self) -> Index:
        return self._index

    def __setstate__(self, index: Index) -> None:
        self.__init__()  # type: ignore[misc]
        self._index = index
        self._numbers = {record.name: i for i, record in enumerate(index.records)}

    @classmethod
    def of(cls, entries: Iterable[Entry], libraries: dict[str, str] | None = None) -> Zoo:
        """A zoo of these entries, built with these versions of libraries.

        Raises:
            DuplicateNameError: A name occurs twice.
        """
        zoo = cls()
        zoo._index.libraries.update(libraries or {})
        for entry in entries:
            zoo.add_entry(entry)
        return zoo

    @classmethod
    def timm(
        cls, pattern: str = "*", *, workers: int = -1, progress: bool = True, cache: str | Path | None = None
    ) -> Zoo:
        """All architectures of the installed timm, under their timm names.

        The index that ships with the package is used if it was built with the installed version of timm; otherwise the
        architectures are built on the meta device, which takes about a minute on two cores.

        Args:
            pattern: Which, as for ``timm.list_models``.
            workers: Processes that build; -1 for one per core.
            progress: Whether to draw a bar on standard error while building.
            cache: File in which built networks are kept, so that an interrupted call can go on.

        Raises:
            NetworkSpecError: There are none of that name.
        """
        from pyassemble.zoo.shipped import timm_zoo

        return timm_zoo(pattern, workers=workers, progress=progress, cache=None if cache is None else Path(cache))

    @classmethod
    def load(cls, path: str | Path) -> Zoo:
        """The zoo of an index file.

        Raises:
            IndexFileError: It is missing, damaged, no index, or of another version of the format.
        """
        zoo = cls()
        zoo._index = read_index(path)
        zoo._numbers = {record.name: i for i, record in enumerate(zoo._index.records)}
        return zoo

    def save(self, path: str | Path) -> None:
        """Write an index file; an existing one is replaced when the new one is complete.

        Raises:
            OSError: The file cannot be written.
            IndexFileError: What it would hold could not be read again.
        """
        write_index(self._index, path)

    def add(self, name: str, network: NetworkLike, *, license: str | None = None, weights: str | None = None) -> None:
        """Add a network. It is read, not kept.

        Args:
            name: What the zoo calls it.
            network: Module (on any device, meta included), state_dict, or path of a weights file.
            license: License of its weights.
            weights: Where its weights come from.

        Raises:
            DuplicateNameError: The name is taken.
            EmptyNetworkError: The network has no layer that could be scored.
            UnsupportedNetworkError: A lazy, quantized, scripted or sharded network.
            WeightsFileError: A weights file that cannot be read.
        """
        if name in self._numbers:
            raise DuplicateNameError([name])
        self.add_entry(Entry.of(name, network, license=license, weights=weights))

    def add_entry(self, entry: Entry) -> None:
        """Add a network that is already described.

        Raises:
            DuplicateNameError: The name is taken.
        """
        if entry.name in self._numbers:
            raise DuplicateNameError([entry.name])
        self._index.tables.add(entry.layers)
        self._numbers[entry.name] = len(self._index.records)
        self._index.records.append(
            Record(entry.name, entry.parameters, entry.license, entry.weights, entry.approximate)
        )

    def select(self, names: Iterable[str]) -> Zoo:
        """A zoo of some of these networks.

        Raises:
            KeyError: A name that is not here.
            DuplicateNameError: A name is given twice.
        """
        numbers = [self._numbers[name] for name in names]
        if len(set(numbers)) < len(numbers):
            counts = Counter(numbers)
            raise DuplicateNameError(self._index.records[i].name for i in counts if counts[i] > 1)
        zoo = Zoo()
        records = [self._index.records[i] for i in numbers]
        zoo._index = Index(self._index.tables.part(numbers), records, dict(self._index.libraries))
        zoo._numbers = {record.name: i for i, record in enumerate(records)}
        return zoo

    @property
    def names(self) -> list[str]:
        """Names of the networks, in the order in which they were added."""
        return [record.name for record in self._index.records]

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of the libraries that the networks were built with, where known."""
        return dict(self._index.libraries)

    def __len__(self) -> int:
        return len(self._index.records)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __getitem__(self, name: str) -> Record:
        """What is known of a network.

        Raises:
            KeyError: It is not here.
        """
        return self._index.records[self._numbers[name]]

    def entry(self, name: str) -> Entry:
        """A network as it was added, but for the names of its layers, which are not kept.

        Raises:
            KeyError: It is not here.
        """
        number = self._numbers[name]
        record = self._index.records[number]
        layers = self._index.tables.layers(number, approximate=record.approximate)
        return Entry(name, layers, record.parameters, record.license, record.weights)

    def __repr__(self) -> str:
        layers, blocks, networks = self._index.tables.counts
        return f"<Zoo of {networks} networks: {layers} distinct layers in {blocks} distinct blocks>"

    def similarity_matrix(
        self,
        *,
        workers: int = -1,
        out: npt.NDArray[np.float64] | str | Path | None = None,
        memory: int = 1 << 29,
        shards: str | Path | None = None,
        progress: bool = False,
    ) -> npt.NDArray[np.float64]:
        """Directed similarities of all ordered pairs, exact, and equal bit for bit however they are computed.

        The symmetric similarity is ``np.sqrt(m * m.T)``. Under a distributed backend of joblib (``with
        joblib.parallel_config(backend="ray")``) the rows are computed by its workers.

        Args:
            workers: Threads; -1 for one per core.
            out: Where to write: an array (a memory map, say) of float64 and shape (n, n), or the name of a ``.npy``
                file, which is then memory-mapped.
            memory: Bytes for tables of scores in each process, beside the result: 512 MiB. Less costs time, not bits.
            shards: Folder in which finished rows are kept: a call that was stopped goes on there. It is removed when
                all rows are done.
            progress: Whether to draw a bar on standard error.

        Returns:
            float64, shape (n, n): ``[i, j]`` = directed(names[j] → names[i]); row = target, column = source.

        Raises:
            MatrixError: An ``out`` of another shape, type or layout.
            ShardError: A folder of shards of other networks.
            WorkerError: A distributed backend has a worker whose results would differ in their last bits.
            ValueError: A number of workers that is neither -1 nor positive, or a negative ``memory``.
        """
        count_workers(workers)
        if memory < 0:
            raise ValueError(f"memory must not be negative, is {memory}")
        # Before a file is made: a folder that is refused must not cost an older result.
        keep = None if shards is None else ShardFolder(Path(shards), self._index.tables)
        if isinstance(out, str | Path):
            out = np.lib.format.open_memmap(out, mode="w+", dtype=np.float64, shape=(len(self), len(self)))
        elif out is None:
            out = np.empty((len(self), len(self)))
        else:
            _check_out(out, len(self))
        with _bar(len(self), shown=progress) as advance:
            fill(
                self._index.tables,
                self._current_engine,
                out,
                workers=workers,
                memory=memory,
                keep=keep,
                done=advance,
            )
        return out

    def nearest(
        self, network: NetworkLike | Entry, k: int = 10, *, similarity: str = "symmetric", workers: int = -1
    ) -> list[tuple[str, float]]:
        """The most similar networks, as a ranking of all pairs would have it; most of the zoo is not aligned for it.

        Args:
            network: The network to start: module (on any device, meta included), state_dict, path of a weights file, or
                an entry.
            k: How many.
            similarity: ``"symmetric"``, or ``"directed"``: how well each network of the zoo serves this one.
            workers: Threads; -1 for one per core. A distributed backend of joblib takes its own, which pays for zoos
                that this machine cannot hold or search in seconds: joblib starts Ray's workers anew for each call.

        Returns:
            (name, similarity in [0, 1]) of each, best source first; of equally similar ones the first added.

        Raises:
            UnknownOptionError: Another ``similarity``.
            EmptyNetworkError: A network without any scored layer.
            WorkerError: A distributed backend has a worker whose results would differ in their last bits.
            ValueError: A negative ``k``, or a number of workers that is neither -1 nor positive.
        """
        if similarity not in SIMILARITIES:
            raise UnknownOptionError("similarity", similarity, SIMILARITIES)
        if k < 0:
            raise ValueError(f"k must not be negative, is {k}")
        threads = count_workers(workers)
        layers = network.layers if isinstance(network, Entry) else standardize(network, "blocks")
        if not layers.scored:
            raise EmptyNetworkError(
                f"the network {type(network).__name__} has no convolution, batch norm or linear layer with weights"
            )
        symmetric = similarity == "symmetric"
        cluster = spread(self._index.tables)
        if cluster is not None:
            found = cluster.nearest(layers, k, symmetric)
        else:
            numbers, values, _ = self._current_engine().nearest(sequence(layers), k, symmetric, threads)
            found = list(zip(numbers.tolist(), values.tolist(), strict=True))
        return [(self._index.records[number].name, value) for number, value in found]

    def _current_engine(self) -> Engine:
        tables = self._index.tables
        with self._engine_lock:
            engine, since = self._engine, self._engine_counts
            grown = since != tables.counts
            other_backend = hasattr(engine, "extend") != (native() is not None)
            if engine is None or other_backend or (grown and not extend(engine, tables, since)):
                self._engine = engine = make_engine(tables)
            self._engine_counts = tables.counts
        return engine


def _check_out(out: object, networks: int) -> None:
    accepted = f"accepted: a writeable, C-contiguous float64 array of shape ({networks}, {networks})"
    if not isinstance(out, np.ndarray):
        raise MatrixError(f"out is a {type(out).__name__}; {accepted}, or the name of a file")
    if out.shape != (networks, networks) or out.dtype != np.float64:
        raise MatrixError(f"out has shape {out.shape} and type {out.dtype}; {accepted}")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise MatrixError(f"out is {'read-only' if out.flags.c_contiguous else 'not C-contiguous'}; {accepted}")


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    if not shown:
        yield lambda rows: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Comparing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("Comparing", total=total)
        yield lambda rows: bar.advance(task, rows)
