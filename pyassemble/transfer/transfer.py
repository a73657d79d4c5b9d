"""Carrying the weights of any network onto any other: align, compute everything, then write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyassemble.errors import NoCommonLayerError, TensorError, UnknownOptionError, UnsupportedNetworkError
from pyassemble.transfer.alignment import Alignment, align_located, as_generator
from pyassemble.transfer.checks import check_finite, refuse_nonfinite
from pyassemble.transfer.contents import contents
from pyassemble.transfer.methods import METHODS, rescales
from pyassemble.transfer.overwritten import Overwritten
from pyassemble.transfer.plan import make_plan
from pyassemble.transfer.report import TransferReport
from pyassemble.transfer.tensors import ModuleTensors, source_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyassemble.network.standardize import NetworkLike
    from pyassemble.transfer.contents import Write
    from pyassemble.transfer.plan import Plan
    from pyassemble.transfer.tensors import Tensors


def transfer(
    source: NetworkLike,
    target: nn.Module,
    *,
    standardization: str = "blocks",
    matching: str = "dp",
    method: str = "clip",
    buffers: bool = True,
    dry_run: bool = False,
    seed: int | torch.Generator = 0,
    example_input: Any = None,
) -> TransferReport:
    """Write a source's weights into a target of any architecture (DPIAT, arXiv 2212.13970).

    Layers are matched by :func:`align`; the tensors of each pair are copied by the transfer method. All values are
    computed before the first is written, and an error leaves the target as it was. The target's device, dtype,
    ``requires_grad``, tied tensors (the first match in target order wins) and parametrizations are kept.

    Beyond the publication, the statistics of normalization layers travel with them, so that a network whose weights all
    take part gives the same bits in eval mode once it is transferred onto a fresh copy of itself.

    Args:
        source: Module, state_dict, or path of a weights file; may be of another device and dtype.
        target: Module that receives the weights, in place. One inside torch.compile, DataParallel or
            DistributedDataParallel is written through its wrapper.
        standardization: As in :func:`align`.
        matching: As in :func:`align`.
        method: ``"clip"`` (centre crop), ``"clip_norm"`` (then scale each weight to the source's output variance),
            ``"full"`` (fill what is larger with randomly repeated source channels) or ``"magnitude"`` (keep the
            channels of largest absolute weight sum).
        buffers: Whether the statistics of normalization layers travel with them.
        dry_run: Compute the report without writing; the networks may then be on the meta device.
        seed: Seed or CPU generator for ``matching="random"`` and ``method="full"``.
        example_input: As in :func:`align`.

    Returns:
        The receipt, with the alignment, a record per tensor and ``undo()``.

    Raises:
        UnknownOptionError: An unknown strategy name.
        EmptyNetworkError: A network without any scored layer.
        NoCommonLayerError: Networks that share no kind of layer.
        TensorError: A tensor that is non-finite, on the meta device, quantized, of an integer dtype, sharded, or a
            parametrization that cannot be inverted.
        UnsupportedNetworkError: A lazy, quantized, scripted or sharded network.
        WeightsFileError: A weights file that cannot be read.
    """
    if method not in METHODS:
        raise UnknownOptionError("method", method, METHODS)
    if not isinstance(target, nn.Module):
        raise UnsupportedNetworkError(f"the target must be a torch.nn.Module, got {type(target).__name__}")
    generator = as_generator(seed)
    alignment, *modules = align_located(source, target, standardization, matching, generator, example_input)
    if not alignment.indices:
        kinds = [
            ", ".join(sorted({layer.kind for layer in network.layers if layer.kind}))
            for network in (alignment.source, alignment.target)
        ]
        raise NoCommonLayerError(f"no layer in common: the source has {kinds[0]}; the target has {kinds[1]}")

    giver = source_tensors(source, alignment.source, modules[0])
    receiver = ModuleTensors(target, alignment.target, modules[1])
    plan = make_plan(alignment, giver, receiver, method, buffers, generator, dry_run)
    if not dry_run:
        check_finite([copy.source for copy in plan.others])
    elif not rescales(method) or any(copy.source.value.is_meta or copy.target.value.is_meta for copy in plan.others):
        return _report(alignment, receiver, plan, method, {}, None)
    writes, scales = contents(plan.others, plan.claims)
    return _report(alignment, receiver, plan, method, scales, None if dry_run else _written(plan, giver, writes))


def _written(plan: Plan, giver: Tensors, writes: Sequence[Write]) -> Overwritten:
    """Write everything, or, on any error or interrupt, nothing."""
    with torch.no_grad():
        overwritten = Overwritten(plan.direct, writes)
        try:
            nonfinite = overwritten.write(writes)
        except BaseException as error:
            overwritten.restore()
            if isinstance(error, RuntimeError):
                raise TensorError(f"the target could not be written and was put back: {error}") from error
            raise
    if nonfinite is not None:
        row = plan.direct_rows[nonfinite]
        slot = giver.slot(plan.rows.source_layers[row], plan.rows.roles[row], plan.rows.sources[row])
        refuse_nonfinite(slot)
        # Nothing was written, whatever another thread has made of the source since.
        raise TensorError(
            f"source tensor {slot.name} of shape {tuple(slot.value.shape)} was changed while it was read; "
            "a transfer takes finite weights that keep still"
        )
    return overwritten


def _report(
    alignment: Alignment,
    receiver: ModuleTensors,
    plan: Plan,
    method: str,
    scales: Mapping[str, float],
    overwritten: Overwritten | None,
) -> TransferReport:
    written = set(map(id, plan.rows.targets))
    if receiver.has_parametrized:
        slots = map(receiver.slot, plan.rows.target_layers, plan.rows.roles, plan.rows.targets)
        written = {id(slot.stored[0].tensor) for slot in slots}
    untouched, elements = receiver.carriers(written)
    return TransferReport(
        alignment=alignment,
        method=method,
        dry_run=overwritten is None,
        untouched=tuple(untouched),
        coverage=plan.written.elements / elements,
        _written=plan.written,
        _scales=scales,
        _overwritten=overwritten,
    )
