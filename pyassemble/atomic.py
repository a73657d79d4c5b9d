"""Writing a file so that other readers see the old content or the new one, never half of it."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a free name beside ``path``; what was written there takes the place of ``path`` if the block succeeds.

    The temporary name lies in the same folder, because a rename is atomic only within one file system.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The temporary name to write to. It is removed when the block raises, and ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    """Without this a power cut just after the rename may leave an empty file under the final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
