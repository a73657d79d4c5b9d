"""From a wide student to a network of chosen units: the original class, or the original graph with other widths."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyassemble.errors import OutOfRangeError
from pyassemble.merge.layers import resized

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pyassemble.merge.layout import Places
    from pyassemble.merge.widen import Widened
    from pyassemble.network.groups import Groups


def largest(loc: Tensor, count: int) -> Tensor:
    """Numbers of the units with the largest ``loc``, ties to the lower number, in original order (Merging)."""
    order = torch.argsort(loc.detach().cpu().double(), descending=True, stable=True)
    return torch.sort(order[:count]).values


def check_kept(name: str, kept: Tensor, available: int) -> Tensor:
    """The caller's choice of units of one group, sorted.

    Raises:
        OutOfRangeError: It is empty, not of integers, repeats a unit, or names one that does not exist.
    """
    flat = torch.as_tensor(kept).cpu()
    if flat.ndim != 1 or flat.dtype not in (torch.int64, torch.int32) or len(flat) == 0:
        raise OutOfRangeError(
            f"group {name!r}: kept units {tuple(flat.shape)} of {flat.dtype}; a non-empty 1-d LongTensor is expected"
        )
    if int(flat.min()) < 0 or int(flat.max()) >= available or len(set(flat.tolist())) < len(flat):
        raise OutOfRangeError(f"group {name!r}: kept units must be different numbers in [0, {available})")
    return torch.sort(flat.long()).values


def chosen_units(groups: Groups, teachers: int, numbers: Sequence[Tensor]) -> list[Tensor]:
    """Masks (N, size) from numbers of units, which count through the first teacher's, then the second's, and so on."""
    masks = []
    for group, kept in zip(groups.groups, numbers, strict=True):
        mask = torch.zeros(teachers * group.size, dtype=torch.bool)
        mask[kept] = True
        masks.append(mask.reshape(teachers, group.size))
    return masks


def original_state(
    wide: Mapping[str, Tensor],
    template: nn.Module,
    places: Mapping[str, Mapping[int, Places]],
    groups: Groups,
    numbers: Sequence[Tensor],
) -> dict[str, Tensor]:
    """State of a network of the original widths from the state of the wide student.

    Slot k of a group takes the k-th kept unit: wherever unit k occurs in the original architecture for the j-th time,
    the j-th occurrence of the kept unit is put.

    Args:
        wide: State of the wide student by the original's names.
        template: A network of the original class.
        places: Where teachers' channels lie in each wide tensor, by dimension.
        groups: Of the architecture.
        numbers: Kept units of each group, as many as it has units.
    """
    labels = {(site.tensor, site.dim): site.labels for site in groups.sites}
    # Its own values where the wide student has none: index tables, and layers that evaluation does not use.
    state = template.state_dict()
    for name, own in state.items():
        value = wide.get(name, own)
        for dim, where in places.get(name, {}).items():
            index = _source_positions(labels[name, dim], where, groups, numbers)
            value = value.index_select(dim, index.to(value.device))
        state[name] = value.detach().clone().reshape(own.shape)
    return state


def _source_positions(labels: Tensor, where: Places, groups: Groups, numbers: Sequence[Tensor]) -> Tensor:
    """Position in the wide tensor that each position of the original is taken from."""
    group, unit = groups.group_of[labels].tolist(), groups.unit_of[labels].tolist()
    occurrences: dict[tuple[int, int], list[int]] = {}
    for place, key in enumerate(zip(group, unit, strict=True)):
        occurrences.setdefault(key, []).append(place)
    position = {key: p for p, key in enumerate(zip(where.teacher.tolist(), where.index.tolist(), strict=True))}
    result = torch.empty(len(labels), dtype=torch.int64)
    for (g, slot), places in occurrences.items():
        teacher, source = divmod(int(numbers[g][slot]), groups.groups[g].size)
        for place, original in zip(places, occurrences[g, source], strict=True):
            result[place] = position[teacher, original]
    return result


def with_outputs(template: nn.Module, layers: Collection[str], wide: Mapping[str, Tensor]) -> nn.Module:
    """A network like the template whose output layers have as many outputs as the wide student's."""
    network = copy.deepcopy(template)
    for name in layers:
        layer: Any = network.get_submodule(name)
        into, out = (0, 1) if getattr(layer, "transposed", False) else (1, 0)
        shape = list(layer.weight.shape)
        shape[out] = wide[f"{name}.weight"].shape[out]
        bias = None if layer.bias is None else wide[f"{name}.bias"]
        wider = resized(layer, layer.weight.new_zeros(shape), bias, entering=shape[into], leaving=shape[out])
        path, _, last = name.rpartition(".")
        setattr(network.get_submodule(path), last, wider)
    return network


def plain_copy(template: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A network of the original class with a given state, which it takes over without copying."""
    network = copy.deepcopy(template)
    network.load_state_dict(state, strict=True, assign=True)
    return network


def resized_state(
    wide: Mapping[str, Tensor], small: Widened, places: Mapping[str, Mapping[int, Places]]
) -> dict[str, Tensor]:
    """State of a network that consists of some of the wide student's units, in the student's order.

    Args:
        wide: State of the wide student by the original's names.
        small: The network to fill.
        places: Where teachers' channels lie in each wide tensor, by dimension.
    """
    pieces = {part.name: (name, part) for name, parts in small.parts.items() for part in parts}
    state: dict[str, Tensor] = {}
    for held in small.graph.state_dict():
        name, part = pieces.get(held, (held, None))
        value = wide[name]
        for dim, mine in small.places.get(name, {}).items():
            wanted = mine if part is None or dim not in part.positions else mine.taken(part.positions[dim])
            index = torch.tensor(_positions(wanted, places[name][dim]))
            value = value.index_select(dim, index.to(value.device))
        state[held] = value.detach().clone()
    return state


def _positions(mine: Places, where: Places) -> list[int]:
    position = {key: p for p, key in enumerate(zip(where.teacher.tolist(), where.index.tolist(), strict=True))}
    return [position[key] for key in zip(mine.teacher.tolist(), mine.index.tolist(), strict=True)]
