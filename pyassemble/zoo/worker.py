"""A worker process of a build: takes jobs from standard input, answers each with one line on standard output."""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyassemble.zoo.jobs import Job


def main() -> None:
    """Runs until standard input ends."""
    jobs, answers = _take_standard_streams()
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(jobs, waiting), daemon=True).start()
    _import_libraries()
    _answer(answers, {"ready": True})
    while True:
        _answer(answers, _build(waiting.get()))


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the parent, out of reach of whatever a factory prints or reads."""
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
    return jobs, answers


def _receive(jobs: BinaryIO, waiting: queue.SimpleQueue[Job]) -> None:
    """Hands jobs on; ends the process, and whatever it has started, when the parent is gone.

    A thread of its own sees the end also while a job hangs.
    """
    try:
        while True:
            waiting.put(pickle.load(jobs))  # written by this package's own parent process
    except (EOFError, pickle.UnpicklingError):
        pass
    finally:
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(0)


def _import_libraries() -> None:
    """Imports what nearly every job needs, so that it counts against no job's time."""
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    from pyassemble.zoo import jobs  # noqa: F401

    torch.set_num_threads(1)


def _build(job: Job) -> dict[str, str]:
    from pyassemble.zoo.records import to_text

    try:
        return {"entry": to_text(job.build())}
    except BaseException as error:  # foreign code may raise anything, and the next job is to be built all the same
        return {"reason": reason(error)}


def _answer(answers: BinaryIO, message: Mapping[str, object]) -> None:
    answers.write(json.dumps(message).encode("ascii") + b"\n")
    answers.flush()


def reason(error: BaseException) -> str:
    """Why a network could not be built, in one line."""
    from pyassemble.errors import PyAssembleError

    missing = _missing_module(error)
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    text = first if isinstance(error, PyAssembleError) or not lines else f"{type(error).__name__}: {first}"
    return f"needs the module {missing!r}, which is not installed ({text})" if missing else text


def _missing_module(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name
        error = error.__cause__
    return None


if __name__ == "__main__":
    sys.exit("started by a build only")
