"""Named tensors → sequence of layers and blocks, where the module that held them is not known (SPEC 1.7).

A layer's kind is read from the shapes of its tensors and of its siblings, blocks from the dots in the names. Orders and
kinds found so are a guess, and the result is marked ``approximate``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pyassemble.errors import UnsupportedNetworkError
from pyassemble.network.blocks import Leaves, Tree, group
from pyassemble.network.layers import Element, Layer, LayerSequence

#: Shape of each tensor by its name.
Shapes = Mapping[str, tuple[int, ...]]

_CONVOLUTION = {3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
_BATCH_NORM = {3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}


@dataclass
class _Node:
    """A module as its tensors' names show it: its own tensors, and the modules inside."""

    tensors: dict[str, tuple[int, ...]] = field(default_factory=dict)
    children: dict[str, _Node] = field(default_factory=dict)


def standardize_state(shapes: Shapes, standardization: str, *, in_order: bool) -> LayerSequence:
    """Sequence of layers and blocks from names and shapes alone.

    Args:
        shapes: Shape by tensor name.
        standardization: ``"blocks"`` scores convolutions, linear layers and batch norms; ``"graph"`` every tensor.
        in_order: Whether the names are in definition order (a state_dict). Otherwise (a safetensors header is sorted)
            they are put in natural order, ``2`` before ``10``, and every normalization behind the sibling whose output
            it can follow.

    Raises:
        UnsupportedNetworkError: The tensors include the originals of a parametrized weight.
    """
    root = _Node()
    for name in shapes:
        if "parametrizations" in name.split("."):
            raise UnsupportedNetworkError(
                f"tensor {name!r} of shape {tuple(shapes[name])} is the original of a parametrized weight, which only "
                "its module can compute; pass the module, or remove the parametrizations before saving"
            )
        if 0 in shapes[name]:  # a weight without elements is none: its score would be 0 / 0
            continue
        *path, role = name.split(".")
        node = root
        for part in path:
            node = node.children.setdefault(part, _Node())
        node.tensors[role] = tuple(shapes[name])
    reader = _Reader(
        dimensions=max((len(shape) for name, shape in shapes.items() if name.endswith("weight")), default=0),
        everything=standardization == "graph",
        in_order=in_order,
    )
    tree = reader.tree(root, "")
    elements = group(tree, reader.leaves.counts, flatten_ties=True)
    return LayerSequence.of(reader.leaves.layers(), _without_lone_blocks(elements), approximate=True)


def _without_lone_blocks(elements: Iterable[Element]) -> Iterable[Element]:
    return (Element(start, stop, is_block and stop - start > 1) for start, stop, is_block in elements)


@dataclass
class _Reader:
    dimensions: int
    everything: bool
    in_order: bool
    leaves: Leaves = field(default_factory=Leaves)

    def tree(self, node: _Node, name: str) -> Tree:
        prefix = f"{name}." if name else ""
        kind = self._layer_kind(node)
        own: list[Tree] = []
        if kind is not None:
            counts = kind.startswith(("Conv", "Linear"))
            own.append(self.leaves.add(Layer(name, kind, node.tensors["weight"]), counts))
        elif self.everything:
            for role, shape in node.tensors.items():
                if not _accompanies(role, node.tensors):
                    own.append(self.leaves.add(Layer(prefix + role, f"Module.{role}", shape), False))
        children = [self.tree(child, prefix + part) for part, child in self._ordered(node.children)]
        children = [child for child in children if child != []]
        if len(own) == 1 and not children:
            return own[0]
        return own + children

    def _layer_kind(self, node: _Node) -> str | None:
        shape = node.tensors.get("weight")
        if shape is None:
            return None
        if len(shape) in _CONVOLUTION:
            depthwise = shape[1] == 1 and shape[0] > 1
            role = "depthwise" if depthwise else "weight"
            return self._kind(_CONVOLUTION[len(shape)], role)
        if len(shape) == 2:
            return self._kind("Linear")
        if len(shape) == 1 and "running_mean" in node.tensors:
            # Its own number of dimensions cannot be seen; the network's convolutions tell it.
            return self._kind(_BATCH_NORM.get(self.dimensions, "BatchNorm1d"))
        if len(shape) == 1 and self.everything:
            return self._kind("LayerNorm")
        return None

    def _kind(self, base: str, role: str = "weight") -> str:
        return f"{base}.{role}" if self.everything else base

    def _ordered(self, children: dict[str, _Node]) -> list[tuple[str, _Node]]:
        items = list(children.items())
        if self.in_order:
            return items
        items.sort(key=lambda item: natural_key(item[0]))
        return _norms_behind_their_layers(items)


def is_definition_order(shapes: Shapes) -> bool:
    """Whether a state_dict's names can be in definition order: they are not when a sorted file was read into it."""
    # Files sort by dtype before name, which puts integer counters apart.
    names = [name for name, shape in shapes.items() if shape != ()]
    return names != sorted(names)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which numbers inside a name compare by value: ``block2`` before ``block10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name))


def _accompanies(role: str, tensors: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a tensor goes with another of its module: the bias of a weight, or statistics without elements."""
    return tensors[role] == () or ("bias" in role and role.replace("bias", "weight") in tensors)


def _norms_behind_their_layers(items: list[tuple[str, _Node]]) -> list[tuple[str, _Node]]:
    """Move each one-dimensional weight behind a sibling with as many outputs, and the same number in its name if any.

    Sorted names put every ``bn1`` before ``conv1``; a norm follows the layer whose outputs it scales.
    """
    norms = [item for item in items if len(item[1].tensors.get("weight", ())) == 1 and not item[1].children]
    ordered = [item for item in items if item not in norms]
    taken: set[str] = set()
    for name, norm in norms:
        width = norm.tensors["weight"][0]
        hosts = [
            host
            for host, node in ordered
            if len(node.tensors.get("weight", ())) > 1 and node.tensors["weight"][0] == width and host not in taken
        ]
        numbered = [host for host in hosts if _trailing_number(host) == _trailing_number(name)]
        host = next(iter(numbered or hosts), None)
        if host is None:
            # Nothing to follow: it stays where its name sorts.
            at = next((i for i, item in enumerate(ordered) if natural_key(item[0]) > natural_key(name)), len(ordered))
        else:
            taken.add(host)
            at = next(i for i, item in enumerate(ordered) if item[0] == host) + 1
        ordered.insert(at, (name, norm))
    return ordered


def _trailing_number(name: str) -> str | None:
    found = re.search(r"\d+$", name)
    return found.group() if found else None
