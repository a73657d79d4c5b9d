"""One transfer as a document for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.report.alignment import alignment_json

if TYPE_CHECKING:
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
