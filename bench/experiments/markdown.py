"""Tables in Markdown and the numbers in their cells."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: float) -> str:
    return "—" if math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.2f}" if value >= 0.01 or value == 0 else f"{value:.4f}"
