"""Groups of interchangeable units: what a coupling of channels says once all of it is known."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pyassemble.errors import UnsupportedOperationError
from pyassemble.network.coupling import Site
from pyassemble.network.traced import holds_tensor

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyassemble.network.coupling import Coupling


# A site's number, and what stands there, in order.
_Occurrence = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class ChannelGroup:
    """Units that may stand for each other: wherever one of them occurs, each of the others occurs as often.

    Attributes:
        name: Of the group.
        layer: The layer or tensor that first produces its channels; several groups may be of one.
        unit: What is kept or dropped as a whole: "channel", "group" (of a grouped convolution) or "head".
        size: How many units there are.
    """

    name: str
    layer: str
    unit: str
    size: int


@dataclass(frozen=True)
class Groups:
    """The groups of a network.

    Attributes:
        groups: In the order in which the network first produces them.
        sites: Every dimension of a tensor in the state_dict that runs over channels, parameters used by themselves too.
        group_of: Group of each label.
        unit_of: Number, within its group, of the unit of each label.
    """

    groups: list[ChannelGroup]
    sites: list[Site]
    group_of: Tensor
    unit_of: Tensor


def find_groups(coupling: Coupling) -> Groups:
    """Groups of interchangeable units of a network.

    Two units are interchangeable if one layer produced both, directly or through others, and both occur equally often
    and in the same order along every dimension of every tensor, beside the same fixed numbers. The channels of a split
    whose halves go different ways are therefore two groups, although one convolution gives them; channels that a buffer
    scales by a number each, or that are added to the network's input, are groups of one.

    Raises:
        UnsupportedOperationError: A parameter runs over units along more than one of its dimensions.
    """
    units = coupling.units.classes(coupling.count)
    sites = coupling.sites + _parameter_sites(coupling, units)
    component = _components(coupling, units)
    members = np.unique(units)
    signatures = _signatures(coupling, sites, units)
    numbers: dict[tuple[int, tuple[_Occurrence, ...]], int] = {}
    group_of = np.full(coupling.count, -1, np.int64)
    unit_of = np.full(coupling.count, -1, np.int64)
    sizes: list[int] = []
    for unit in members.tolist():
        number = numbers.setdefault((int(component[unit]), tuple(signatures[unit])), len(numbers))
        if number == len(sizes):
            sizes.append(0)
        group_of[unit], unit_of[unit] = number, sizes[number]
        sizes[number] += 1
    kinds = _unit_kinds(coupling, units, group_of)
    layers = _layers(coupling, units, group_of, len(sizes))
    groups = [
        ChannelGroup(name, layer, kinds.get(k, "channel"), sizes[k])
        for k, (name, layer) in enumerate(zip(_numbered(layers), layers, strict=True))
    ]
    return Groups(groups, sites, torch.from_numpy(group_of[units]), torch.from_numpy(unit_of[units]))


def _signatures(coupling: Coupling, sites: list[Site], units: npt.NDArray[np.int64]) -> dict[int, list[_Occurrence]]:
    """Where each unit occurs: at each site its labels, told apart by the order in which they first occurred."""
    signatures: dict[int, list[_Occurrence]] = defaultdict(list)
    roles: dict[int, dict[int, int]] = defaultdict(dict)
    for number, site in enumerate(sites):
        found: dict[int, list[int]] = defaultdict(list)
        for label, unit in zip(site.labels.tolist(), units[site.labels.numpy()].tolist(), strict=True):
            known = roles[unit]
            found[unit].append(known.setdefault(label, len(known)))
        for unit, occurrence in found.items():
            signatures[unit].append((number, tuple(occurrence)))
    for number, (labels, places) in enumerate(coupling.marks, len(sites)):
        proper = labels >= 0
        found = defaultdict(list)
        for unit, place in zip(units[labels[proper].numpy()].tolist(), places[proper].tolist(), strict=True):
            found[unit].append(place)
        for unit, occurrence in found.items():
            signatures[unit].append((number, tuple(occurrence)))
    return signatures


def _parameter_sites(coupling: Coupling, units: npt.NDArray[np.int64]) -> list[Site]:
    """The dimension along which a parameter that is used by itself runs over units."""
    sites = []
    for node in coupling.graph.graph.nodes:
        labels = coupling.labels[node]
        if node.op != "get_attr" or labels is None:
            continue
        if not any(holds_tensor(coupling.facts[user]) for user in node.users):
            continue  # its shape or device is asked for, its numbers are not
        of_unit = torch.from_numpy(units)[labels]
        dims = [d for d in range(of_unit.ndim) if not bool((of_unit == of_unit.narrow(d, 0, 1)).all())]
        if len(dims) > 1:
            raise UnsupportedOperationError(
                f"parameter {node.target!r} {tuple(labels.shape)} runs over channels along dimensions {dims}; "
                "one was expected"
            )
        if not dims:
            dims = [d for d, size in enumerate(labels.shape) if size == 1][-1:]
        if not dims:
            raise UnsupportedOperationError(
                f"parameter {node.target!r} {tuple(labels.shape)} belongs to one network as a whole, no dimension of "
                "it runs over channels"
            )
        line = labels.movedim(dims[0], 0).reshape(labels.shape[dims[0]], -1)[:, 0]
        sites.append(Site(str(node.target), dims[0], line))
    return sites


def _components(coupling: Coupling, units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Component of each unit: what one layer produces belongs together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    chains = [np.unique(units[labels.reshape(-1).numpy()]) for labels in coupling.produced.values()]
    left = np.concatenate([np.zeros(0, np.int64), *(chain[:-1] for chain in chains)])
    right = np.concatenate([np.zeros(0, np.int64), *(chain[1:] for chain in chains)])
    graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(coupling.count, coupling.count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _unit_kinds(coupling: Coupling, units: npt.NDArray[np.int64], group_of: npt.NDArray[np.int64]) -> dict[int, str]:
    kinds: dict[int, str] = {}
    for label, kind in coupling.kinds.items():
        if label >= 0:
            group = int(group_of[units[label]])
            # A head made of groups of a grouped convolution is a head.
            kinds[group] = kind if kinds.get(group) != "head" else "head"
    return kinds


def _layers(coupling: Coupling, units: npt.NDArray[np.int64], group_of: npt.NDArray[np.int64], count: int) -> list[str]:
    """The first layer or tensor that produces each group's channels."""
    producer: dict[int, str] = {}
    for name, labels in coupling.produced.items():
        for group in np.unique(group_of[units[labels.reshape(-1).numpy()]]).tolist():
            producer.setdefault(group, name)
    return [producer.get(group, "input") for group in range(count)]


def _numbered(layers: list[str]) -> list[str]:
    """Names of groups: their layers', with a number from the second of a layer on."""
    taken: dict[str, int] = defaultdict(int)
    names = []
    for name in layers:
        taken[name] += 1
        names.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return names
