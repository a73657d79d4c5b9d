"""Where the warm process of an interpreter and package listens: in a folder that only its user can enter."""

from __future__ import annotations

import os
import stat
import sys
import zlib

import pyassemble


def folder() -> str:
    """The user's folder of sockets, for all interpreters."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return os.path.join(runtime, "pyassemble")
    return os.path.join(os.environ.get("TMPDIR") or "/tmp", f"pyassemble-{os.getuid()}")


def socket_path() -> str:
    """The socket; its name tells interpreters, environments and versions apart, so that each has one of its own."""
    package = os.path.dirname(os.path.abspath(pyassemble.__file__))
    known = "\0".join((os.path.realpath(sys.executable), sys.prefix, package, pyassemble.__version__))
    return os.path.join(folder(), f"{zlib.crc32(os.fsencode(known)):08x}.socket")


def is_private(path: str) -> bool:
    """Whether this is a folder, no link to one, that belongs to the user and that nobody else may enter."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
