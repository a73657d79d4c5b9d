"""The receipt of a transfer: where each tensor came from, what it covers, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from pyassemble.transfer.methods import crop
from pyassemble.transfer.text import sizes, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyassemble.transfer.alignment import Alignment
    from pyassemble.transfer.methods import Assigned, Region
    from pyassemble.transfer.overwritten import Overwritten
    from pyassemble.transfer.tensors import TensorNames


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


class WrittenTensors(NamedTuple):
    """What the records of a transfer are made from when they are asked for; keeps no tensor alive.

    Attributes:
        source_names: Names of the source's tensors.
        target_names: Names of the target's tensors.
        source_layers: Position of each source tensor's layer in its sequence.
        target_layers: That of each target tensor's.
        roles: Role of each in its layer.
        source_shapes: Shape of each source tensor.
        target_shapes: Shape of each target tensor.
        assigned: The regions of each; None where all are centre crops.
        elements: How many elements are written in all.
    """

    source_names: TensorNames
    target_names: TensorNames
    source_layers: Sequence[int]
    target_layers: Sequence[int]
    roles: Sequence[str]
    source_shapes: Sequence[torch.Size]
    target_shapes: Sequence[torch.Size]
    assigned: Sequence[Assigned] | None
    elements: int

    def records(self, scales: Mapping[str, float]) -> tuple[TensorRecord, ...]:
        """A record per tensor, given the scale of some by the target's name."""
        sources = map(self.source_names.of, self.source_layers, self.roles)
        targets = list(map(self.target_names.of, self.target_layers, self.roles))
        regions = self.assigned or list(map(crop, self.source_shapes, self.target_shapes))
        return tuple(
            map(
                TensorRecord,
                sources,
                targets,
                self.source_shapes,
                self.target_shapes,
                [region.source for region in regions],
                [region.target for region in regions],
                [region.elements for region in regions],
                [scales.get(target, 1.0) for target in targets],
            )
        )


@dataclass(frozen=True, eq=False)
class TransferReport:
    """What a transfer did, or would do (``dry_run``).

    Attributes:
        alignment: The alignment it followed.
        method: The transfer method.
        dry_run: Whether nothing was written.
        untouched: Names of the target's parameters and batch-norm statistics that kept their values.
        coverage: Share of the elements of the target's parameters and batch-norm statistics that were written.
    """

    alignment: Alignment
    method: str
    dry_run: bool
    untouched: tuple[str, ...]
    coverage: float
    _written: WrittenTensors = field(repr=False)
    _scales: Mapping[str, float] = field(repr=False)
    _overwritten: Overwritten | None = field(default=None, repr=False)

    @cached_property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """One record per written tensor, in target order."""
        return self._written.records(self._scales)

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
