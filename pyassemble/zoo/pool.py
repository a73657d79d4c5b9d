"""A pool of worker processes that survives jobs which hang or take their process down with them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from pyassemble.errors import WorkerError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from pyassemble.zoo.jobs import Job

#: Importing torch takes seconds, on a machine under load many; longer than this means that it never ends.
STARTUP_SECONDS = 300.0

_TICK_SECONDS = 0.5
_READ_BYTES = 1 << 20
_LAST_LINES_BYTES = 4_000

# Each worker computes shapes only; more threads would stand in each other's way.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass
class _Worker:
    """A worker process and the job it has.

    Attributes:
        process: In a process group of its own, so that what a job starts is ended with it.
        errors: What it writes to standard error.
        deadline: When it is taken to hang; infinity while it has nothing to do.
        ready: Whether it has started up.
        job: Index of the job it has.
        received: The beginning of an answer.
    """

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    deadline: float
    ready: bool = False
    job: int | None = None
    received: bytearray = field(default_factory=bytearray)

    @property
    def answers(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def jobs(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the text of its entry, or the reason why there is none."""

    job: int
    entry: str | None
    reason: str | None


def run(jobs: Sequence[Job], *, workers: int, timeout: float) -> Generator[Outcome, None, None]:
    """Runs jobs in worker processes and yields the outcomes as they come.

    No process is left behind when the generator is closed, by an exception too.

    Args:
        jobs: What to run.
        workers: Number of processes.
        timeout: Seconds after which a job is taken to hang and its process is killed.

    Raises:
        WorkerError: A process could not be started.
    """
    pool = _Pool(jobs, timeout)
    try:
        yield from pool.outcomes(min(workers, len(jobs)))
    finally:
        pool.close()


class _Pool:
    def __init__(self, jobs: Sequence[Job], timeout: float) -> None:
        self._jobs = jobs
        self._timeout = timeout
        self._waiting = deque(range(len(jobs)))
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def outcomes(self, workers: int) -> Iterator[Outcome]:
        for _ in range(workers):
            self._start()
        while any(worker.job is not None for worker in self._workers) or self._waiting:
            for key, _ in self._selector.select(_TICK_SECONDS):
                yield from self._hear(key.data)
            for worker in list(self._workers):
                yield from self._check(worker)

    def close(self) -> None:
        for worker in list(self._workers):
            self._end(worker)
        self._selector.close()

    def _start(self) -> None:
        # Not by multiprocessing, which would execute the caller's script again in every worker.
        code = f"import sys; sys.path[:] = {sys.path!r}; from pyassemble.zoo.worker import main; main()"
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | _ONE_THREAD,
                start_new_session=True,
            )
        except OSError as error:
            errors.close()
            raise WorkerError(f"a worker process could not be started: {error}") from error
        worker = _Worker(process, errors, time.monotonic() + STARTUP_SECONDS)
        self._workers.append(worker)
        os.set_blocking(worker.answers.fileno(), False)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)

    def _hear(self, worker: _Worker) -> Iterator[Outcome]:
        """Takes what a worker has sent, and gives it the next job when it is done."""
        try:
            received = os.read(worker.answers.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not received:
            yield from self._lost(worker, _how_it_ended(worker))
            return
        worker.received += received
        if not received.endswith(b"\n"):
            return
        message: dict[str, Any] = json.loads(bytes(worker.received))
        worker.received.clear()
        if "ready" in message:
            worker.ready = True
        elif worker.job is not None:
            yield Outcome(worker.job, message.get("entry"), message.get("reason"))
        self._give_job(worker)

    def _give_job(self, worker: _Worker) -> None:
        worker.job = self._waiting.popleft() if self._waiting else None
        worker.deadline = float("inf")
        if worker.job is not None:
            worker.deadline = time.monotonic() + self._timeout
            with contextlib.suppress(BrokenPipeError):  # its end is seen by the next look at it
                worker.jobs.write(pickle.dumps(self._jobs[worker.job]))
                worker.jobs.flush()

    def _check(self, worker: _Worker) -> Iterator[Outcome]:
        """Sees to a worker that hangs, or whose end did not close its pipe because a child of it still has it."""
        if time.monotonic() > worker.deadline:
            waited = STARTUP_SECONDS if not worker.ready else self._timeout
            yield from self._lost(worker, f"took longer than {waited:g} s and was stopped")
        elif worker.process.poll() is not None and worker in self._workers:
            yield from self._hear(worker)
            if worker in self._workers:
                yield from self._lost(worker, _how_it_ended(worker))

    def _lost(self, worker: _Worker, reason: str) -> Iterator[Outcome]:
        """Ends a worker, says so of its job, and starts another if there is work left."""
        said = _last_line(worker.errors)
        self._end(worker)
        if not worker.ready:
            raise WorkerError(f"a worker process could not start up: it {reason}{said}")
        if worker.job is not None:
            yield Outcome(worker.job, None, f"its building {reason}{said}")
        if len(self._workers) < len(self._waiting) + sum(other.job is not None for other in self._workers):
            self._start()

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.answers)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
        worker.answers.close()
        with contextlib.suppress(BrokenPipeError):  # what was not sent yet cannot be any more
            worker.jobs.close()
        worker.errors.close()


def _how_it_ended(worker: _Worker) -> str:
    status = worker.process.wait()
    if status >= 0:
        return f"ended its process with status {status}"
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-status, f"signal {-status}")
    memory = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"ended its process with {name}{memory}"


def _last_line(errors: IO[bytes]) -> str:
    """The last thing that a process has written to standard error, to be put behind a message."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _LAST_LINES_BYTES))
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
