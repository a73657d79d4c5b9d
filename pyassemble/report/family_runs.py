"""Networks in a row, cut where the family changes, and the colours of the families."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from pyassemble.report.families import family

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Twelve colours that the eye keeps apart side by side; Okabe and Ito's come first.
FAMILY_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"),
    *("#7F5FC7", "#8C564B", "#B0B800", "#1B3A5C", "#F06AA8", "#4D9221"),
)
OTHER_COLOUR = "#B6BCC6"
OTHER_COLOUR_TOO = "#8F97A5"


class Run(NamedTuple):
    """Neighbours of one family: the half-open range of their places."""

    family: str
    start: int
    stop: int

    @property
    def centre(self) -> float:
        """Its middle, where the place i extends from i to i + 1."""
        return (self.start + self.stop) / 2


def family_runs(names: Iterable[str]) -> list[Run]:
    """The longest runs of one family, in order; together they cover all names."""
    runs: list[Run] = []
    for name, members in groupby(map(family, names)):
        start = runs[-1].stop if runs else 0
        runs.append(Run(name, start, start + sum(1 for _ in members)))
    return runs


def joined(runs: Iterable[Run], gap: int) -> list[Run]:
    """Runs for labels: two of one family count as one if at most ``gap`` strangers stand between them.

    A label says where a family is, and one beside each fragment would say it again and again. The joined runs overlap
    where two families interleave; they are in the order of their centres.
    """
    open_runs: dict[str, Run] = {}
    done: list[Run] = []
    for run in runs:
        before = open_runs.get(run.family)
        if before is not None and run.start - before.stop <= gap:
            run = Run(run.family, before.start, run.stop)
        elif before is not None:
            done.append(before)
        open_runs[run.family] = run
    return sorted([*done, *open_runs.values()], key=lambda run: (run.centre, run))


def family_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour of its own for each of the largest families, one grey for the rest; the largest first."""
    count = Counter(map(family, names))
    ordered = sorted(count, key=lambda name: (-count[name], name))
    return {
        name: FAMILY_COLOURS[rank] if rank < len(FAMILY_COLOURS) and count[name] > 1 else OTHER_COLOUR
        for rank, name in enumerate(ordered)
    }


def longest(runs: Sequence[Run], room: int) -> list[Run]:
    """The ``room`` longest of the runs, in the order given; the earlier one where two are equally long."""
    kept = sorted(range(len(runs)), key=lambda index: (runs[index].start - runs[index].stop, index))[: max(0, room)]
    return [runs[index] for index in sorted(kept)]
