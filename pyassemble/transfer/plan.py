"""Which tensor of the source goes into which tensor of the target, and under which regions."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import compress, groupby
from operator import le
from typing import TYPE_CHECKING, Any, NamedTuple

from pyassemble.errors import TensorError
from pyassemble.network.backend import native
from pyassemble.transfer.checks import are_dense, check_kind, check_target, dtype_names, is_dense
from pyassemble.transfer.methods import Assigned, LayerPair, assign, crop, crops, rescales
from pyassemble.transfer.report import WrittenTensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    import torch

    from pyassemble.transfer.alignment import Alignment
    from pyassemble.transfer.tensors import ModuleTensors, Slot, Tensors

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


@dataclass
class Rows:
    """Tensors of one role in matched layers, as columns, in target order.

    Held so because a network has hundreds: a list per attribute instead of an object per tensor.

    Attributes:
        source_layers: Position of the source tensor's layer in its sequence.
        target_layers: That of the target tensor's.
        roles: Role of both in their layers.
        sources: The source tensors.
        targets: The target tensors.
    """

    source_layers: list[int] = field(default_factory=list)
    target_layers: list[int] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    sources: list[torch.Tensor] = field(default_factory=list)
    targets: list[torch.Tensor] = field(default_factory=list)

    def kept(self, wanted: Sequence[bool]) -> Rows:
        """The rows that are wanted."""
        return Rows(
            list(compress(self.source_layers, wanted)),
            list(compress(self.target_layers, wanted)),
            list(compress(self.roles, wanted)),
            list(compress(self.sources, wanted)),
            list(compress(self.targets, wanted)),
        )


class DirectCopies(NamedTuple):
    """Tensors whose values go over as they are, by centre crop between dense arrays of one dtype; as columns.

    Keeps no source alive: it goes when the transfer is done.

    Attributes:
        copies: The C++ core's copies, all made at once.
        receiver: The target's tensors.
        layers: Position of each target tensor's layer.
        roles: Its role.
        targets: The target tensors.
        source_shapes: Shapes of the source tensors.
        target_shapes: Shapes of the target tensors.
        dtypes: Names of their dtypes when they were written; a module may change dtype later.
    """

    copies: Any
    receiver: ModuleTensors
    layers: Sequence[int]
    roles: Sequence[str]
    targets: Sequence[torch.Tensor]
    source_shapes: Sequence[torch.Size]
    target_shapes: Sequence[torch.Size]
    dtypes: Sequence[str]


class Plan(NamedTuple):
    """What a transfer does.

    Attributes:
        rows: Every tensor that will be written.
        written: The receipt for them.
        direct: Those that the C++ core copies, all at once; None without any.
        direct_rows: Their positions among the rows.
        others: All others.
        claims: The memory that will be written, where there are others.
    """

    rows: Rows
    written: WrittenTensors
    direct: DirectCopies | None
    direct_rows: Sequence[int]
    others: Sequence[Copy]
    claims: Claims


def make_plan(
    alignment: Alignment,
    giver: Tensors,
    receiver: ModuleTensors,
    method: str,
    buffers: bool,
    generator: torch.Generator,
    dry_run: bool,
) -> Plan:
    """What a transfer copies, in target order; of tied target tensors the first match takes all.

    Raises:
        TensorError: A tensor that cannot be read or written.
    """
    rows, source_shapes, target_shapes = _rows(alignment, giver, receiver, buffers)
    core = native()
    if core is not None and crops(method) and not rescales(method) and not receiver.has_parametrized:
        direct = _all_direct(core, rows, receiver, source_shapes, target_shapes)
        if direct is not None:
            written = WrittenTensors(
                giver.names(),
                receiver.names(),
                rows.source_layers,
                rows.target_layers,
                rows.roles,
                source_shapes,
                target_shapes,
                None,
                direct.copies.elements,
            )
            return Plan(rows, written, direct, range(len(rows.roles)), (), Claims())
    return _mixed_plan(alignment, giver, receiver, rows, method, generator, dry_run)


def _rows(
    alignment: Alignment, giver: Tensors, receiver: ModuleTensors, buffers: bool
) -> tuple[Rows, list[torch.Size], list[torch.Size]]:
    """All tensors of matched layers that have the same role and number of dimensions, and their shapes."""
    rows = Rows()
    add_source_layer, add_target_layer = rows.source_layers.append, rows.target_layers.append
    add_role, add_source, add_target = rows.roles.append, rows.sources.append, rows.targets.append
    last, given = -1, giver.roles(alignment.indices[0][0], buffers) if alignment.indices else {}
    for s, t in alignment.indices:
        # One source layer may serve a run of target layers.
        if s != last:
            last, given = s, giver.roles(s, buffers)
        for role, target in receiver.roles(t, buffers).items():
            source = given.get(role)
            if source is not None and target is not None:
                add_source_layer(s)
                add_target_layer(t)
                add_role(role)
                add_source(source)
                add_target(target)
    source_shapes, target_shapes = [s.shape for s in rows.sources], [t.shape for t in rows.targets]
    source_ranks, target_ranks = list(map(len, source_shapes)), list(map(len, target_shapes))
    if source_ranks != target_ranks:
        alike = [s == t for s, t in zip(source_ranks, target_ranks, strict=True)]
        rows = rows.kept(alike)
        source_shapes, target_shapes = list(compress(source_shapes, alike)), list(compress(target_shapes, alike))
    return rows, source_shapes, target_shapes


def _all_direct(
    core: ModuleType,
    rows: Rows,
    receiver: ModuleTensors,
    source_shapes: list[torch.Size],
    target_shapes: list[torch.Size],
) -> DirectCopies | None:
    """Direct copies of all rows, which is the common case; None if they are not all dense, of one dtype and untied."""
    if not are_dense(rows.sources) or not are_dense(rows.targets):
        return None
    dtypes = dtype_names(rows.targets)
    if dtypes != dtype_names(rows.sources):
        return None
    direct = _direct(core, rows, receiver, source_shapes, target_shapes, dtypes)
    return direct if direct.copies.disjoint() else None


def _direct(
    core: ModuleType,
    rows: Rows,
    receiver: ModuleTensors,
    source_shapes: list[torch.Size],
    target_shapes: list[torch.Size],
    dtypes: list[str],
) -> DirectCopies:
    addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (rows.sources, rows.targets)]
    copies = core.Copies(*addresses, source_shapes, target_shapes, dtypes)
    columns = rows.target_layers, rows.roles, rows.targets, source_shapes, target_shapes, dtypes
    return DirectCopies(copies, receiver, *columns)


def _mixed_plan(
    alignment: Alignment,
    giver: Tensors,
    receiver: ModuleTensors,
    rows: Rows,
    method: str,
    generator: torch.Generator,
    dry_run: bool,
) -> Plan:
    """A plan tensor by tensor, where some need more than copying."""
    sources = list(map(giver.slot, rows.source_layers, rows.roles, rows.sources))
    targets = list(map(receiver.slot, rows.target_layers, rows.roles, rows.targets))
    readable = [is_dense(source.value) for source in sources]
    writable = [target.parametrization is None and is_dense(target.value) for target in targets]
    for source, target, from_dense, to_dense in zip(sources, targets, readable, writable, strict=True):
        if not from_dense:
            check_kind(source.name, source.value, "source", hollow=dry_run)
        if not to_dense:
            check_target(target, hollow=dry_run)
    claims = Claims()
    taken = claims.claim(targets, writable)
    if not all(taken):
        rows = rows.kept(taken)
        sources, targets = list(compress(sources, taken)), list(compress(targets, taken))
        readable, writable = list(compress(readable, taken)), list(compress(writable, taken))
    assigned = _assigned(rows, alignment, sources, method, generator)
    rescale = [
        rescales(method) and role == "weight" and target.dim() > 1
        for role, target in zip(rows.roles, rows.targets, strict=True)
    ]
    core = native()
    direct = [
        core is not None
        and crops(method)
        and from_dense
        and to_dense
        and source.dtype == target.dtype
        and not rescaled
        and claims.is_free(source)
        for from_dense, to_dense, source, target, rescaled in zip(
            readable, writable, rows.sources, rows.targets, rescale, strict=True
        )
    ]
    source_shapes, target_shapes = [s.shape for s in rows.sources], [t.shape for t in rows.targets]
    written = WrittenTensors(
        giver.names(),
        receiver.names(),
        rows.source_layers,
        rows.target_layers,
        rows.roles,
        source_shapes,
        target_shapes,
        assigned,
        sum([regions.elements for regions in assigned]),
    )
    copies = None
    if core is not None and any(direct):
        kept = rows.kept(direct)
        shapes = list(compress(source_shapes, direct)), list(compress(target_shapes, direct))
        copies = _direct(core, kept, receiver, *shapes, dtype_names(kept.targets))
    return Plan(
        rows,
        written,
        copies,
        [i for i, is_direct in enumerate(direct) if is_direct],
        [
            Copy(sources[i], targets[i], assigned[i], _output_dim(alignment, rows.target_layers[i]), rescale[i])
            for i, is_direct in enumerate(direct)
            if not is_direct
        ],
        claims,
    )


def _assigned(
    rows: Rows, alignment: Alignment, sources: Sequence[Slot], method: str, generator: torch.Generator
) -> list[Assigned]:
    """Regions of every tensor."""
    if crops(method):
        return [crop(s.shape, t.shape) for s, t in zip(rows.sources, rows.targets, strict=True)]
    assigned: list[Assigned] = []
    for layer, positions in groupby(range(len(rows.roles)), key=rows.target_layers.__getitem__):
        by_role = {rows.roles[i]: i for i in positions}
        if method == "magnitude":
            _check_valued([sources[i] for i in by_role.values()])
        pair = LayerPair(
            {role: rows.sources[i] for role, i in by_role.items()},
            {role: rows.targets[i].shape for role, i in by_role.items()},
            _output_dim(alignment, layer),
        )
        regions = assign(pair, method, generator)
        assigned += [regions[role] for role in by_role]
    return assigned


def _output_dim(alignment: Alignment, layer: int) -> int:
    kind = alignment.target.kinds[layer]
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
