"""The warm process: it imports what commands need, then forks one process after another that runs a command.

It runs nothing itself: each connection gets a fork of its own, the keeper, which talks to the client and forks the
process that becomes the client's command. So neither users' code nor a client that stalls ever touches it.

A fork takes along only the thread that forks. That does no harm here, since no other one does any work: importing
starts none but OpenBLAS's, which ends them itself before a fork, and neither OpenMP nor CUDA is in use yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import time
from typing import IO, TYPE_CHECKING

from pyassemble.cli.warm.client import peer
from pyassemble.cli.warm.keeper import fork, keep
from pyassemble.cli.warm.place import socket_path
from pyassemble.cli.warm.preloaded import preload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyassemble.cli.warm.preloaded import Preloaded

#: How often the process looks whether it has been idle for too long, in seconds.
_TICK = 30.0

#: What ends the process.
_ENDING = (signal.SIGINT, signal.SIGTERM)

#: What a process without a terminal says when it listens.
LISTENING = "listening"


def main() -> None:
    """Serves until it has been idle for too long, or is told to end. Arguments: seconds, and ``detached`` or not."""
    idle, detached = float(sys.argv[1]), sys.argv[2:] == ["detached"]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Whoever started this may ignore or block signals, and it has to learn how its forks end.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    code = 0
    try:
        path = socket_path()
        with _sole(path) as lock:
            preloaded = preload(besides=lock.fileno())
            with _listening(path) as listener:
                if detached:
                    _announce_and_detach()
                else:
                    ends = f"Ctrl-C ends it, {idle / 60:g} minutes without a command too"
                    print(f"listening, process {os.getpid()}; {ends}", flush=True)
                serve(listener, lock, preloaded, idle)
    except KeyboardInterrupt:
        pass
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    os._exit(code)  # taking down all modules would take half a second


def serve(listener: socket.socket, lock: IO[str], preloaded: Preloaded, idle: float) -> None:
    """Answers clients until none has come, and no command has run, for so many seconds."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        _serve(listener, lock, preloaded, idle)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(listener: socket.socket, lock: IO[str], preloaded: Preloaded, idle: float) -> None:
    listener.settimeout(min(idle, _TICK))
    keepers: set[int] = set()
    since = time.monotonic()
    while keepers or time.monotonic() - since < idle:
        with contextlib.suppress(TimeoutError):
            with _interruptible():
                connection, _ = listener.accept()
            with connection:
                if peer(connection)[1] == os.getuid():
                    keepers.add(_start_keeper(connection, listener, lock, preloaded))
        for keeper in list(keepers):
            if os.waitpid(keeper, os.WNOHANG)[0]:
                keepers.remove(keeper)
                since = time.monotonic()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets the signals that end this process through; what they raise would be lost in what Python runs after forks."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _start_keeper(connection: socket.socket, listener: socket.socket, lock: IO[str], preloaded: Preloaded) -> int:
    server = os.getpid()
    keeper = fork()
    if keeper != 0:
        return keeper
    try:
        os.setsid()  # Ctrl-C at the warm process is not meant for the commands
        listener.close()
        lock.close()
        if not keep(connection, preloaded):
            os.kill(server, signal.SIGTERM)
    finally:  # whatever happened, the warm process's own code is not for this one to go on with
        os._exit(0)


@contextlib.contextmanager
def _sole(path: str) -> Iterator[IO[str]]:
    """Only one process at a time has this path.

    Raises:
        OSError: Another one has it.
    """
    # A lock of the process, which its forks do not hold.
    with open(f"{path}.lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OSError("another warm process is running or starting (pyassemble warm status)") from None
        yield lock


@contextlib.contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of a process that was killed: a living one has the lock
        listener.bind(path)
        try:
            listener.listen(64)
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def _announce_and_detach() -> None:
    """Lets whoever started this process go on, and lets go of the streams that came from there."""
    print(LISTENING, flush=True)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
