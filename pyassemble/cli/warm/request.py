"""What a command takes along into the warm process, and what has to be the same there already."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TypedDict


class Request(TypedDict):
    """A process as its command finds it.

    Attributes:
        argv: ``sys.argv``.
        main: ``__file__`` and ``__package__`` of the main module, and the name it was started by with ``-m``.
        executable: ``sys.executable``.
        path: ``sys.path``.
        environment: All variables.
        umask: Of new files.
        ignored: Signals that whoever started the process has it ignore.
        blocked: Signals that are held back.
        descriptors: Numbers of the open files that it inherited, standard streams included; they are sent beside this.
        circumstances: What a fork cannot take over; see :func:`circumstances`.
    """

    argv: list[str]
    main: list[str | None]
    executable: str
    path: list[str]
    environment: dict[str, str]
    umask: int
    ignored: list[int]
    blocked: list[int]
    descriptors: list[int]
    circumstances: dict[str, object]


def of_this_process() -> Request:
    """This process's request."""
    umask = os.umask(0o077)
    os.umask(umask)
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return {
        "argv": sys.argv,
        "main": [getattr(main, "__file__", None), getattr(main, "__package__", None), spec.name if spec else None],
        "executable": sys.executable,
        "path": sys.path,
        "environment": dict(os.environ),
        "umask": umask,
        "ignored": [s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN and s not in _PYTHONS],
        "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "descriptors": sorted(inherited()),
        "circumstances": circumstances(),
    }


# Python itself ignores these.
_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)


def circumstances() -> dict[str, object]:
    """What a fork shares with the warm process, by the name that a refusal gives it."""
    limits = [getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_")]
    return {
        "Python": [os.path.realpath(sys.executable), sys.version, sys.prefix, *sys.flags],
        "Python's options": [sys.warnoptions, sorted(map(str, sys._xoptions.items()))],
        # The first is where the program was started, and is looked at by itself.
        "Python's path": sys.path[1:],
        "groups": [os.getgid(), os.getegid(), os.geteuid(), *sorted(os.getgroups())],
        "resource limits": [resource.getrlimit(limit) for limit in limits],
        "processors": sorted(os.sched_getaffinity(0)),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "namespaces": [_link(f"/proc/self/{what}") for what in ("ns/mnt", "ns/net", "ns/pid", "ns/user", "root")],
    }


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def inherited() -> set[int]:
    """Open files that came from the shell; what Python opens itself is not inherited."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.add(int(name))
        except OSError:  # the one that listed them
            continue
    return found
