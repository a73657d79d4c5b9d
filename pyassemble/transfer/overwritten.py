"""What a transfer overwrites, kept so that it can be put back bit for bit."""

from __future__ import annotations

import weakref
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.autograd.graph import increment_version

from pyassemble.network.backend import native
from pyassemble.transfer.methods import take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.transfer.contents import Write
    from pyassemble.transfer.plan import DirectCopies

# Fresh memory costs more than the copy into it: 18 MB were measured to take 10.6 ms with page faults and 1.6 ms
# without. The buffer of a report that is gone is therefore kept for the next one, up to this size.
_POOLED_BYTES = 64 << 20
_pool: list[torch.Tensor] = []

_ALIGNMENT = 64  # bytes: a cache line, and a multiple of every element size


class Overwritten:
    """Regions of tensors, and what they held before they were written through this object."""

    def __init__(self, direct: DirectCopies, writes: Sequence[Write]) -> None:
        """Make room for what will be overwritten.

        Args:
            direct: Copies that the C++ core makes, all at once.
            writes: Content for other regions, written one by one.
        """
        # Only places in the target are kept: the source may go when the transfer is done.
        self._slots, self._assigned = direct.targets, direct.assigned
        self._dtypes = [slot.value.dtype for slot in direct.targets]  # a module may change dtype before it is restored
        self._others = [(write.held, write.region) for write in writes]
        views = [take(held.tensor, region) for held, region in self._others]
        sizes = [a.elements * dtype.itemsize for a, dtype in zip(self._assigned, self._dtypes, strict=True)]
        sizes += [view.numel() * view.itemsize if view.is_cpu else 0 for view in views]
        self._starts = list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))
        self._buffer = _buffer(self._starts[-1])
        weakref.finalize(self, _give_back, self._buffer).atexit = False
        self._pieces = [
            self._piece(len(self._slots) + i, view.dtype, view.shape) if view.is_cpu else torch.empty_like(view)
            for i, view in enumerate(views)
        ]
        self._copied: list[bool] = []  # grows by one when the direct copies are made
        self._saved = 0  # number of others saved

    def write(self, direct: DirectCopies, writes: Sequence[Write]) -> None:
        """Put new content into every region, each saved just before: it is still in the cache then."""
        if direct.targets:
            self._copy(direct)
        for (held, region), piece, write in zip(self._others, self._pieces, writes, strict=True):
            view = take(held.tensor, region)
            piece.copy_(view)
            self._saved += 1
            view.copy_(write.content)

    def _copy(self, direct: DirectCopies) -> None:
        core = native()
        assert core is not None
        base = self._buffer.data_ptr()
        core.save_and_copy(
            [assigned.crop for assigned in direct.assigned],
            direct.source_starts,
            direct.target_starts,
            [base + start for start in self._starts[: len(self._slots)]],
            [dtype.itemsize for dtype in self._dtypes],
            self._copied,
        )
        # Writing by address, the core bypasses what tells autograd that a saved tensor has changed.
        increment_version([slot.value for slot in direct.targets])

    def restore(self) -> None:
        """Put back what every region held, the last written first."""
        with torch.no_grad():
            for i in reversed(range(self._saved)):
                held, region = self._others[i]
                take(held.current(), region).copy_(self._pieces[i])
            if self._copied:
                for i, (slot, assigned) in enumerate(zip(self._slots, self._assigned, strict=True)):
                    view = take(slot.stored[0].current(), assigned.target)
                    view.copy_(self._piece(i, self._dtypes[i], view.shape))

    def _piece(self, i: int, dtype: torch.dtype, shape: torch.Size) -> torch.Tensor:
        start = self._starts[i]
        return self._buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)


def _buffer(size: int) -> torch.Tensor:
    try:
        buffer = _pool.pop()
    except IndexError:
        return _fresh(size)
    return buffer if buffer.numel() >= size else _fresh(size)


def _fresh(size: int) -> torch.Tensor:
    # NumPy asks the system for huge pages, which torch does not.
    return torch.from_numpy(np.empty(size, np.uint8))


def _give_back(buffer: torch.Tensor) -> None:
    if buffer.numel() <= _POOLED_BYTES and not _pool:
        _pool.append(buffer)
