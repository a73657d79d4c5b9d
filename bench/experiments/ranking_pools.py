"""From finished runs to pools: targets, each with its candidate sources and what they gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ranking_candidates import Candidate
from transfer_runs import RANDOM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from ranking_scores import PairScores
    from transfer_runs import Row, Run

FEWEST_CANDIDATES = 3
"""With two, one comparison would be a whole tau."""


@dataclass(frozen=True)
class Group:
    """One target and its candidates."""

    target: str
    candidates: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    """Those that all candidates have finished."""

    @property
    def gain(self) -> NDArray[np.float64]:
        return np.array([one.gains.mean() for one in self.candidates])


def groups_of(
    runs: Mapping[Run, Sequence[Row]],
    scores: Mapping[tuple[str, str], PairScores],
    *,
    section: str,
    scenarios: Sequence[str],
    epoch: int,
) -> list[Group]:
    """The targets of a section in the order of their runs, with every candidate that was trained as a scenario says.

    A target's own architecture is left out. Only seeds that all candidates of a target and its random initialization
    have finished count: a gain averaged over other seeds than its rival's would be compared with another beginning.

    Args:
        runs: Finished runs with their rows from epoch 0 on.
        scores: By (target, source).
        section: Which runs.
        scenarios: Which sources.
        epoch: After which the accuracy counts; -1 is the last.
    """
    groups = []
    for target in dict.fromkeys(run.target for run in runs if run.section == section):
        of_target = {run: rows for run, rows in runs.items() if (run.section, run.target) == (section, target)}
        wanted = {
            (run.source, run.scenario)
            for run in of_target
            if run.scenario in scenarios and run.source not in (RANDOM, target)
        }
        finished = [{run.seed for run in of_target if (run.source, run.scenario) == key} for key in wanted]
        seeds = sorted({run.seed for run in of_target if run.source == RANDOM}.intersection(*finished))
        if len(wanted) >= FEWEST_CANDIDATES and seeds:
            chosen = [_candidate(of_target, scores[target, key[0]], key, seeds, epoch) for key in sorted(wanted)]
            groups.append(Group(target, tuple(chosen), tuple(seeds)))
    return groups


def _candidate(
    runs: Mapping[Run, Sequence[Row]], pair: PairScores, key: tuple[str, str], seeds: Sequence[int], epoch: int
) -> Candidate:
    by_seed = {run.seed: (run, rows) for run, rows in runs.items() if (run.source, run.scenario) == key}
    chosen = [by_seed[seed] for seed in seeds]
    return Candidate(
        pair=pair,
        scenario=key[1],
        source_accuracy=chosen[0][1][0].source_accuracy,
        accuracy_before=float(np.mean([rows[0].accuracy for _, rows in chosen])),
        accuracies=np.array([rows[epoch].accuracy for _, rows in chosen]),
        gains=np.array([rows[epoch].accuracy / runs[run.baseline][epoch].accuracy for run, rows in chosen]),
    )
