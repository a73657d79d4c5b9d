"""What was aligned and transferred, for people and for programs: tables, JSON, pictures."""

from pyassemble.report.alignment import alignment_json, draw_alignment
from pyassemble.report.tables import alignment_summary, alignment_table, transfer_summary, transfer_table
from pyassemble.report.transfer import transfer_json

__all__ = [
    "alignment_json",
    "alignment_summary",
    "alignment_table",
    "draw_alignment",
    "transfer_json",
    "transfer_summary",
    "transfer_table",
]
