"""The receipt of a transfer: where each tensor came from, what it covers, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from pyassemble.transfer.text import sizes, table

if TYPE_CHECKING:
    from pyassemble.transfer.alignment import Alignment
    from pyassemble.transfer.methods import Region
    from pyassemble.transfer.overwritten import Overwritten


class TensorRecord(NamedTuple):
    """One written tensor.

    Attributes:
        source: Name of the source tensor.
        target: Name of the target tensor.
        source_shape: Its shape.
        target_shape: Its shape.
        source_region: Per dimension, the range or the indices that were read.
        target_region: Per dimension, the range that was written.
        written: Number of elements written.
        scale: Factor on the whole target tensor after writing (``clip_norm``); otherwise 1.
    """

    source: str
    target: str
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    source_region: Region
    target_region: tuple[slice, ...]
    written: int
    scale: float = 1.0

    @property
    def covered(self) -> float:
        """Share of the target tensor's elements that were written."""
        return self.written / max(1, torch.Size(self.target_shape).numel())


@dataclass(frozen=True, eq=False)
class TransferReport:
    """What a transfer did, or would do (``dry_run``).

    Attributes:
        alignment: The alignment it followed.
        method: The transfer method.
        dry_run: Whether nothing was written.
        tensors: One record per written tensor, in target order.
        untouched: Names of the target's parameters and batch-norm statistics that kept their values.
        coverage: Share of the elements of the target's parameters and batch-norm statistics that were written.
    """

    alignment: Alignment
    method: str
    dry_run: bool
    tensors: tuple[TensorRecord, ...]
    untouched: tuple[str, ...]
    coverage: float
    _overwritten: Overwritten | None = field(default=None, repr=False)

    def undo(self) -> None:
        """Put the target back bit for bit: every overwritten region gets its earlier content.

        What was changed outside those regions since then stays. A second call, or one after a dry run, does nothing.
        """
        if self._overwritten is not None:
            self._overwritten.restore()
            object.__setattr__(self, "_overwritten", None)

    def __str__(self) -> str:
        rows = [
            (
                record.target,
                sizes(record.target_shape),
                record.source,
                sizes(record.source_shape),
                f"{record.covered:.0%}",
            )
            for record in self.tensors
        ]
        return table(
            ("target", "shape", "source", "shape", "covered"),
            rows,
            f"{len(self.tensors)} tensors {'would be ' if self.dry_run else ''}written, "
            f"{len(self.untouched)} untouched; "
            f"{self.coverage:.1%} of the target's elements covered ({self.alignment.matching}, {self.method})",
        )
