"""The keeper of one command: it answers the client, and stands between it and the process that runs the command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import warnings
from typing import TYPE_CHECKING, NoReturn

from pyassemble.cli.warm.client import GO, MOST_DESCRIPTORS, PATIENCE, READY
from pyassemble.cli.warm.worker import run

if TYPE_CHECKING:
    from pyassemble.cli.warm.preloaded import Preloaded
    from pyassemble.cli.warm.request import Request

#: Signals that a terminal sends to all processes of a job; others are for the command's own process.
_FOR_ALL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)


def keep(connection: socket.socket, preloaded: Preloaded) -> bool:
    """Runs the command that the client shows, if it may run here and the client then says so.

    Returns:
        False if nothing may run here any more, as loaded files have changed.
    """
    connection.settimeout(PATIENCE)
    _, received, _, _ = socket.recv_fds(connection, 16, 1)
    if not received:
        return True
    with open(received[0], "rb") as file:
        file.seek(0)
        request: Request = json.load(file)
    if changed := preloaded.changed():
        connection.send(f"{changed} has changed".encode())
        return False
    if refusal := preloaded.refusal(request):
        connection.send(refusal.encode())
        return True
    connection.send(READY)
    message, received, flags, _ = socket.recv_fds(connection, 16, MOST_DESCRIPTORS + 1)
    if message == GO and len(received) == 1 + len(request["descriptors"]) and not flags & socket.MSG_CTRUNC:
        folder, *descriptors = received
        connection.settimeout(None)
        worker = fork()
        if worker == 0:
            connection.close()
            os.setpgid(0, 0)
            run(request, folder, descriptors, preloaded.variables)
        for descriptor in (folder, *descriptors):  # a pipe ends when the command closes it, not when this process ends
            os.close(descriptor)
        _attend(connection, worker)
    return True


def _attend(connection: socket.socket, worker: int) -> NoReturn:
    """Passes on signals until the command has ended, and says how it ended; it is killed if the client is."""

    def ended(*_: object) -> None:
        try:
            process, status = os.waitpid(worker, os.WNOHANG)
        except ChildProcessError:  # the call that this one interrupts has just been told
            return
        if process:  # and has not only been stopped
            connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)

    signal.signal(signal.SIGCHLD, ended)
    ended()
    while received := connection.recv(1):
        number = received[0]
        with contextlib.suppress(OSError):
            os.setpgid(worker, worker)  # it may not have come to it yet
        (os.killpg if number in _FOR_ALL else os.kill)(worker, number)
    os.killpg(worker, signal.SIGKILL)
    os._exit(0)


def fork() -> int:
    """``os.fork``, which Python 3.12 and later warn of while any thread runs: OpenBLAS's end themselves before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()
