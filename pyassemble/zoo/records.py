"""An entry as text: one line of JSON, for the pipe from a worker process and for the build's cache."""

from __future__ import annotations

import json
from typing import Any

from pyassemble.network.layers import Element, LayerSequence
from pyassemble.zoo.entry import Entry


def to_text(entry: Entry) -> str:
    """The entry as one line of ASCII."""
    layers = entry.layers
    record = {
        "name": entry.name,
        "parameters": entry.parameters,
        "license": entry.license,
        "weights": entry.weights,
        "approximate": layers.approximate,
        "names": layers.names,
        "kinds": layers.kinds,
        "shapes": layers.shapes,
        "elements": layers.elements,
    }
    return json.dumps(record, separators=(",", ":"))


def from_text(text: str) -> Entry:
    """The entry that :func:`to_text` wrote, equal to the original in every value and type.

    Raises:
        ValueError: The text is not an entry.
    """
    try:
        return _entry(json.loads(text))
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"not the record of an entry: {error}") from error


def _entry(record: dict[str, Any]) -> Entry:
    layers = LayerSequence(
        tuple(record["names"]),
        tuple(record["kinds"]),
        tuple(map(tuple, record["shapes"])),
        tuple(Element(start, stop, is_block) for start, stop, is_block in record["elements"]),
        record["approximate"],
    )
    if not len(layers.names) == len(layers.kinds) == len(layers.shapes):
        raise ValueError("not the record of an entry: columns of different lengths")
    return Entry(record["name"], layers, record["parameters"], record["license"], record["weights"])
