"""A command's side: it is handed to a warm process that fits, or runs as without one.

Imports are the point here: from the shell's prompt to the warm process it takes Python's own start and little more.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from pyassemble.cli.warm.place import folder, is_private, socket_path

if TYPE_CHECKING:
    import socket

    from pyassemble.cli.warm.request import Request

#: Set to 0, no command asks for a warm process.
VARIABLE = "PYASSEMBLE_WARM"

#: What a warm process may take to answer; one that is stopped or swamped then does without this command. In seconds.
PATIENCE = 1.0

READY = b"ready"
GO = b"go"

#: As many open files go with one message.
MOST_DESCRIPTORS = 250


def hand_over() -> None:
    """Runs this process's command in the warm process and ends as it ends; returns where none takes it."""
    # Words of other commands may be "warm" too: they then run without, which is no loss but time.
    if os.environ.get(VARIABLE) == "0" or "warm" in sys.argv[1:]:
        return
    if "torch" in sys.modules:  # a caller's process, in which models may be registered that a fork would not know
        return
    connection = connect()
    if connection is None:
        return
    from pyassemble.cli.warm.request import of_this_process

    try:
        request = of_this_process()
        if offer(connection, request) is None:
            _go(connection, request)
            _attend(connection)
    except OSError:  # too slow, or gone: what it was not told to run it does not
        pass
    connection.close()


def connect() -> socket.socket | None:
    """The warm process of this user, interpreter and package, if one listens."""
    path = socket_path()
    if not (is_private(folder()) and os.path.exists(path)):
        return None
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(path)
        process, user = peer(connection)
        # One that this process cannot see, in a container that shares the folder, has number 0.
        if process and user == os.getuid():
            return connection
    except OSError:  # a socket that a killed process left behind
        pass
    connection.close()
    return None


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process and user on the other side, as the kernel knows them; a listener's process is the one that listens."""
    import socket
    import struct

    process, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return process, user


def offer(connection: socket.socket, request: Request) -> str | None:
    """Shows a command; nothing is run yet.

    Returns:
        None if it will be run as soon as it is told to, else what stands against it.

    Raises:
        OSError: No answer.
    """
    import json
    import socket

    if len(request["descriptors"]) > MOST_DESCRIPTORS:
        return f"{len(request['descriptors'])} files are open"
    # In a file of its own: an environment may be larger than a message.
    content = os.memfd_create("request")
    with open(content, "w", encoding="ascii") as file:
        json.dump(request, file)
        file.flush()
        socket.send_fds(connection, [b"command"], [content])
    answer = connection.recv(4096)
    if not answer:
        raise ConnectionResetError("no answer")
    return None if answer == READY else answer.decode()


def _go(connection: socket.socket, request: Request) -> None:
    """Has the command run, with this process's folder and files.

    They are not sent before: as long as they wait for a process that does not answer, a pipe among them has no end.
    """
    import socket

    folder = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        socket.send_fds(connection, [GO], [folder, *request["descriptors"]])
    finally:
        os.close(folder)


def _attend(connection: socket.socket) -> NoReturn:
    """Passes on signals until the command has ended, and ends as it did."""
    import signal

    def pass_on(number: int, frame: object) -> None:
        try:
            connection.send(bytes([number]))
        except OSError:  # it has just ended
            return
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH", "TSTP", "CONT"):
        number = getattr(signal, f"SIG{name}")
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        connection.settimeout(None)
        code = int(connection.recv(16))
    except (OSError, ValueError):
        os.write(2, b"error: the warm process was killed, and perhaps this command with it\n")
        os._exit(2)
    if code < 0:
        _die_of(-code)
    os._exit(code)


def _die_of(number: int) -> None:
    """Ends by a signal, so that whoever waits for this process sees what happened to its command."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what crashed is another process
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
