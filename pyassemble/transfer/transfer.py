"""Carrying the weights of any network onto any other: align, compute everything, then write."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from pyassemble.errors import NoCommonLayerError, TensorError, UnknownOptionError, UnsupportedNetworkError
from pyassemble.transfer.alignment import Alignment, align, as_generator
from pyassemble.transfer.methods import (
    METHODS,
    Assigned,
    LayerPair,
    assign,
    output_variance_ratio,
    rescales,
    take,
)
from pyassemble.transfer.overwritten import Overwritten
from pyassemble.transfer.report import TensorRecord, TransferReport
from pyassemble.transfer.tensors import (
    Held,
    ModuleTensors,
    Slot,
    check_finite,
    check_kind,
    check_target,
    inverted,
    source_tensors,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pyassemble.network.standardize import NetworkLike

_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


class _Copy(NamedTuple):
    """One tensor to be written: from where, to where, and under which regions."""

    source: Slot
    target: Slot
    assigned: Assigned
    output_dim: int
    rescale: bool


class _Write(NamedTuple):
    """New content for a region of one stored tensor."""

    held: Held
    region: tuple[slice, ...]
    content: torch.Tensor


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
    alignment = align(
        source,
        target,
        standardization=standardization,
        matching=matching,
        seed=generator,
        example_input=example_input,
    )
    if not alignment.indices:
        kinds = [
            ", ".join(sorted({layer.kind for layer in network.layers if layer.kind}))
            for network in (alignment.source, alignment.target)
        ]
        raise NoCommonLayerError(f"no layer in common: the source has {kinds[0]}; the target has {kinds[1]}")

    receiver = ModuleTensors(target)
    claims = _Claims()
    copies = _plan(alignment, source, receiver, method, buffers, generator, dry_run, claims)
    if not dry_run:
        check_finite(copy.source for copy in copies)
    elif not rescales(method) or any(copy.source.value.is_meta or copy.target.value.is_meta for copy in copies):
        return _report(alignment, receiver, copies, method, {}, None)
    writes, scales = _contents(copies, claims)
    return _report(alignment, receiver, copies, method, scales, None if dry_run else _written(writes))


def _plan(
    alignment: Alignment,
    source: NetworkLike,
    receiver: ModuleTensors,
    method: str,
    buffers: bool,
    generator: torch.Generator,
    dry_run: bool,
    claims: _Claims,
) -> list[_Copy]:
    giver = source_tensors(source)
    copies: list[_Copy] = []
    for s, t in alignment.indices:
        layer = alignment.target.layers[t]
        given = giver.layer(alignment.source.layers[s], buffers)
        taken: dict[str, Slot] = {}
        for role, slot in receiver.layer(layer, buffers).items():
            gift = given.get(role)
            if gift is None or gift.value.dim() != slot.value.dim():
                continue
            check_kind(gift.name, gift.value, "source", hollow=dry_run)
            check_target(slot, hollow=dry_run)
            if claims.claim(slot):
                taken[role] = slot
        if not taken:
            continue
        output_dim = 1 if layer.kind is not None and layer.kind.startswith(_TRANSPOSED) else 0
        pair = LayerPair(
            {role: given[role].value for role in taken},
            {role: slot.value.shape for role, slot in taken.items()},
            output_dim,
        )
        for role in taken:
            if method == "magnitude" and given[role].value.is_meta:
                raise TensorError(
                    f"method='magnitude' chooses channels by their values, but {given[role].name} of shape "
                    f"{tuple(given[role].value.shape)} is on the meta device; load weights first"
                )
        for role, assigned in assign(pair, method, generator).items():
            rescale = rescales(method) and role == "weight" and taken[role].value.dim() > 1
            copies.append(_Copy(given[role], taken[role], assigned, output_dim, rescale))
    return copies


class _Claims:
    """Memory already promised to an earlier match, so that of tied tensors the first in target order wins."""

    def __init__(self) -> None:
        # Start and end address of each claim, in order of address; claims never overlap.
        self._starts: list[int] = []
        self._stops: list[int] = []

    def claim(self, slot: Slot) -> bool:
        """Whether nobody claimed any of a slot's memory before; it is then claimed."""
        if len(slot.stored) > 1 and not all(self.is_free(held.tensor) for held in slot.stored):
            return False
        return all(self._take(held.tensor) for held in slot.stored)

    def is_free(self, tensor: torch.Tensor) -> bool:
        """Whether none of a tensor's memory is claimed."""
        start, stop = _extent(tensor)
        return self._fits(bisect_right(self._starts, start), start, stop)

    def _fits(self, at: int, start: int, stop: int) -> bool:
        return (at == 0 or self._stops[at - 1] <= start) and (at == len(self._starts) or stop <= self._starts[at])

    def _take(self, tensor: torch.Tensor) -> bool:
        start, stop = _extent(tensor)
        at = bisect_right(self._starts, start)
        if not self._fits(at, start, stop):
            return False
        self._starts.insert(at, start)
        self._stops.insert(at, stop)
        return True


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of a tensor's first byte and of the byte after its last; unique across devices (one address space)."""
    if tensor.is_meta:
        # No memory: an address of its own for each object.
        return -id(tensor), -id(tensor) + 1
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    span = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + span * tensor.element_size()


