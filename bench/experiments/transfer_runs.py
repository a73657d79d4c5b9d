"""What one run of the transfer experiment is, and the CSV file that finished runs are kept in."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pyassemble.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

RANDOM = "random"


@dataclass(frozen=True)
class Run:
    """One training of one target."""

    section: str
    """ "grid", or "one-epoch" for the comparison with the published code in shared/data/README.md."""
    target: str
    source: str
    """Name of the source, or "random"."""
    scenario: str
    """ "elsewhere" or "fine-tuned"; empty for random initialization."""
    seed: int

    @property
    def baseline(self) -> Run:
        """The run that differs only in starting from random initialization."""
        return Run(self.section, self.target, RANDOM, "", self.seed)

    def __str__(self) -> str:
        start = RANDOM if self.source == RANDOM else f"{self.source} ({self.scenario})"
        return f"{self.section}: {self.target} ← {start}, seed {self.seed}"


@dataclass(frozen=True)
class Row:
    """The state of a run after one epoch; epoch 0 is before training."""

    section: str
    target: str
    source: str
    scenario: str
    seed: int
    epoch: int
    accuracy: float
    loss: float
    seconds: float
    """Training time up to here, evaluation not counted."""
    transfer_seconds: float
    similarity: float
    directed: float
    coverage: float
    source_accuracy: float
    source_parameters: int
    target_parameters: int
    images: int
    test_images: int
    epochs: int
    batch_size: int
    tuning_images: int
    precision: str
    device: str
    threads: int
    workers: int
    """Runs trained at the same time, each on its own threads."""
    budget_minutes: float
    torch: str
    timm: str
    commit: str

    @property
    def run(self) -> Run:
        return Run(self.section, self.target, self.source, self.scenario, self.seed)

    @property
    def settings(self) -> tuple[object, ...]:
        """What must agree between rows for their accuracies and times to be compared."""
        return (self.images, self.test_images, self.epochs, self.batch_size, self.tuning_images, self.device)


class RunFile:
    """All rows of finished runs. A run is appended whole and atomically, so a killed experiment can be resumed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [_row(record) for record in csv.DictReader(file)]

    def append(self, rows: Iterable[Row]) -> None:
        self.rows += rows
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)

    def runs(self) -> dict[Run, list[Row]]:
        """Every finished run with its rows from epoch 0 on."""
        found: dict[Run, list[Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.epoch):
            found.setdefault(row.run, []).append(row)
        return found


def refuse_mixture(file: RunFile, settings: Callable[[str], tuple[object, ...]]) -> None:
    """Runs under other conditions cannot be compared with the ones to come, which have ``settings(section)``."""
    for row in file.rows:
        wanted = settings(row.section)
        if row.settings != wanted:
            raise SystemExit(
                f"{file.path} holds runs under other conditions (images, test images, epochs, batch size, images for "
                f"fine-tuning, device): {row.settings}, now {wanted}. Name another --out, or use --no-resume to "
                "replace them"
            )


def _row(record: dict[str, str]) -> Row:
    readers: dict[str, Any] = {"str": str, "int": int, "float": float}
    # Files from before runs were trained side by side lack this column.
    record.setdefault("workers", "1")
    return Row(**{field.name: readers[str(field.type)](record[field.name]) for field in fields(Row)})
