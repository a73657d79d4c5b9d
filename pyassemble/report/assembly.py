"""What a page shows of an assembly: its blocks, how it was found, and what it became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.report.assembly_picture import assembly_figure
from pyassemble.report.page import Section, folded, heading, paragraph, picture, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ASSEMBLE_FORMAT = "pyassemble.assemble"
ASSEMBLE_VERSION = 1


def assemble_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of a search.

    Args:
        document: What ``pyassemble assemble --json`` writes.
    """
    return Section(f"Assembly {document['out']}", _history(document["history"]))


def assembly_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of a saved assembly.

    Args:
        document: The ``recipe.json`` of its folder.
    """
    recipe = document["recipe"]
    blocks = [
        (row["network"], f"{row['first']} to {row['last']}", row["cut_points"][-1], stitch["kind"])
        for row, stitch in zip(recipe["blocks"], recipe["stitches"], strict=True)
    ]
    sources = [(row["network"], row["spec"] or "", row["license"] or "unknown") for row in recipe["sources"]]
    return Section(
        "Assembly of " + " → ".join(f"{row['network']}[{row['first']}..{row['last']}]" for row in recipe["blocks"]),
        (
            paragraph(
                f"{recipe['num_classes']} classes; the blocks were "
                f"{'trained too' if document['blocks_trained'] else 'left as they were'}"
            ),
            heading("Blocks"),
            table(("source", "segments", "ends with", "before it"), blocks, numbers=False),
            *_history(document["history"]),
            heading("Sources"),
            table(("network", "architecture", "license of its weights"), sources, numbers=False),
        ),
    )


def _history(history: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    parts = [_result(entry) for entry in history if entry["kind"] == "result"]
    if any(entry["kind"] in ("epoch", "finetune") for entry in history):
        with assembly_figure(history) as figure:
            parts += [heading("History"), picture(figure)]
    tuned = [entry for entry in history if entry["kind"] == "finetune"]
    if tuned:
        head = ("epoch of fine-tuning", "trained", "loss", "accuracy", "AUROC", "seconds")
        parts.append(folded("Every epoch of fine-tuning", table(head, [_tuned(entry) for entry in tuned])))
    return tuple(parts)


def _result(entry: Mapping[str, Any]) -> str:
    quality, cost, agreement = entry["validation"], entry["cost"], entry["score_against_size"]
    best = entry["best"][entry["select"]]
    rows = (
        ("found in epoch", best["epoch"]),
        ("chosen by", entry["select"]),
        ("accuracy when found", f"{quality['accuracy']:.1%}"),
        ("AUROC when found", f"{quality['auroc']:.3f}"),
        ("training-free score", f"{best['score']:.3f}"),
        ("score's agreement with size, Kendall's tau", "undefined" if agreement is None else f"{agreement:+.2f}"),
        ("parameters trained", f"{cost['trainable']:,}"),
        ("parameters in all", f"{cost['total']:,}"),
        ("million FLOPs", f"{cost['flops'] / 1e6:,.1f}"),
        ("block executions saved", f"{entry['blocks_saved']:,} of {entry['blocks_requested']:,}"),
    )
    return heading("What the search found") + "\n" + table((), rows)


def _tuned(entry: Mapping[str, Any]) -> tuple[object, ...]:
    quality = entry.get("validation")
    measured = ("—", "—") if quality is None else (f"{quality['accuracy']:.1%}", f"{quality['auroc']:.3f}")
    return (entry["epoch"], entry["mode"], f"{entry['loss']:.4f}", *measured, f"{entry['seconds']:.1f}")
