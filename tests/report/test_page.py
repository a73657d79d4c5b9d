"""A page shows text as text and stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyassemble.errors import UnknownOptionError
from pyassemble.report.page import Section, folded, heading, paragraph, table, write_page

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert(1)</script> & $title"


def test_everything_is_escaped(tmp_path: Path) -> None:
    parts = (paragraph(HOSTILE), heading(HOSTILE), folded(HOSTILE, table((HOSTILE,), [(HOSTILE, 1)])))
    write_page([Section(HOSTILE, parts)], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    # The title twice, in the head and above the section.
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; $title") == 2 + 5


def test_sections_in_order_under_the_first_ones_name(tmp_path: Path) -> None:
    write_page([Section(name, ()) for name in ("one", "two", "three")], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<title>one and 2 more</title>" in text
    assert text.index("<h1>one") < text.index("<h1>two") < text.index("<h1>three")


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownOptionError, match=r"\.html"):
        write_page([Section("one", ())], tmp_path / "page.pdf")
    assert not list(tmp_path.iterdir())
