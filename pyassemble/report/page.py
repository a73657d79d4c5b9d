"""One self-contained HTML page of sections; it loads nothing and runs nothing."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from pyassemble.atomic import replacing
from pyassemble.report.heatmap_html import check_page_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Section:
    """What a page shows of one result.

    Attributes:
        title: Its heading, as text.
        parts: What follows, as HTML.
    """

    title: str
    parts: tuple[str, ...]


def write_page(sections: Sequence[Section], path: str | Path) -> None:
    """Writes a page.

    Args:
        sections: At least one, in order; the page is called by the first.
        path: ``.html``; replaced if it exists, once the page is complete.

    Raises:
        UnknownOptionError: Another suffix.
    """
    path = Path(path)
    check_page_path(path)
    skeleton = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    more = f" and {len(sections) - 1} more" if len(sections) > 1 else ""
    page = skeleton.substitute(
        title=html.escape(sections[0].title + more), sections="\n".join(_section(section) for section in sections)
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h2>{html.escape(text)}</h2>"


def folded(summary: str, content: str) -> str:
    """Content that is shown on a click."""
    return f"<details><summary>{html.escape(summary)}</summary>\n{content}\n</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = True) -> str:
    """A table of plain text; with ``numbers``, all columns but the first are aligned to the right."""
    kind = ' class="numbers"' if numbers else ""
    lines = [_row(head, "th")] if head else []
    lines += [_row(row, "td") for row in rows]
    return f"<table{kind}>\n" + "\n".join(lines) + "\n</table>"


def picture(figure: Any) -> str:
    """A matplotlib figure as an SVG inside the page."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    svg = written.getvalue()
    return svg[svg.index("<svg") :]


def _section(section: Section) -> str:
    return "\n".join(("<section>", f"<h1>{html.escape(section.title)}</h1>", *section.parts, "</section>"))


def _row(cells: Sequence[object], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
