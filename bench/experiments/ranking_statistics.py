"""How well a score orders candidates by gain: Kendall's tau-b, the regret of the first choice, bootstrap intervals.

Gains and copies may have leading dimensions, one entry for each resample; the last dimension counts candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

NAN = float("nan")


class PairCounts(NamedTuple):
    """What tau-b is made of; counts of several targets add up to those of all pairs within targets."""

    concordant_minus_discordant: Floats
    untied_in_score: Floats
    untied_in_gain: Floats

    @property
    def tau(self) -> Floats:
        """Kendall's tau-b; nan where all scores or all gains are equal."""
        product = self.untied_in_score * self.untied_in_gain
        defined = product > 0
        root = np.sqrt(np.where(defined, product, 1))
        return np.where(defined, self.concordant_minus_discordant / root, NAN)


class Resample(NamedTuple):
    """Bootstrap draws of a target's candidates."""

    gain: Floats
    """(draws, candidates), from redrawn seeds."""
    copies: Counts
    """(draws, candidates): how often each candidate was drawn."""


def pair_counts(score: Floats, gain: Floats, copies: Counts | None = None) -> PairCounts:
    """Counts over all pairs of candidates.

    Args:
        score: One number for each candidate.
        gain: The same.
        copies: How often each candidate is there; once by default. Two copies of one candidate are tied in both, so
            a resample that draws a candidate twice is not rewarded for it.
    """
    weight = np.ones(gain.shape) if copies is None else copies.astype(np.float64)
    pairs = weight[..., :, None] * weight[..., None, :] / 2
    by_score = np.sign(score[..., :, None] - score[..., None, :])
    by_gain = np.sign(gain[..., :, None] - gain[..., None, :])
    return PairCounts(*((signs * pairs).sum((-2, -1)) for signs in (by_score * by_gain, abs(by_score), abs(by_gain))))


def kendall(score: Floats, gain: Floats) -> float:
    return float(pair_counts(score, gain).tau)


def total(counts: Sequence[PairCounts]) -> PairCounts:
    """Counts of all targets: only candidates of one target are compared with each other."""
    return PairCounts(*(np.sum(column, axis=0) for column in zip(*counts, strict=True)))


def regret(score: Floats, gain: Floats, copies: Counts | None = None) -> Floats:
    """Gain of the best candidate minus that of the first choice; of equal first choices, their mean."""
    there = np.ones(gain.shape, dtype=bool) if copies is None else copies > 0
    best = np.where(there, gain, -np.inf).max(-1)
    top = np.where(there, score, -np.inf).max(-1, keepdims=True)
    chosen = there & (score == top)
    return np.asarray(best - (gain * chosen).sum(-1) / chosen.sum(-1))


def random_regret(gain: Floats, copies: Counts | None = None) -> Floats:
    """Expected regret of a choice at random."""
    weight = np.ones(gain.shape) if copies is None else copies.astype(np.float64)
    best = np.where(weight > 0, gain, -np.inf).max(-1)
    return np.asarray(best - (gain * weight).sum(-1) / weight.sum(-1))


def resample(gains: Sequence[Floats], draws: int, rng: np.random.Generator) -> Resample:
    """Redraws seeds within each candidate, then candidates; each with replacement, as many as there are.

    Args:
        gains: For each candidate, its gain with each seed.
        draws: How many resamples.
        rng: Where the draws come from.
    """
    gain = np.stack([rng.choice(one, (draws, len(one))).mean(1) for one in gains], axis=1)
    count = len(gains)
    return Resample(gain, rng.multinomial(count, np.full(count, 1 / count), size=draws))


def interval(values: Sequence[float] | Floats, level: float = 0.95) -> tuple[float, float]:
    """The middle part of the finite values; nan if there are none."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return NAN, NAN
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def random_orders(gains: Sequence[Floats], draws: int, seed: int) -> Floats:
    """Pooled tau of scores drawn at random, one for each draw: what no knowledge at all may look like."""
    rng = np.random.default_rng(seed)
    return total([pair_counts(rng.random((draws, len(gain))), gain) for gain in gains]).tau
