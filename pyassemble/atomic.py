"""Writing a file so that other readers see the old content or the new one, never half of it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a free name beside ``path``; what was written there takes the place of ``path`` if the block succeeds.

    The temporary name lies in the same folder, because a rename is atomic only within one file system. A symbolic link
    is followed: the file it leads to is the one replaced. A file keeps its mode, a new one gets the mode that ``open``
    would give it. A pipe or a device stays what it is: it is sent the finished content.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The temporary name to write to. It is removed when the block raises, and ``path`` is then as it was.
    """
    if _is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            with temporary.open("rb") as content, path.open("wb") as target:
                shutil.copyfileobj(content, target)
        return
    path = Path(os.path.realpath(path))
    temporary = _temporary_beside(path)
    mode = _mode_of_new_file(temporary)
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
    try:
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:  # some writers make files that only their owner may read
            temporary.chmod(mode)
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Refuses a path that :func:`replacing` could not write, before any work is done for it.

    Raises:
        OSError: A folder, in a folder that does not exist, or without the right to write it.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder; a file name was expected")
        real = Path(os.path.realpath(path)) if path.is_symlink() else path
        if not real.parent.is_dir() and not path.exists():
            raise FileNotFoundError(f"{path}: the folder {real.parent} does not exist")
        if not _is_special(path):
            # Tried out, since permissions alone do not tell: the file system may be read-only, or the name too long.
            _mode_of_new_file(_temporary_beside(real))
        elif not os.access(path, os.W_OK):
            raise PermissionError(f"{path} cannot be written: no permission")
    except OSError as error:
        if error.strerror is None:
            raise
        raise type(error)(f"{path} cannot be written: {error.strerror}") from error


def _is_special(path: Path) -> bool:
    """Whether the path leads to something that is there but is no file: a pipe or a device."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _mode_of_new_file(path: Path) -> int:
    """The mode that ``open`` gives a file of this name; found by making it, as the umask cannot be read safely."""
    path.touch(exist_ok=False)
    try:
        return stat.S_IMODE(path.stat().st_mode)
    finally:
        path.unlink()


def _flush_to_disk(path: Path) -> None:
    """Without this a power cut just after the rename may leave an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
