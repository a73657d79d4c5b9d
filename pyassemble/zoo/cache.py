"""What a build has finished, kept in a file so that a second call goes on where the first was stopped.

The file is only ever appended to, one record a line: a checksum, the key of what was built, the entry. A kill in the
middle of a write costs that record; a line whose checksum is wrong is passed over, and its network built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

from pyassemble.errors import BuildCacheError
from pyassemble.zoo.records import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path
    from types import TracebackType

    from pyassemble.zoo.entry import Entry

_MAGIC = b"pyassemble zoo cache, format "
_FORMAT = b"1"
_CHECKSUM_DIGITS = 16


class BuildCache:
    """A build's finished entries by key; a context manager that holds the file for one build at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and locks it; a cache of another format is emptied.

        Raises:
            BuildCacheError: The file cannot be written, is no cache, or is in use by another build.
        """
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise BuildCacheError(f"{path} cannot be the build's cache: {error.strerror}") from error
        try:
            self._lock()
            self._begin()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> BuildCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            # Only here: what is written survives the end of this process as it is. After a power cut, what was lost
            # is noticed by its checksum.
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def read(self, keys: Container[str]) -> dict[str, Entry]:
        """The sound records under these keys."""
        entries: dict[str, Entry] = {}
        for line in self._content().split(b"\n"):
            key, _, text = (_sound(line) or b"").decode("ascii").partition(" ")
            if key in keys:
                with contextlib.suppress(ValueError):  # written by a program that only looks like this one
                    entries[key] = from_text(text)
        return entries

    def append(self, key: str, entry: Entry) -> None:
        """Adds a record. From here on it survives the end of this process.

        Raises:
            BuildCacheError: The file cannot be written, as when the disk is full.
        """
        body = f"{key} {to_text(entry)}".encode("ascii")
        line = _checksum(body) + b" " + body + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise BuildCacheError(f"{self._path}: a finished network could not be kept: {error.strerror}") from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuildCacheError(f"{self._path} is in use as the cache of another build") from error
        except OSError as error:
            raise BuildCacheError(f"{self._path} cannot be locked: {error.strerror}") from error

    def _begin(self) -> None:
        """Brings the file to the state in which a record can be appended."""
        content = self._content()
        first, _, rest = content.partition(b"\n")
        if content and not first.startswith(_MAGIC) and not any(map(_sound, rest.split(b"\n"))):
            # Perhaps the name of a file that somebody needs was mistyped.
            if not (_MAGIC + _FORMAT).startswith(content):
                raise BuildCacheError(f"{self._path} is not the cache of a build; remove it or name another file")
            content = b""
        if first.startswith(_MAGIC) and first != _MAGIC + _FORMAT:
            content = b""
        if not content:
            os.ftruncate(self._file, 0)
            os.write(self._file, _MAGIC + _FORMAT + b"\n")
        elif not content.endswith(b"\n"):
            os.write(self._file, b"\n")  # ends the record that a kill cut short

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise BuildCacheError(f"{self._path} cannot be the build's cache: {error.strerror}") from error


def _sound(line: bytes) -> bytes | None:
    """What follows the checksum, if it is right."""
    checksum, _, body = line.partition(b" ")
    return body if body.isascii() and checksum == _checksum(body) else None


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_CHECKSUM_DIGITS].encode("ascii")
