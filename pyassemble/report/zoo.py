"""What a zoo was asked, for people and for programs: the nearest networks as a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from pyassemble.report.labels import shortened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyassemble.report.page import Section
    from pyassemble.zoo import Entry, Record, Zoo

NEAREST_FORMAT = "pyassemble.nearest"
NEAREST_VERSION = 1

_UNKNOWN = "—"
# Longer addresses are cut in their middle; programs get them whole, as JSON.
_ADDRESS_CHARACTERS = 48
_UNITS = ("", " k", " M", " B", " T")


def nearest_table(found: Sequence[tuple[Record, float]]) -> Table:
    """The nearest networks, best first: how similar, how large, under which license, and where the weights lie."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    shown.add_column("#", justify="right", no_wrap=True)
    shown.add_column("name", overflow="fold")
    shown.add_column("similarity", justify="right", no_wrap=True)
    shown.add_column("size", justify="right", no_wrap=True)
    shown.add_column("license", overflow="fold")
    shown.add_column("weights", overflow="fold")
    for rank, (record, similarity) in enumerate(found, start=1):
        mark = "~" if record.approximate else ""
        shown.add_row(
            str(rank),
            Text(record.name),
            f"{mark}{similarity:.4f}",
            count_text(record.parameters),
            Text(record.license or _UNKNOWN),
            Text(shortened(record.weights or _UNKNOWN, _ADDRESS_CHARACTERS)),
        )
    return shown


def nearest_summary(network: Entry, zoo: Zoo, found: Sequence[tuple[Record, float]], similarity: str) -> str:
    """One line: what was compared with what, and what of it was a guess."""
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(zoo.libraries.items()))
    parts = [f"{len(found)} of {len(zoo)} networks{f' ({libraries})' if libraries else ''}, {similarity} similarity"]
    if network.approximate:
        parts.append(f"approximate, {network.name} was known by its tensors only")
    if any(record.approximate for record, _ in found):
        parts.append("~ known by its tensors only")
    return "; ".join(parts)


def nearest_json(network: Entry, zoo: Zoo, found: Sequence[tuple[Record, float]], similarity: str) -> dict[str, Any]:
    """The nearest networks as a document."""
    return {
        "format": NEAREST_FORMAT,
        "version": NEAREST_VERSION,
        "network": network.name,
        "parameters": network.parameters,
        "approximate": network.approximate,
        "similarity": similarity,
        "zoo": {"networks": len(zoo), "libraries": zoo.libraries},
        "nearest": [
            {
                "rank": rank,
                "name": record.name,
                "similarity": value,
                "parameters": record.parameters,
                "license": record.license,
                "weights": record.weights,
                "approximate": record.approximate,
            }
            for rank, (record, value) in enumerate(found, start=1)
        ],
    }


def nearest_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of the nearest networks.

    Args:
        document: From :func:`nearest_json`.
    """
    from pyassemble.report.page import Section, paragraph, table

    rows = [
        (
            f"{row['rank']}. {row['name']}",
            f"{'~' if row['approximate'] else ''}{row['similarity']:.4f}",
            count_text(row["parameters"]),
            row["license"] or _UNKNOWN,
            row["weights"] or _UNKNOWN,
        )
        for row in document["nearest"]
    ]
    zoo = document["zoo"]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(zoo["libraries"].items()))
    return Section(
        f"Nearest to {document['network']}",
        (
            table(("network", "similarity", "parameters", "license", "weights"), rows),
            paragraph(
                f"{len(rows)} of {zoo['networks']} networks{f' ({libraries})' if libraries else ''}, "
                f"{document['similarity']} similarity; {document['network']} has {count_text(document['parameters'])} "
                "parameters. ~ marks what was known by its tensors only."
            ),
        ),
    )


def record_details(record: Record) -> dict[str, str]:
    """What a page says of a network."""
    return {
        "parameters": count_text(record.parameters),
        "license": record.license or _UNKNOWN,
        "weights": record.weights or _UNKNOWN,
    }


def count_text(count: int) -> str:
    """A number of parameters as people say it: ``812``, ``1.2 M``."""
    value, unit = float(count), 0
    while round(value, 1) >= 1000 and unit < len(_UNITS) - 1:  # rounded, or there would be 1000.0 k beside 1.0 M
        value, unit = value / 1000, unit + 1
    return f"{value:.1f}{_UNITS[unit]}" if unit else str(count)
