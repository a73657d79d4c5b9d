"""Building the entries of a zoo: in parallel, with progress, and where the last call was stopped."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyassemble.errors import DuplicateNameError, UnknownOptionError
from pyassemble.zoo.cache import BuildCache
from pyassemble.zoo.pool import run
from pyassemble.zoo.records import from_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pyassemble.zoo.entry import Entry
    from pyassemble.zoo.jobs import Job

_TASK = "Building"


@dataclass(frozen=True)
class Built:
    """What became of the jobs.

    Attributes:
        entries: One of each network that could be built, in the order of the jobs.
        skipped: The others: name to the reason, in one line, in the order of the jobs.
    """

    entries: list[Entry] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def build(
    jobs: Iterable[Job],
    *,
    workers: int = -1,
    progress: bool = True,
    cache: Path | None = None,
    timeout: float = 60.0,
) -> Built:
    """Builds networks in worker processes and describes each as an entry.

    A network that raises, hangs, or takes its process down is skipped, and the others are built all the same. Factories
    run with the rights of this process: they are not sandboxed.

    Args:
        jobs: What to build; each name may occur once.
        workers: Number of processes; -1 for one per core.
        progress: Whether to draw a bar on standard error.
        cache: A file in which finished entries are kept as they come. After an interruption, Ctrl-C or a kill, a second
            call with the same file builds only what is missing; entries of changed files or other versions of a library
            are built again, and skipped networks are tried again. One file may serve any number of origins.
        timeout: Seconds a network may take.

    Raises:
        DuplicateNameError: Two jobs of one name.
        UnknownOptionError: No such number of workers, or no such timeout.
        BuildCacheError: The cache cannot be written, is in use, or is some other file.
        WorkerError: Processes cannot be started.
    """
    jobs = list(jobs)
    _check(jobs, workers, timeout)
    entries: dict[int, Entry] = {}
    skipped: dict[int, str] = {}
    with ExitStack() as stack:
        keys = [job.key if cache is not None else None for job in jobs]
        store = stack.enter_context(BuildCache(Path(cache))) if cache is not None else None
        if store is not None:
            entries = _finished(store, keys)
        missing = [index for index in range(len(jobs)) if index not in entries]
        advance = stack.enter_context(_bar(len(jobs), len(entries), shown=progress and bool(missing)))
        outcomes = run(
            [jobs[index] for index in missing],
            workers=_cores() if workers == -1 else workers,
            timeout=timeout,
        )
        stack.callback(outcomes.close)
        for outcome in outcomes:
            index = missing[outcome.job]
            if outcome.entry is None:
                skipped[index] = outcome.reason or "no reason was given"
            else:
                entries[index] = from_text(outcome.entry)
                key = keys[index]
                if store is not None and key is not None:
                    store.append(key, entries[index])
            advance(jobs[index].name)
    return Built(
        [entries[index] for index in sorted(entries)], {jobs[index].name: skipped[index] for index in sorted(skipped)}
    )


def _check(jobs: Sequence[Job], workers: int, timeout: float) -> None:
    if workers != -1 and workers < 1:
        raise UnknownOptionError("number of workers", workers, ("-1 (one per core)", "1 and more"))
    if not timeout > 0:
        raise UnknownOptionError("timeout", timeout, ("seconds above 0",))
    twice = [name for name, count in Counter(job.name for job in jobs).items() if count > 1]
    if twice:
        raise DuplicateNameError(twice)


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())  # unlike os.cpu_count, it knows of containers and affinities


def _finished(store: BuildCache, keys: Sequence[str | None]) -> dict[int, Entry]:
    found = store.read({key for key in keys if key is not None})
    return {index: found[key] for index, key in enumerate(keys) if key in found}


@contextmanager
def _bar(total: int, done: int, *, shown: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar; what is yielded moves it on by a network of that name."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=len(_TASK))),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn(
            "{task.fields[name]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task(_TASK, total=total, completed=done, name="")
        yield lambda name: bar.update(task, advance=1, name=name)
