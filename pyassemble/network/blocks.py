"""Module tree → sequence of layers and blocks, exactly as DPIAT publishes it (``standardization="blocks"``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.network.modules import Traits, children, refuse, traits, unwrap, weight_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

#: Index of a layer, or the indices of a block's layers. Deeper nesting exists only while the walk is under way.
Content = int | list["Content"]


#: Index of a leaf, or the trees of a module's children in order.
Tree = int | list["Tree"]


@dataclass
class Leaves:
    """The leaves of a module tree from left to right, as columns.

    Attributes:
        names: Name of each leaf.
        kinds: What it may be paired with; None where it carries no weight.
        shapes: Shape of its weight.
        counts: Whether it counts as a convolution or linear layer.
        modules: The module of each, where modules are what was walked.
        first_names: First name of every module met.
    """

    names: list[str] = field(default_factory=list)
    kinds: list[str | None] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    counts: list[bool] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    first_names: dict[nn.Module, str] = field(default_factory=dict)

    def add(self, layer: Layer, counts: bool) -> int:
        """Index of a new leaf."""
        self.names.append(layer.name)
        self.kinds.append(layer.kind)
        self.shapes.append(layer.shape)
        self.counts.append(counts)
        return len(self.counts) - 1

    def layers(self) -> list[Layer]:
        """The leaves one by one."""
        return list(map(Layer, self.names, self.kinds, self.shapes))


def standardize_blocks(network: nn.Module) -> LayerSequence:
    """Sequence of layers and blocks in definition order: the first result of :func:`blocks_and_modules`."""
    return blocks_and_modules(network)[0]


def blocks_and_modules(network: nn.Module) -> tuple[LayerSequence, list[nn.Module]]:
    """Sequence of layers and blocks in definition order (DPIAT, arXiv 2212.13970, standardization).

    Layers are the scored classes and every module without children; a module reached twice keeps its first name, and
    takes its place twice, as in the publication.

    Returns:
        The sequence, and the module of each of its layers.

    Raises:
        UnsupportedNetworkError: A lazy, quantized, scripted or sharded network.
    """
    network = unwrap(network)
    leaves = Leaves()
    known = traits(type(network))
    is_leaf = known.base is not None or not children(network)
    tree: Tree = _leaf(network, "", known, leaves) if is_leaf else _child_trees(network, "", leaves)
    elements = group(tree, leaves.counts)
    layers = LayerSequence(tuple(leaves.names), tuple(leaves.kinds), tuple(leaves.shapes), tuple(elements))
    return layers, leaves.modules


def _child_trees(module: nn.Module, prefix: str, leaves: Leaves) -> list[Tree]:
    trees: list[Tree] = []
    for name, child in children(module):
        known = traits(type(child))
        # Three of four modules are leaves: they are told apart here, before a call is made for them.
        if known.base is None and child._modules:
            if known.refusal:
                refuse(child, prefix + name)
            inside = _child_trees(child, f"{prefix}{name}.", leaves)
            if inside:
                trees.append(inside)
                continue
        trees.append(_leaf(child, prefix + name, known, leaves))
    return trees


def _leaf(module: nn.Module, name: str, known: Traits, leaves: Leaves) -> int:
    base, counts, refusal = known
    if refusal:
        refuse(module, name)
    shape: tuple[int, ...] = ()
    if base is not None:
        # Most layers hold their weight themselves: read here, a sequence is made a tenth faster.
        weight = module._parameters.get("weight")
        found = weight_shape(module) if weight is None else tuple(weight.shape)
        # A weight without elements is none: its score would be 0 / 0.
        if found is None or 0 in found:
            base = None
        else:
            shape = found
    leaves.names.append(leaves.first_names.setdefault(module, name))
    leaves.kinds.append(base)
    leaves.shapes.append(shape)
    leaves.counts.append(counts)
    leaves.modules.append(module)
    return len(leaves.modules) - 1


def group(tree: Tree, counts: Sequence[bool], *, flatten_ties: bool = False) -> list[Element]:
    """Group the leaves of a tree into single layers and blocks, by the publication's rule.

    Args:
        tree: Leaves numbered 0, 1, 2, … from left to right.
        counts: Whether each leaf counts as a convolution or linear layer.
        flatten_ties: Whether a module with as many single layers as blocks is flattened too. The publication keeps it;
            where weightless layers are not known, they would have tipped the balance.
    """
    content = tree if isinstance(tree, int) else _grouped(tree, counts, 0, flatten_ties)[2]
    top = content if isinstance(content, list) else [content]
    return [_element(item) for item in top]


def _element(item: Content) -> Element:
    # The walk keeps the order of the leaves, so a block is a range of them.
    if isinstance(item, int):
        return Element(item, item + 1, False)
    first, last = item[0], item[-1]
    assert isinstance(first, int)
    assert isinstance(last, int)
    return Element(first, last + 1, True)


def _grouped(tree: list[Tree], counts: Sequence[bool], level: int, flatten_ties: bool) -> tuple[int, int, Content]:
    """Depth, number of convolution and linear layers inside, and content of a module's tree (SPEC 1.1)."""
    next_level = level if len(tree) == 1 else level + 1
    counted = 0
    items: list[Content] = []
    for child in tree:
        if isinstance(child, int):
            counted += counts[child]
            items.append(child)
            continue
        depth, child_counted, content = _grouped(child, counts, next_level, flatten_ties)
        counted += child_counted
        if isinstance(content, list) and (depth > 1 or child_counted < 2):
            items.extend(content)
        else:
            items.append(content)

    blocks = sum(isinstance(item, list) for item in items)
    depth = 2
    if len(items) - blocks + flatten_ties > blocks and level > 0:
        items = _flattened(items)
        depth = 1
    if len(items) == 1:
        return 1, counted, items[0]
    return depth, counted, items


def _flattened(items: Sequence[Content]) -> list[Content]:
    flat: list[Content] = []
    for item in items:
        if isinstance(item, list):
            flat.extend(item)
        else:
            flat.append(item)
    return flat