def _contents(copies: Sequence[_Copy], claims: _Claims) -> tuple[list[_Write], dict[str, float]]:
    """Every new value, on the target's device and in its dtype, before anything is written; and each weight's scale."""
    writes: list[_Write] = []
    scales: dict[str, float] = {}
    with torch.no_grad():
        for copy in copies:
            content = _content(copy)
            region = copy.assigned.target
            if copy.target.parametrization is not None or copy.rescale:
                content = _whole(copy, content)
                region = _everything(content)
            if copy.rescale:
                scales[copy.target.name] = factor = output_variance_ratio(copy.source.value, content, copy.output_dim)
                content *= factor
                if not bool(torch.isfinite(content).all()):
                    raise TensorError(
                        f"target tensor {copy.target.name} of shape {tuple(content.shape)} ({content.dtype}) cannot be "
                        f"scaled by {factor:.4g} as method='clip_norm' asks: the result would not be finite"
                    )
            if copy.target.parametrization is not None:
                for held, value in inverted(copy.target, content):
                    writes.append(_Write(held, _everything(held.tensor), value))
                continue
            if not claims.is_free(content):
                # The source shares memory with the target: it must be read before that is written.
                content = content.clone()
            writes.append(_Write(copy.target.stored[0], region, content))
    return writes, scales


def _content(copy: _Copy) -> torch.Tensor:
    given = take(copy.source.value, copy.assigned.source)
    target = copy.target.value
    if given.device == target.device and given.dtype == target.dtype:
        return given
    if given.is_complex() and not target.is_complex():
        raise TensorError(
            f"source tensor {copy.source.name} is {given.dtype} and target tensor {copy.target.name} is "
            f"{target.dtype}; a complex weight goes into a complex one only"
        )
    content = given.to(target.device, target.dtype)
    narrower = target.is_floating_point() and torch.finfo(target.dtype).max < torch.finfo(given.dtype).max
    if narrower and not bool(torch.isfinite(content).all()):
        raise TensorError(
            f"source tensor {copy.source.name} of shape {tuple(copy.source.value.shape)} ({given.dtype}) holds values "
            f"beyond the range of target tensor {copy.target.name} ({target.dtype})"
        )
    return content


def _whole(copy: _Copy, content: torch.Tensor) -> torch.Tensor:
    """A copy of the target tensor with the content in its place."""
    whole = copy.target.value.clone()
    whole[copy.assigned.target] = content
    return whole


def _everything(tensor: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in tensor.shape)


def _written(writes: Sequence[_Write]) -> Overwritten:
    """Write everything, or, on any error or interrupt, nothing."""
    with torch.no_grad():
        overwritten = Overwritten([write.held for write in writes], [write.region for write in writes])
        try:
            overwritten.write([write.content for write in writes])
        except BaseException as error:
            overwritten.restore()
            if isinstance(error, RuntimeError):
                raise TensorError(f"the target could not be written and was put back: {error}") from error
            raise
    return overwritten


def _report(
    alignment: Alignment,
    receiver: ModuleTensors,
    copies: Sequence[_Copy],
    method: str,
    scales: Mapping[str, float],
    overwritten: Overwritten | None,
) -> TransferReport:
    touched = {id(copy.target.stored[0].tensor) for copy in copies}
    carriers = receiver.carriers()
    records = tuple(_records(copies, scales))
    return TransferReport(
        alignment=alignment,
        method=method,
        dry_run=overwritten is None,
        tensors=records,
        untouched=tuple(carrier.name for carrier in carriers if carrier.identity not in touched),
        coverage=sum(record.written for record in records) / sum(carrier.elements for carrier in carriers),
        _overwritten=overwritten,
    )


def _records(copies: Sequence[_Copy], scales: Mapping[str, float]) -> Iterator[TensorRecord]:
    for copy in copies:
        yield TensorRecord(
            source=copy.source.name,
            target=copy.target.name,
            source_shape=copy.source.value.shape,
            target_shape=copy.target.value.shape,
            source_region=copy.assigned.source,
            target_region=copy.assigned.target,
            written=copy.assigned.elements,
            scale=scales.get(copy.target.name, 1.0),
        )
