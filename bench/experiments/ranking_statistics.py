"""How well a score orders candidates by gain: Kendall's tau-b, the regret of the first choice, bootstrap intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Counts = NDArray[np.int64]

NAN = float("nan")


class PairCounts(NamedTuple):
    """What tau-b is made of; counts of several targets add up to those of all pairs within targets."""

    concordant_minus_discordant: float
    untied_in_score: float
    untied_in_gain: float

    @property
    def tau(self) -> float:
        """Kendall's tau-b; nan where all scores or all gains are equal."""
        product = self.untied_in_score * self.untied_in_gain
        return self.concordant_minus_discordant / product**0.5 if product > 0 else NAN


def pair_counts(score: Floats, gain: Floats, copies: Counts | None = None) -> PairCounts:
    """Counts over all pairs of candidates.

    Args:
        score: One number for each candidate.
        gain: The same.
        copies: How often each candidate is there; once by default. Two copies of one candidate are tied in both, so
            a resample that draws a candidate twice is not rewarded for it.
    """
    weight = np.ones(len(score)) if copies is None else copies.astype(np.float64)
    by_score = np.sign(score[:, None] - score)
    by_gain = np.sign(gain[:, None] - gain)
    return PairCounts(
        *(float(weight @ signs @ weight) / 2 for signs in (by_score * by_gain, abs(by_score), abs(by_gain)))
    )


def kendall(score: Floats, gain: Floats) -> float:
    return pair_counts(score, gain).tau


def total(counts: Sequence[PairCounts]) -> PairCounts:
    """Counts of all targets: only candidates of one target are compared with each other."""
    return PairCounts(*(float(sum(column)) for column in zip(*counts, strict=True)))


def regret(score: Floats, gain: Floats) -> float:
    """Gain of the best candidate minus that of the first choice; of equal first choices, their mean."""
    return float(gain.max() - gain[score == score.max()].mean())


def random_regret(gain: Floats) -> float:
    """Expected regret of a choice at random."""
    return float(gain.max() - gain.mean())


class Resample(NamedTuple):
    """One bootstrap draw of a target's candidates."""

    gain: Floats
    """Of every candidate, from redrawn seeds."""
    copies: Counts
    """How often each candidate was drawn."""


def resample(gains: Sequence[Floats], rng: np.random.Generator) -> Resample:
    """Redraws seeds within each candidate, then candidates; each with replacement, as many as there are.

    Args:
        gains: For each candidate, its gain with each seed.
        rng: Where the draws come from.
    """
    gain = np.array([rng.choice(one, len(one)).mean() for one in gains])
    copies = np.bincount(rng.integers(len(gains), size=len(gains)), minlength=len(gains))
    return Resample(gain, copies)


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
    return np.array([_pooled(gains, lambda gain: rng.random(len(gain))) for _ in range(draws)])


def _pooled(gains: Sequence[Floats], score: Callable[[Floats], Floats]) -> float:
    return total([pair_counts(score(gain), gain) for gain in gains]).tau
