"""Where results go besides the terminal; checked before any work is done for them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyassemble.atomic import check_replaceable, replacing
from pyassemble.cli.console import working
from pyassemble.errors import PyAssembleError

if TYPE_CHECKING:
    from pyassemble.transfer import Alignment

_STDOUT = "-"


@dataclass(frozen=True)
class JsonOutput:
    """Where ``--json`` sends a document: a file, standard output, or nowhere."""

    file: Path | None
    to_stdout: bool

    @classmethod
    def of(cls, option: str | None) -> JsonOutput:
        """What the option names."""
        return cls(Path(option) if option not in (None, _STDOUT) else None, option == _STDOUT)

    @property
    def written(self) -> list[tuple[str, Path]]:
        """Its option and file, if there is one, for :func:`check_outputs`."""
        return [] if self.file is None else [("--json", self.file)]

    def write(self, document: dict[str, Any]) -> None:
        """Writes the document."""
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        if self.file is not None:
            with replacing(self.file) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if self.to_stdout:
            sys.stdout.write(text)


@dataclass(frozen=True)
class Outputs:
    """Where an alignment goes."""

    json: JsonOutput
    pictures: tuple[Path, ...]

    @classmethod
    def checked(cls, json_to: str | None, pictures: list[Path] | None, out: Path | None = None) -> Outputs:
        """Takes the options, and refuses what could not be written before any work is done for it.

        ``out`` is not among the outputs; it is only compared with them, as no two may be one file.
        """
        result = cls(JsonOutput.of(json_to), tuple(pictures or ()))
        check_outputs([*pictures_written(pictures), *result.json.written], others=[("--out", out)] if out else [])
        return result

    def write(self, document: dict[str, Any], alignment: Alignment, source: str, target: str) -> None:
        """Writes the document and draws the alignment."""
        from pyassemble.report import draw_alignment

        self.json.write(document)
        for path in self.pictures:
            with working(f"drawing {path}"):
                draw_alignment(alignment, path, source_name=source, target_name=target)


def pictures_written(pictures: list[Path] | None) -> list[tuple[str, Path]]:
    """``--picture`` and its files, for :func:`check_outputs`.

    Raises:
        UnknownOptionError: A file whose ending is that of no kind of picture.
    """
    if not pictures:
        return []
    from pyassemble.report.picture import check_picture_path

    for path in pictures:
        check_picture_path(path)
    return [("--picture", path) for path in pictures]


def check_outputs(written: list[tuple[str, Path]], *, others: list[tuple[str, Path]] | None = None) -> None:
    """Refuses outputs that could not be written, or that would write over each other.

    Args:
        written: Each output's option and file.
        others: Files that are checked elsewhere, and may be none of these.

    Raises:
        PyAssembleError: Two are one file: only the later would be left.
        OSError: One that cannot be written.
    """
    options: dict[str, str] = {}
    for option, path in [*(others or ()), *written]:
        file = os.path.realpath(path)
        if file in options:
            raise PyAssembleError(f"{options[file]} and {option} both name {path}; each output needs a file of its own")
        options[file] = option
    for _, path in written:
        check_replaceable(path)
