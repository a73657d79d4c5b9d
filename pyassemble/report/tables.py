"""Tables for the terminal: which layers were paired, and what of each target layer was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from pyassemble.report.labels import element_labels, element_of_layer, shape_text, within
from pyassemble.transfer.matching import layer_score

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyassemble.network.layers import LayerSequence
    from pyassemble.transfer import Alignment, TensorRecord, TransferReport

_GOOD, _FAIR = 0.75, 0.4


@dataclass(frozen=True)
class _PairRow:
    """One pair as the table shows it, under the two blocks it belongs to."""

    source: str
    target: str
    shape: str
    score: float


@dataclass
class _Receipt:
    """The tensors written into one target module from one source module."""

    records: list[TensorRecord] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of these tensors' elements that was written."""
        elements = sum(record.written / record.covered for record in self.records if record.covered)
        return sum(record.written for record in self.records) / elements if elements else 0.0


def alignment_table(alignment: Alignment) -> Table:
    """The pairs in target order, grouped by the blocks they lie in; inside a block, names are relative to it."""
    table = _table("source layer", "target layer", "shape of the weights", "score")
    for (source_block, target_block), rows in _pairs_by_block(alignment):
        if source_block or target_block:
            table.add_row(_heading(source_block), _heading(target_block), _quiet(_number(len(rows), "pair")), "")
        indent = "  " if source_block or target_block else ""
        for row in rows:
            table.add_row(Text(indent + row.source), Text(indent + row.target), row.shape, _graded(row.score, ".3f"))
        table.add_section()
    return table


def alignment_summary(alignment: Alignment) -> str:
    """One sentence: how much of either network found a partner."""
    matched_source = len({source for source, _ in alignment.indices})
    matched_target = len({target for _, target in alignment.indices})
    approximate = "; approximate, a network was known by its tensors only" if alignment.approximate else ""
    return (
        f"{_number(len(alignment.indices), 'pair')}: "
        f"{_share(alignment.target, matched_target, 'target')}, {_share(alignment.source, matched_source, 'source')}"
        f"{approximate}"
    )


def transfer_table(report: TransferReport) -> Table:
    """What was written, one row per target module in target order, with the share of its elements that was covered."""
    table = _table("source", "target", "shape of the largest tensor", "covered")
    for (source, target), receipt in _receipts(report).items():
        largest = max(receipt.records, key=lambda record: record.written)
        shape = _shapes(largest.source_shape, largest.target_shape)
        table.add_row(Text(source), Text(target), shape, _graded(receipt.share, ".0%"))
    return table


def transfer_summary(report: TransferReport) -> str:
    """One sentence: how much of the target was written."""
    verb = "would be written" if report.dry_run else "written"
    return (
        f"{_number(len(report.tensors), 'tensor')} {verb}, {len(report.untouched)} untouched: "
        f"{report.coverage:.1%} of the target's elements"
    )


def _pairs_by_block(alignment: Alignment) -> Iterator[tuple[tuple[str, str], list[_PairRow]]]:
    """Runs of consecutive pairs that share both blocks; the label of a single layer is empty."""
    sources, targets = _blocks(alignment.source), _blocks(alignment.target)
    for blocks, run in groupby(alignment.indices, lambda pair: (sources[pair[0]], targets[pair[1]])):
        yield blocks, [_pair_row(alignment, pair, blocks) for pair in run]


def _blocks(sequence: LayerSequence) -> list[str]:
    """For each layer, the label of the block around it; empty for a layer that stands alone."""
    labels = element_labels(sequence)
    return [labels[i] if sequence.elements[i].is_block else "" for i in element_of_layer(sequence)]


def _pair_row(alignment: Alignment, pair: tuple[int, int], blocks: tuple[str, str]) -> _PairRow:
    source, target = alignment.source.layers[pair[0]], alignment.target.layers[pair[1]]
    return _PairRow(
        source=within(source.name, blocks[0]),
        target=within(target.name, blocks[1]),
        shape=_shapes(source.shape, target.shape),
        score=layer_score(source, target),
    )


def _receipts(report: TransferReport) -> dict[tuple[str, str], _Receipt]:
    """Written tensors by (source module, target module): a weight, its bias and its buffers go together."""
    receipts: dict[tuple[str, str], _Receipt] = {}
    for record in report.tensors:
        modules = (_module(record.source), _module(record.target))
        receipts.setdefault(modules, _Receipt()).records.append(record)
    return receipts


def _module(tensor: str) -> str:
    """The module that holds a tensor; a tensor of the root goes by its own name."""
    return tensor.rpartition(".")[0] or tensor


def _table(source: str, target: str, shape: str, number: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    table.add_column(source, overflow="fold")
    table.add_column(target, overflow="fold")
    table.add_column(shape, overflow="fold")
    table.add_column(number, justify="right", no_wrap=True)
    return table


def _shapes(source: tuple[int, ...], target: tuple[int, ...]) -> str:
    """Both shapes, or one where they are equal: the eye should catch what was cut or padded."""
    if source == target:
        return shape_text(source)
    return f"{shape_text(source)} → {shape_text(target)}"


def _heading(label: str) -> Text:
    return Text(label, style="bold")


def _quiet(text: str) -> Text:
    return Text(text, style="dim")


def _graded(value: float, form: str) -> Text:
    style = "green" if value >= _GOOD else "yellow" if value >= _FAIR else "red"
    return Text(format(value, form), style=style)


def _share(sequence: LayerSequence, matched: int, side: str) -> str:
    return f"{matched} of {sequence.scored} {side} layers matched ({sequence.scored - matched} not)"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
