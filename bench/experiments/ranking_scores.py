"""What a source is ranked by: numbers that depend on the two architectures only, nothing of them trained or measured.

Every score here was written down before the first gain was measured. Position and order of layers are those of the
alignment (the order of definition); cᵢ is the layer score (SPEC 1.2) of the i-th of the target's n scored layers with
its partner, 0 without one.
"""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from small_networks import parameter_count

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.transfer.matching import layer_score

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import nn

    from pyassemble.network.layers import LayerSequence


@dataclass(frozen=True)
class PairScores:
    """Everything known of a source and a target before any training."""

    target: str
    source: str
    symmetric: float
    directed: float
    source_parameters: int
    target_parameters: int
    coverage: float
    """Share of the target's elements that a transfer writes."""
    depth_coverage: float
    """Σ wᵢ cᵢ / Σ wᵢ with wᵢ = 1 − i/n: early layers count more, as their features are the ones networks share."""
    chain: float
    """Mean over i of c₁·…·cᵢ: a feature survives only if every layer below it came over whole."""
    unbroken: float
    """Mean over neighbouring target layers of √(cᵢ cᵢ₊₁) where their partners are neighbours too, else 0: a function
    composed of layers is carried over only where none is skipped or repeated."""

    @property
    def size_nearness(self) -> float:
        return -abs(math.log(self.source_parameters / self.target_parameters))


def pair_scores(target_name: str, target: nn.Module, source_name: str, source: nn.Module) -> PairScores:
    alignment = pa.align(source, target)
    covered, partners = along_target(alignment.source, alignment.target, alignment.indices)
    return PairScores(
        target=target_name,
        source=source_name,
        symmetric=_rounded(pa.similarity(source, target)),
        directed=_rounded(pa.similarity(source, target, directed=True)),
        source_parameters=parameter_count(source),
        target_parameters=parameter_count(target),
        coverage=_rounded(pa.transfer(source, target, dry_run=True).coverage),
        depth_coverage=_rounded(depth_coverage(covered)),
        chain=_rounded(chain(covered)),
        unbroken=_rounded(unbroken(covered, partners)),
    )


def _rounded(score: float) -> float:
    # Sums in another order differ in the last bits; a tie must stay a tie.
    return round(score, 12)


def along_target(
    source: LayerSequence, target: LayerSequence, indices: Iterable[tuple[int, int]]
) -> tuple[list[float], list[int | None]]:
    """For each scored layer of the target: its layer score, and its partner's rank among the source's scored layers."""
    rank = {index: number for number, index in enumerate(_scored(source))}
    partner = {t: s for s, t in indices}
    covered, partners = [], []
    for t in _scored(target):
        s = partner.get(t)
        covered.append(0.0 if s is None else layer_score(source.layers[s], target.layers[t]))
        partners.append(None if s is None else rank[s])
    return covered, partners


def _scored(sequence: LayerSequence) -> list[int]:
    return [index for index, kind in enumerate(sequence.kinds) if kind is not None]


def depth_coverage(covered: Sequence[float]) -> float:
    weights = 1 - np.arange(len(covered)) / len(covered)
    return float(weights @ np.asarray(covered) / weights.sum())


def chain(covered: Sequence[float]) -> float:
    return float(np.cumprod(covered).mean())


def unbroken(covered: Sequence[float], partners: Sequence[int | None]) -> float:
    whole = [
        math.sqrt(covered[i] * covered[i + 1])
        for i, (a, b) in enumerate(pairwise(partners))
        if a is not None and b == a + 1
    ]
    return sum(whole) / max(1, len(covered) - 1)


def write_scores(scores: Iterable[PairScores], path: Path) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(PairScores)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in scores)


def read_scores(path: Path) -> dict[tuple[str, str], PairScores]:
    """All pairs of a file by (target, source)."""
    readers = {"str": str, "int": int, "float": float}
    with path.open(newline="") as file:
        rows = [
            PairScores(**{field.name: readers[str(field.type)](record[field.name]) for field in fields(PairScores)})
            for record in csv.DictReader(file)
        ]
    return {(row.target, row.source): row for row in rows}
