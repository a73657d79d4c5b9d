"""Training-free scores of networks as a document, and what a page shows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.report.page import Section, heading, table

if TYPE_CHECKING:
    from collections.abc import Mapping

SCORE_FORMAT = "pyassemble.score"
SCORE_VERSION = 1


def score_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of scores: the networks by score, and where their size would have put them.

    Args:
        document: What ``pyassemble score --out`` writes.
    """
    networks = document["networks"]
    by_size = sorted(networks, key=lambda name: -networks[name]["parameters"])
    rows = [
        (name, f"{row['score']:.4f}", f"{row['parameters']:,}", by_size.index(name) + 1)
        for name, row in sorted(networks.items(), key=lambda item: -item[1]["score"])
    ]
    return Section(
        f"Training-free scores of {len(networks)} networks",
        (
            table(("network", "score", "parameters", "place by size"), rows),
            heading("Conditions"),
            table((), document["conditions"].items(), numbers=False),
        ),
    )
