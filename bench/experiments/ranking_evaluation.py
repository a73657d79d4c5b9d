"""Every score on a pool of targets: tau and regret by target and pooled, with intervals, against size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ranking_candidates import SCORES, SIZE, Score
from ranking_statistics import (
    NAN,
    Resample,
    interval,
    kendall,
    pair_counts,
    random_orders,
    random_regret,
    regret,
    resample,
    total,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from ranking_pools import Group

    Floats = NDArray[np.float64]
    Interval = tuple[float, float]

RESAMPLES = 2000
FEWEST_FOR_INTERVAL = 6
"""With fewer candidates of a target, resampling says next to nothing about the uncertainty."""
SEED = 0


@dataclass(frozen=True)
class Figure:
    """A number and its 95 % interval."""

    value: float
    interval: tuple[float, float] = (NAN, NAN)


@dataclass(frozen=True)
class Evaluated:
    """One score on one pool."""

    score: Score
    taus: Mapping[str, Figure]
    """By target."""
    regrets: Mapping[str, Figure]
    choices: Mapping[str, tuple[str, ...]]
    """By target, the first choice; several where they are tied."""
    tau: Figure
    """Over all pairs of candidates of one target."""
    tau_beyond_size: Figure
    """Minus the same of the parameter count, on the same resamples."""
    regret: Figure
    """Mean over targets."""
    regret_beyond_size: Figure


@dataclass(frozen=True)
class Evaluation:
    """All scores on one pool, and what a choice at random would do."""

    groups: Sequence[Group]
    scores: Sequence[Evaluated]
    random_tau: tuple[float, float]
    """Where the pooled tau of 95 % of random orders lies."""
    random_regrets: Mapping[str, float]
    """By target, in closed form."""
    random_regret: Figure
    """Mean over targets."""

    def named(self, name: str) -> Evaluated:
        return next(one for one in self.scores if one.score.name == name)


def evaluate_pool(groups: Sequence[Group], resamples: int = RESAMPLES, seed: int = SEED) -> Evaluation:
    """All scores on the targets of a pool.

    Resamples are shared by all scores, so that differences between scores are those on equal draws. Targets are not
    redrawn: intervals say nothing of other targets. With few candidates there are no intervals.
    """
    bracket = interval if min(len(group.candidates) for group in groups) >= FEWEST_FOR_INTERVAL else _unknown
    rng = np.random.default_rng(seed)
    draws = [resample([c.gains for c in group.candidates], resamples, rng) for group in groups]
    values = {score.name: [score.of(group.candidates) for group in groups] for score in SCORES}
    size = _drawn(values[SIZE], draws)
    by_chance = {group.target: float(random_regret(group.gain)) for group in groups}
    drawn_by_chance = np.mean([random_regret(*draw) for draw in draws], axis=0)
    return Evaluation(
        groups=groups,
        scores=[_evaluated(score, groups, values[score.name], values[SIZE], draws, size, bracket) for score in SCORES],
        random_tau=interval(random_orders([group.gain for group in groups], resamples, seed)),
        random_regrets=by_chance,
        random_regret=Figure(float(np.mean(list(by_chance.values()))), bracket(drawn_by_chance)),
    )


@dataclass(frozen=True)
class _Drawn:
    """A score on all resamples."""

    taus: Floats
    """(targets, resamples)"""
    regrets: Floats
    """(targets, resamples)"""
    pooled: Floats
    """(resamples,)"""


def _drawn(values: Sequence[Floats], draws: Sequence[Resample]) -> _Drawn:
    counts = [pair_counts(value, *draw) for value, draw in zip(values, draws, strict=True)]
    regrets = [regret(value, *draw) for value, draw in zip(values, draws, strict=True)]
    return _Drawn(np.array([one.tau for one in counts]), np.array(regrets), total(counts).tau)


def _unknown(values: Floats) -> Interval:
    return NAN, NAN


def _evaluated(
    score: Score,
    groups: Sequence[Group],
    values: Sequence[Floats],
    size_values: Sequence[Floats],
    draws: Sequence[Resample],
    size: _Drawn,
    bracket: Callable[[Floats], Interval],
) -> Evaluated:
    drawn = _drawn(values, draws)
    names = [group.target for group in groups]
    gains = [group.gain for group in groups]
    tau, size_tau = _pooled_tau(values, gains), _pooled_tau(size_values, gains)
    regrets = [float(regret(value, gain)) for value, gain in zip(values, gains, strict=True)]
    size_regrets = [float(regret(value, gain)) for value, gain in zip(size_values, gains, strict=True)]
    taus = [kendall(value, gain) for value, gain in zip(values, gains, strict=True)]
    return Evaluated(
        score=score,
        taus={name: Figure(taus[i], bracket(drawn.taus[i])) for i, name in enumerate(names)},
        regrets={name: Figure(regrets[i], bracket(drawn.regrets[i])) for i, name in enumerate(names)},
        choices={group.target: _choice(group, value) for group, value in zip(groups, values, strict=True)},
        tau=Figure(tau, bracket(drawn.pooled)),
        tau_beyond_size=Figure(tau - size_tau, bracket(drawn.pooled - size.pooled)),
        regret=Figure(float(np.mean(regrets)), bracket(drawn.regrets.mean(0))),
        regret_beyond_size=Figure(
            float(np.mean(regrets) - np.mean(size_regrets)), bracket((drawn.regrets - size.regrets).mean(0))
        ),
    )


def _pooled_tau(values: Sequence[Floats], gains: Sequence[Floats]) -> float:
    return float(total([pair_counts(value, gain) for value, gain in zip(values, gains, strict=True)]).tau)


def _choice(group: Group, value: Floats) -> tuple[str, ...]:
    return tuple(c.pair.source for c, v in zip(group.candidates, value, strict=True) if v == value.max())
