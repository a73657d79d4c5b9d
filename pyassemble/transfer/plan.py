"""Which tensor of the source goes into which tensor of the target, and under which regions."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import compress, groupby
from operator import le
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pyassemble.errors import TensorError
from pyassemble.network.backend import native
from pyassemble.transfer.checks import check_kind, check_target, is_dense
from pyassemble.transfer.methods import Assigned, LayerPair, assign, crop, crops, rescales
from pyassemble.transfer.report import TensorRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pyassemble.transfer.alignment import Alignment
    from pyassemble.transfer.tensors import Slot, Tensors

_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")


class Copy(NamedTuple):
    """One tensor whose values need more than copying: another dtype or device, a parametrization, a scale.

    Attributes:
        source: Where the values come from.
        target: Where they go.
        assigned: Which of them, and to which places.
        output_dim: Dimension of the target that counts outputs.
        rescale: Whether the target is scaled as a whole after writing.
    """

    source: Slot
    target: Slot
    assigned: Assigned
    output_dim: int
    rescale: bool


class DirectCopies(NamedTuple):
    """Tensors whose values go over as they are, between dense arrays of one dtype; as columns, in target order.

    Attributes:
        targets: The target tensors.
        assigned: Which values, and to which places.
        source_starts: Addresses of the first elements of the sources.
        target_starts: Those of the targets.
    """

    targets: Sequence[Slot] = ()
    assigned: Sequence[Assigned] = ()
    source_starts: Sequence[int] = ()
    target_starts: Sequence[int] = ()


class Plan(NamedTuple):
    """What a transfer does.

    Attributes:
        records: Every tensor that will be written, in target order.
        sources: What is read for each.
        direct: Those that the C++ core copies, all at once.
        others: All others.
        claims: The memory that will be written.
    """

    records: Sequence[TensorRecord]
    sources: Sequence[Slot]
    direct: DirectCopies
    others: Sequence[Copy]
    claims: Claims


@dataclass
class _Candidates:
    """Tensors of one role in matched layers, as columns, in target order.

    Held so because a network has hundreds: a list per attribute instead of an object per tensor.
    """

    pairs: list[int] = field(default_factory=list)  # position of the layers' pair in the alignment
    roles: list[str] = field(default_factory=list)
    sources: list[Slot] = field(default_factory=list)
    targets: list[Slot] = field(default_factory=list)

    def kept(self, wanted: Sequence[bool]) -> _Candidates:
        return _Candidates(
            list(compress(self.pairs, wanted)),
            list(compress(self.roles, wanted)),
            list(compress(self.sources, wanted)),
            list(compress(self.targets, wanted)),
        )


def make_plan(
    alignment: Alignment,
    giver: Tensors,
    receiver: Tensors,
    method: str,
    buffers: bool,
    generator: torch.Generator,
    dry_run: bool,
) -> Plan:
    """What a transfer copies, in target order; of tied target tensors the first match takes all.

    Raises:
        TensorError: A tensor that cannot be read or written.
    """
    found = _candidates(alignment, giver, receiver, buffers)
    dense = [slot.parametrization is None and is_dense(slot.value) for slot in found.targets]
    given = _dense_starts(found.sources)
    for source, target, from_dense, to_dense in zip(found.sources, found.targets, given, dense, strict=True):
        if not from_dense:
            check_kind(source.name, source.value, "source", hollow=dry_run)
        if not to_dense:
            check_target(target, hollow=dry_run)
    claims = Claims()
    taken = claims.claim(found.targets, dense)
    if not all(taken):
        found = found.kept(taken)
        dense, given = list(compress(dense, taken)), list(compress(given, taken))
    assigned = _assigned(found, alignment, method, generator)

    values, rooms = [slot.value for slot in found.sources], [slot.value for slot in found.targets]
    sizes = [value.nbytes for value in values]
    rescale = [
        rescales(method) and role == "weight" and room.dim() > 1 for role, room in zip(found.roles, rooms, strict=True)
    ]
    compiled = native() is not None
    direct = [
        compiled
        and to_dense
        and start > 0
        and regions.crop is not None
        and value.dtype == room.dtype
        and not rescaled
        and free
        for to_dense, start, regions, value, room, rescaled, free in zip(
            dense, given, assigned, values, rooms, rescale, claims.are_free(given, sizes), strict=True
        )
    ]
    targets = list(compress(found.targets, direct))
    return Plan(
        records=list(
            map(
                TensorRecord,
                [slot.name for slot in found.sources],
                [slot.name for slot in found.targets],
                [value.shape for value in values],
                [room.shape for room in rooms],
                [regions.source for regions in assigned],
                [regions.target for regions in assigned],
                [regions.elements for regions in assigned],
            )
        ),
        sources=found.sources,
        direct=DirectCopies(
            targets,
            list(compress(assigned, direct)),
            list(compress(given, direct)),
            [slot.value.data_ptr() for slot in targets],
        ),
        others=[
            Copy(found.sources[i], found.targets[i], assigned[i], _output_dim(alignment, found.pairs[i]), rescale[i])
            for i, is_direct in enumerate(direct)
            if not is_direct
        ],
        claims=claims,
    )


def _candidates(alignment: Alignment, giver: Tensors, receiver: Tensors, buffers: bool) -> _Candidates:
    """All tensors of matched layers that have the same role and number of dimensions."""
    found = _Candidates()
    add_pair, add_role = found.pairs.append, found.roles.append
    add_source, add_target = found.sources.append, found.targets.append
    source_names, target_names = alignment.source.names, alignment.target.names
    givers: dict[int, dict[str, Slot]] = {}  # one source layer may serve a run of target layers
    for pair, (s, t) in enumerate(alignment.indices):
        given = givers.get(s)
        if given is None:
            given = givers[s] = giver.layer(source_names[s], buffers)
        for role, target in receiver.layer(target_names[t], buffers).items():
            source = given.get(role)
            if source is not None and source.value.dim() == target.value.dim():
                add_pair(pair)
                add_role(role)
                add_source(source)
                add_target(target)
    return found


def _dense_starts(slots: Sequence[Slot]) -> list[int]:
    """Address of the first element of each tensor that is a dense array; 0 for others and for empty ones."""
    known: dict[int, int] = {}
    starts = []
    for slot in slots:
        start = known.get(id(slot))
        if start is None:
            start = known[id(slot)] = slot.value.data_ptr() if is_dense(slot.value) else 0
        starts.append(start)
    return starts


def _assigned(found: _Candidates, alignment: Alignment, method: str, generator: torch.Generator) -> list[Assigned]:
    """Regions of every tensor."""
    if crops(method):
        return [crop(s.value.shape, t.value.shape) for s, t in zip(found.sources, found.targets, strict=True)]
    assigned: list[Assigned] = []
    for pair, rows in groupby(range(len(found.pairs)), key=found.pairs.__getitem__):
        by_role = {found.roles[i]: (found.sources[i], found.targets[i]) for i in rows}
        if method == "magnitude":
            _check_valued([source for source, _ in by_role.values()])
        layers = LayerPair(
            {role: source.value for role, (source, _) in by_role.items()},
            {role: target.value.shape for role, (_, target) in by_role.items()},
            _output_dim(alignment, pair),
        )
        regions = assign(layers, method, generator)
        assigned += [regions[role] for role in by_role]
    return assigned


def _output_dim(alignment: Alignment, pair: int) -> int:
    kind = alignment.target.kinds[alignment.indices[pair][1]]
    return 1 if kind is not None and kind.startswith(_TRANSPOSED) else 0


def _check_valued(sources: Sequence[Slot]) -> None:
    for source in sources:
        if source.value.is_meta:
            raise TensorError(
                f"method='magnitude' chooses channels by their values, but {source.name} of shape "
                f"{tuple(source.value.shape)} is on the meta device; load weights first"
            )


class Claims:
    """Memory already promised to an earlier match, so that of tied tensors the first in target order wins."""

    def __init__(self) -> None:
        # Start and end address of each claim, in order of address; claims never overlap.
        self._starts: list[int] = []
        self._stops: list[int] = []

    def claim(self, slots: Sequence[Slot], dense: Sequence[bool]) -> list[bool]:
        """Claim the memory of tensors, in their order, all at once.

        Args:
            slots: Target tensors.
            dense: Whether each is a dense array.

        Returns:
            Whether each got its memory: nobody before it had claimed any of it.
        """
        if all(dense):
            extents = sorted([((start := slot.value.data_ptr()), start + slot.value.nbytes) for slot in slots])
            starts, stops = [start for start, _ in extents], [stop for _, stop in extents]
            if all(map(le, stops, starts[1:])):
                # Nothing is tied, which is the common case: one sort instead of a search per tensor.
                self._starts, self._stops = starts, stops
                return [True] * len(slots)
        return [self._claim(slot) for slot in slots]

    def is_free(self, tensor: torch.Tensor) -> bool:
        """Whether none of a tensor's memory is claimed."""
        return self._is_free(*_extent(tensor))

    def are_free(self, starts: Sequence[int], sizes: Sequence[int]) -> list[bool]:
        """Whether each of many ranges of addresses is free of claims; sizes are in bytes."""
        if not self._starts:
            return [True] * len(starts)
        start = np.array(starts, np.int64)
        stop = start + np.array(sizes, np.int64)
        claimed, ends = np.array(self._starts, np.int64), np.array(self._stops, np.int64)
        at = np.searchsorted(claimed, start, "right")
        below = (at == 0) | (ends[at - 1] <= start)
        above = (at == len(claimed)) | (stop <= claimed[np.minimum(at, len(claimed) - 1)])
        free: list[bool] = (below & above).tolist()
        return free

    def _claim(self, slot: Slot) -> bool:
        extents = [_extent(slot.value)] if slot.parametrization is None else [_extent(h.tensor) for h in slot.stored]
        if not all(self._is_free(*extent) for extent in extents):
            return False
        # The tensors of one parametrization may be tied to each other.
        return all(self._take(*extent) for extent in dict.fromkeys(extents))

    def _is_free(self, start: int, stop: int) -> bool:
        at = bisect_right(self._starts, start)
        return (at == 0 or self._stops[at - 1] <= start) and (at == len(self._starts) or stop <= self._starts[at])

    def _take(self, start: int, stop: int) -> bool:
        if not self._is_free(start, stop):
            return False
        at = bisect_right(self._starts, start)
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
