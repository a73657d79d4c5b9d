"""What was aligned and transferred, for people and for programs: tables, JSON, pictures."""

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
