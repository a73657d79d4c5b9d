"""The scores that the ranking experiment compares, as functions of one target's candidate sources.

All of them, and the main outcome (the gain after the last epoch), were fixed before the first gain was measured. None
has a parameter to fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from ranking_scores import PairScores

    Floats = NDArray[np.float64]

ASKED, PROPOSED, MEASURED = "asked for", "proposed", "needs measurements"


@dataclass(frozen=True)
class Candidate:
    """A source that a target may start from: what is known of it, and what it then gave."""

    pair: PairScores
    scenario: str
    source_accuracy: float
    """Of the source itself on the test images."""
    accuracy_before: float
    """Of the target after the transfer, before training; mean over seeds."""
    accuracies: Floats
    """Of the target after the epoch in question, one for each seed."""
    gains: Floats
    """The same, divided by the accuracy of random initialization with that seed."""


@dataclass(frozen=True)
class Score:
    """One way to order the candidates of a target; more is better."""

    name: str
    kind: str
    of: Callable[[Sequence[Candidate]], Floats]


def _each(value: Callable[[Candidate], float]) -> Callable[[Sequence[Candidate]], Floats]:
    return lambda candidates: np.array([value(one) for one in candidates], dtype=np.float64)


def _similarity_and_size(candidates: Sequence[Candidate]) -> Floats:
    """Mean of the candidate's ranks by symmetric similarity and by size: neither scale needs fitting."""
    similar = stats.rankdata([one.pair.symmetric for one in candidates])
    large = stats.rankdata([one.pair.source_parameters for one in candidates])
    return np.asarray((similar + large) / 2, dtype=np.float64)


SIMILARITY, SIZE = "symmetric similarity", "parameters of the source"
SCORES = (
    Score(SIMILARITY, ASKED, _each(lambda c: c.pair.symmetric)),
    Score("directed similarity", ASKED, _each(lambda c: c.pair.directed)),
    Score(SIZE, ASKED, _each(lambda c: c.pair.source_parameters)),
    Score("nearness in size", PROPOSED, _each(lambda c: c.pair.size_nearness)),
    Score("coverage", PROPOSED, _each(lambda c: c.pair.coverage)),
    Score("coverage by depth", PROPOSED, _each(lambda c: c.pair.depth_coverage)),
    Score("chain", PROPOSED, _each(lambda c: c.pair.chain)),
    Score("unbroken", PROPOSED, _each(lambda c: c.pair.unbroken)),
    Score("similarity and size", PROPOSED, _similarity_and_size),
    Score("accuracy of the source", MEASURED, _each(lambda c: c.source_accuracy)),
    Score("similarity × accuracy", MEASURED, _each(lambda c: c.pair.symmetric * c.source_accuracy)),
    Score("accuracy before training", MEASURED, _each(lambda c: c.accuracy_before)),
)
"""In the order in which they are reported; random, which needs no score, comes first there."""
