"""What a transfer overwrites, kept so that it can be put back bit for bit."""

from __future__ import annotations

import weakref
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.autograd.graph import increment_version

from pyassemble.transfer.methods import crop, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.transfer.contents import Write
    from pyassemble.transfer.plan import DirectCopies

# Fresh memory costs more than the copy into it: 18 MB were measured to take 10.6 ms with page faults and 1.6 ms
# without. The buffer of a report that is gone is therefore kept for the next one, up to this size.
_POOLED_BYTES = 64 << 20
_pool: list[torch.Tensor] = []

# Threads that copy, at most, for so many bytes each: one thread does not fill the paths to memory, and a few do. On two
# cores 28 MB were measured to take 2.8 ms with two threads and 4.1 ms with one.
_COPYING_THREADS = 4
_BYTES_PER_THREAD = 2 << 20

_ALIGNMENT = 64  # bytes: a cache line, on which the core's pieces start, and a multiple of every element size


class Overwritten:
    """Regions of tensors, and what they held before they were written through this object."""

    def __init__(self, direct: DirectCopies | None, writes: Sequence[Write]) -> None:
        """Make room for what will be overwritten.

        Args:
            direct: Copies that the C++ core makes, all at once.
            writes: Content for other regions, written one by one.
        """
        # Only places in the target are kept: the source may go when the transfer is done.
        self._direct = direct
        self._others = [(write.held, write.region) for write in writes]
        views = [take(held.tensor, region) for held, region in self._others]
        sizes = [view.numel() * view.itemsize if view.is_cpu else 0 for view in views]
        first = direct.copies.saved_bytes if direct is not None else 0
        starts = list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=first))
        self._buffer = _buffer(starts[-1])
        weakref.finalize(self, _give_back, self._buffer).atexit = False
        self._pieces = [
            self._piece(start, view.dtype, view.shape) if view.is_cpu else torch.empty_like(view)
            for start, view in zip(starts, views, strict=False)
        ]
        self._copied: list[bool] = []  # grows by one when the direct copies are made
        self._saved = 0  # number of others saved

    def write(self, writes: Sequence[Write]) -> int | None:
        """Put new content into every region, each saved just before: it is still in the cache then.

        Returns:
            None; or the position of a direct copy whose source holds NaN or infinite values: then nothing was written.
        """
        if self._direct is not None:
            copies = self._direct.copies
            found: int = copies.save_and_write(self._buffer.data_ptr(), self._copied, _threads(copies.saved_bytes))
            if found < len(copies):
                return found
            # Writing by address, the core bypasses what tells autograd that a saved tensor has changed.
            increment_version(self._direct.targets)
        for (held, region), piece, write in zip(self._others, self._pieces, writes, strict=True):
            view = take(held.tensor, region)
            piece.copy_(view)
            self._saved += 1
            view.copy_(write.content)
        return None

    def restore(self) -> None:
        """Put back what every region held, the last written first."""
        with torch.no_grad():
            for i in reversed(range(self._saved)):
                held, region = self._others[i]
                take(held.current(), region).copy_(self._pieces[i])
            if self._copied and self._direct is not None:
                self._restore(self._direct)

    def _restore(self, direct: DirectCopies) -> None:
        for start, dtype, layer, role, target, *shapes in zip(
            direct.copies.saved_starts,
            direct.dtypes,
            direct.layers,
            direct.roles,
            direct.targets,
            direct.source_shapes,
            direct.target_shapes,
            strict=True,
        ):
            held = direct.receiver.slot(layer, role, target).stored[0]
            view = take(held.current(), crop(*shapes).target)
            view.copy_(self._piece(start, getattr(torch, dtype), view.shape))

    def _piece(self, start: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        return self._buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _threads(size: int) -> int:
    """Threads for a copy of so many bytes, of those that the user leaves to PyTorch."""
    return max(1, min(size // _BYTES_PER_THREAD, _COPYING_THREADS, torch.get_num_threads()))


def _buffer(size: int) -> torch.Tensor:
    try:
        buffer = _pool.pop()
    except IndexError:
        return _fresh(size)
    return buffer if buffer.numel() >= size else _fresh(size)


def _fresh(size: int) -> torch.Tensor:
    # NumPy asks the system for huge pages, which torch does not; neither promises the start of a cache line.
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return torch.from_numpy(memory[start : start + size])


def _give_back(buffer: torch.Tensor) -> None:
    if buffer.numel() <= _POOLED_BYTES and not _pool:
        _pool.append(buffer)
