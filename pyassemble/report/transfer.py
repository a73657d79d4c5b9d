"""One transfer as a document for programs, and what a page shows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.report.alignment import alignment_json, alignment_section
from pyassemble.report.labels import shape_text
from pyassemble.report.page import Section, folded, paragraph, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyassemble.transfer import TensorRecord, TransferReport
    from pyassemble.transfer.methods import Region

TRANSFER_FORMAT = "pyassemble.transfer"
TRANSFER_VERSION = 1


def transfer_json(report: TransferReport) -> dict[str, Any]:
    """The JSON form of a transfer: the alignment it followed and a row for each tensor.

    Each row has the names and shapes of both tensors, the region that was read and the one that was written.
    """
    return {
        "format": TRANSFER_FORMAT,
        "version": TRANSFER_VERSION,
        "method": report.method,
        "dry_run": report.dry_run,
        "coverage": report.coverage,
        "tensors": [_tensor(record) for record in report.tensors],
        "untouched": list(report.untouched),
        "alignment": alignment_json(report.alignment),
    }


def transfer_section(document: Mapping[str, Any]) -> Section:
    """What a page shows of a transfer: how much was written, the alignment, and every tensor.

    Args:
        document: What ``pyassemble transfer --json`` writes.
    """
    section = alignment_section(document["alignment"], source_name=document["source"], target_name=document["target"])
    rows = [
        (
            row["source"],
            row["target"],
            shape_text(row["source_shape"]),
            shape_text(row["target_shape"]),
            f"{row['covered']:.0%}",
        )
        for row in document["tensors"]
    ]
    verb = "would be written" if document["dry_run"] else "written"
    return Section(
        f"Transfer of {section.title}",
        (
            paragraph(
                f"{document['coverage']:.1%} of the target's elements {verb}, method {document['method']}; "
                f"{len(rows)} tensors written, {len(document['untouched'])} untouched"
            ),
            *section.parts,
            folded("All tensors", table(("source", "target", "source shape", "target shape", "covered"), rows)),
            *([folded("Untouched", paragraph(", ".join(document["untouched"])))] if document["untouched"] else []),
        ),
    )


def _tensor(record: TensorRecord) -> dict[str, Any]:
    return {
        "source": record.source,
        "target": record.target,
        "source_shape": [int(size) for size in record.source_shape],
        "target_shape": [int(size) for size in record.target_shape],
        "source_region": _region(record.source_region),
        "target_region": _region(record.target_region),
        "written": record.written,
        "covered": record.covered,
        "scale": record.scale,
    }


def _region(region: Region) -> list[dict[str, Any]]:
    """One entry per dimension: ``start`` and ``stop``, or the chosen ``indices``."""
    return [
        {"start": int(positions.start), "stop": int(positions.stop)}
        if isinstance(positions, slice)
        else {"indices": positions.tolist()}
        for positions in region
    ]
