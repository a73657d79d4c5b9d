"""``pyassemble warm``: starting, asking and ending the warm process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.program import app
from pyassemble.cli.warm.client import connect, offer, peer
from pyassemble.cli.warm.place import folder, is_private, socket_path
from pyassemble.cli.warm.request import inherited, of_this_process
from pyassemble.errors import PyAssembleError

warm = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
app.add_typer(warm, name="warm", help="A process with torch imported, in forks of which commands start at once.")

# Python code, so that the main module is empty: a fork makes it look like its client's.
_SERVER = [sys.executable, "-c", "from pyassemble.cli.warm.server import main; main()"]


@warm.command()
def start(
    idle: Annotated[float, typer.Option(metavar="MINUTES", help="It ends after as long without a command.")] = 30.0,
    background: Annotated[bool, typer.Option("--background", help="Return as soon as it listens.")] = False,
) -> None:
    """Import torch once, for all commands of this user and environment; they find the process by themselves.

    It keeps about 0.8 GB of memory, most of which its forks share.

    A command runs as without it, in a fork of its own with its own files, folder and environment. Where that could
    make a difference (an environment variable that libraries read when imported, changed files) it starts afresh, as
    it does with PYASSEMBLE_WARM=0.
    """
    if not idle > 0:
        raise PyAssembleError(f"--idle is {idle:g}; accepted: minutes above 0")
    if any(stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise PyAssembleError("a standard stream is closed; its place may be taken by /dev/null")
    os.makedirs(folder(), mode=0o700, exist_ok=True)
    if not is_private(folder()):
        raise PyAssembleError(f"{folder()} is not a folder of this user that is closed to others (mode 0700)")
    command = [*_SERVER, str(60 * idle)]
    if background:
        with working("importing torch and timm"):
            _start_detached(command)
        return
    for descriptor in inherited() - {0, 1, 2}:  # of commands to come, none will have it where this one does
        os.set_inheritable(descriptor, False)
    os.chdir("/")  # nothing is to be imported from the folder this happens to be
    os.execv(command[0], command)


@warm.command()
def stop() -> None:
    """End the warm process; commands that run in forks of it go on."""
    process = _process()
    if process is None:
        raise PyAssembleError("no warm process is running")
    os.kill(process, signal.SIGTERM)
    for _ in range(500):
        if _process() != process:
            return
        time.sleep(0.01)
    raise PyAssembleError(f"process {process} does not end")


@warm.command()
def status() -> None:
    """Say whether a warm process is running, and whether commands here would run in it; exit code 1 if not."""
    console = Console()
    connection = connect()
    if connection is None:
        print_line(console, "no warm process is running for this environment")
        raise typer.Exit(1)
    process = peer(connection)[0]
    since = time.strftime("%H:%M", time.localtime(os.stat(socket_path()).st_mtime))
    print_line(console, f"process {process}, listening since {since} at {socket_path()}")
    try:
        refusal = offer(connection, of_this_process())
    except OSError:
        refusal = "it does not answer"
    if refusal is not None:
        print_line(console, f"commands here start without it: {refusal}")
        raise typer.Exit(1)


def _start_detached(command: list[str]) -> None:
    from pyassemble.cli.warm.server import LISTENING

    server = subprocess.Popen(
        [*command, "detached"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stderr is not None
    if server.stdout.readline().strip() != LISTENING:
        message = server.stderr.read().strip().removeprefix("error: ")
        raise PyAssembleError(message.splitlines()[-1] if message else "the warm process ended as it started")


def _process() -> int | None:
    connection = connect()
    if connection is None:
        return None
    with connection:
        return peer(connection)[0]
