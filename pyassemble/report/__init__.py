"""What was aligned and transferred, for people and for programs: tables, JSON, pictures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyassemble.report.alignment import alignment_from_json, alignment_json, draw_alignment
    from pyassemble.report.heatmap import draw_heatmap
    from pyassemble.report.heatmap_html import write_heatmap_html
    from pyassemble.report.tables import alignment_summary, alignment_table, transfer_summary, transfer_table
    from pyassemble.report.transfer import transfer_json

__all__ = [
    "alignment_from_json",
    "alignment_json",
    "alignment_summary",
    "alignment_table",
    "draw_alignment",
    "draw_heatmap",
    "transfer_json",
    "transfer_summary",
    "transfer_table",
    "write_heatmap_html",
]

# Imported on first use: a command that prints a table does not wait for what draws pictures.
_HOMES = {
    "alignment_from_json": "alignment",
    "alignment_json": "alignment",
    "alignment_summary": "tables",
    "alignment_table": "tables",
    "draw_alignment": "alignment",
    "draw_heatmap": "heatmap",
    "transfer_json": "transfer",
    "transfer_summary": "tables",
    "transfer_table": "tables",
    "write_heatmap_html": "heatmap_html",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
