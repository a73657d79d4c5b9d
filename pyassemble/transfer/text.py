"""Plain-text tables, for objects that print themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], summary: str) -> str:
    """Aligned columns under a header, and a line of summary."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, summary])


def sizes(shape: Sequence[int]) -> str:
    """A shape as people write it: 64×3×7×7."""
    return "×".join(map(str, shape)) or "scalar"
