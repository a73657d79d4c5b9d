"""What the assembly experiment notes: each trained network with its curve, and each epoch of each search."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Conditions:
    """What all runs share."""

    images: int
    test_images: int
    curve_images: int
    """Test images that the accuracy after each epoch is measured on; the final one is measured on all."""
    search_epochs: int
    epochs: int
    source_images: int
    source_epochs: int
    score_images: int
    rounds: int
    selection_images: int
    batch_size: int
    learning_rate: float
    full_learning_rate: float
    mixup: float
    cutmix: float
    start: str
    """Of stitches; random ones for the method that says so."""
    start_images: int
    fitted: str
    """Options of the search and of the starts that are called fitted."""
    precision: str
    device: str


@dataclass(frozen=True)
class Row:
    """One trained network."""

    method: str
    seed: int
    accuracy: float
    auroc: float
    trained_parameters: int
    parameters: int
    flops: int
    search_seconds: float
    training_seconds: float
    score: float
    blocks: str
    curve: str
    """JSON: seconds of training so far, loss, and accuracy on the curve images after each epoch."""
    conditions: str
    torch: str
    commit: str

    @property
    def epochs(self) -> list[tuple[float, float, float]]:
        """The curve: seconds, loss, accuracy."""
        return [(float(a), float(b), float(c)) for a, b, c in json.loads(self.curve)]


@dataclass(frozen=True)
class SearchEpoch:
    """One epoch of one search; see :class:`pyassemble.assemble.epoch_record.EpochRecord`."""

    search: str
    """ "as published" or "fitted"."""
    seed: int
    epoch: int
    weights_loss: float
    router_loss: float
    accuracy: float
    score: float
    mean_score: float
    stitches: int
    blocks_requested: int
    blocks_executed: int
    scores: str
    parameters: str
    conditions: str

    @property
    def candidates(self) -> list[tuple[float, int]]:
        """Score and size of every candidate, in the order in which they were scored."""
        return [(float(s), int(p)) for s, p in zip(self.scores.split(), self.parameters.split(), strict=True)]


def of_method(rows: Sequence[Row], method: str) -> list[Row]:
    """The runs of one method."""
    return [row for row in rows if row.method == method]


def mean_of(rows: Sequence[Row], name: str) -> float:
    """The mean of one of their figures."""
    return statistics.mean(getattr(row, name) for row in rows)
