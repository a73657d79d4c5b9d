"""Results that other commands wrote, read back and shown together on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyassemble.assemble.folder import KIND, VERSION
from pyassemble.errors import ResultFileError
from pyassemble.network.sources import FOLDER_RECIPE
from pyassemble.report.alignment import (
    ALIGNMENT_FORMAT,
    ALIGNMENT_VERSION,
    SIMILARITY_FORMAT,
    SIMILARITY_VERSION,
    alignment_section,
    similarity_section,
)
from pyassemble.report.assembly import ASSEMBLE_FORMAT, ASSEMBLE_VERSION, assemble_section, assembly_section
from pyassemble.report.merge import MERGE_FORMAT, MERGE_VERSION, merge_section
from pyassemble.report.page import Section, write_page
from pyassemble.report.score import SCORE_FORMAT, SCORE_VERSION, score_section
from pyassemble.report.transfer import TRANSFER_FORMAT, TRANSFER_VERSION, transfer_section
from pyassemble.report.zoo import NEAREST_FORMAT, NEAREST_VERSION, nearest_section

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class _Format(NamedTuple):
    version: int
    section: Callable[[Mapping[str, Any]], Section]


# The recipe of an assembly names its kind, all other documents their format.
_FORMATS = {
    SIMILARITY_FORMAT: _Format(SIMILARITY_VERSION, similarity_section),
    ALIGNMENT_FORMAT: _Format(ALIGNMENT_VERSION, alignment_section),
    TRANSFER_FORMAT: _Format(TRANSFER_VERSION, transfer_section),
    NEAREST_FORMAT: _Format(NEAREST_VERSION, nearest_section),
    MERGE_FORMAT: _Format(MERGE_VERSION, merge_section),
    ASSEMBLE_FORMAT: _Format(ASSEMBLE_VERSION, assemble_section),
    SCORE_FORMAT: _Format(SCORE_VERSION, score_section),
    KIND: _Format(VERSION, assembly_section),
}


def write_report(results: Sequence[str | Path], path: str | Path) -> None:
    """Writes results of several commands as one self-contained page.

    Args:
        results: Files that the commands' ``--json`` wrote, the file of ``score --out``, or folders of assemblies; in
            the order of the page's sections, at least one.
        path: ``.html``; replaced if it exists, once the page is complete.

    Raises:
        ResultFileError: A file that is none of these, of another version, or incomplete.
        UnknownOptionError: Another suffix of ``path``.
    """
    write_page([read_section(result) for result in results], path)


def read_section(result: str | Path) -> Section:
    """The section of one result; see :func:`write_report`."""
    path = Path(result)
    file = path / FOLDER_RECIPE if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultFileError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ResultFileError(f"{file} is not readable as JSON: {error}") from error
    name = document.get("format", document.get("kind")) if isinstance(document, dict) else None
    known = _FORMATS.get(name) if isinstance(name, str) else None
    if known is None:
        raise ResultFileError(
            f"{file} is no result of pyassemble: its format is {name!r}; accepted: {', '.join(sorted(_FORMATS))}"
        )
    if document.get("version") != known.version:
        raise ResultFileError(
            f"{file} is of version {document.get('version')!r}; this pyassemble reads version {known.version} of {name}"
        )
    try:
        return known.section(document)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise ResultFileError(f"{file} is no complete {name} document: {type(error).__name__} {error}") from error
