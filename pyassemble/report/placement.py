"""Moving labels apart until none covers the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def spread(anchors: Sequence[float], step: float, length: float) -> list[float]:
    """Places for labels along a line, each as near its anchor as the others leave it.

    Args:
        anchors: Where the labels belong, in ascending order, from 0 to ``length``.
        step: Least distance between two labels.
        length: The line's; too short for all labels, the first ones begin before 0.

    Returns:
        The places, ascending and at least ``step`` apart, with the least sum of squared distances to the anchors.
    """
    # Without the steps the places need only ascend: neighbours that would cross share the mean of their anchors.
    groups: list[tuple[float, int]] = []
    for index, anchor in enumerate(anchors):
        total, count = anchor - index * step, 1
        while groups and groups[-1][0] / groups[-1][1] > total / count:
            before, members = groups.pop()
            total, count = total + before, count + members
        groups.append((total, count))
    last = length - (len(anchors) - 1) * step
    flat = [min(max(total / count, 0.0), last) for total, count in groups for _ in range(count)]
    return [place + index * step for index, place in enumerate(flat)]
