"""The CSV file that an experiment keeps its finished rows in, so that the same command goes on where it stopped."""

from __future__ import annotations

import csv
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from dataclasses import Field
    from pathlib import Path


class Recorded(Protocol):
    """A dataclass of strings, integers and floats that says under which conditions it was measured."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def conditions(self) -> str: ...


R = TypeVar("R", bound=Recorded)


class FinishedRows(Generic[R]):
    """The rows of a file, appended atomically.

    Args:
        path: The file; read if it is there.
        kind: Dataclass of a row, its annotations written as strings.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path, self.kind = path, kind
        self.rows: list[R] = []
        if path.exists():
            readers: dict[str, Any] = {"str": str, "int": int, "float": float}
            with path.open(newline="") as file:
                for record in csv.DictReader(file):
                    self.rows.append(kind(**{f.name: readers[str(f.type)](record[f.name]) for f in fields(kind)}))

    def append(self, row: R) -> None:
        self.extend([row])

    def extend(self, rows: Sequence[R]) -> None:
        """All of them or none."""
        self.rows.extend(rows)
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(self.kind)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def refuse_others(self, conditions: str) -> None:
        """Ends the program where the file holds rows under other conditions."""
        if any(row.conditions != conditions for row in self.rows):
            raise SystemExit(f"{self.path} holds rows under other conditions; name another --out")
