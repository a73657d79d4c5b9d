"""Module tree → sequence of layers and blocks, exactly as DPIAT publishes it (``standardization="blocks"``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.network.modules import children, lazy_error, traits, unwrap, weight_shape

#: Index of a layer, or the indices of a block's layers. Deeper nesting exists only while the walk is under way.
Content = int | list["Content"]


class Leaf(NamedTuple):
    """A leaf of the tree that is grouped: a layer's index, and whether it counts as a convolution or linear layer."""

    index: int
    counts: bool


#: A leaf, or the trees of a module's children in order.
Tree = Leaf | list["Tree"]


def standardize_blocks(network: nn.Module) -> LayerSequence:
    """Sequence of layers and blocks in definition order (DPIAT, arXiv 2212.13970, standardization).

    Layers are the scored classes and every module without children; a module reached twice keeps its first name, and
    takes its place twice, as in the publication.

    Raises:
        UnsupportedNetworkError: A lazy, quantized, scripted or sharded network.
    """
    network = unwrap(network)
    layers: list[Layer] = []
    names: dict[nn.Module, str] = {}
    tree = _module_tree(network, "", layers, names)
    return LayerSequence(tuple(layers), tuple(group(tree)))


def _module_tree(module: nn.Module, name: str, layers: list[Layer], names: dict[nn.Module, str]) -> Tree:
    base, counts, lazy = traits(type(module))
    if base is None:
        inside = children(module)
        if inside:
            prefix = f"{name}." if name else ""
            return [_module_tree(child, prefix + child_name, layers, names) for child_name, child in inside]
    if lazy:
        raise lazy_error(module, name)
    name = names.setdefault(module, name)
    shape = weight_shape(module) if base is not None else None
    # A weight without elements is none: its score would be 0 / 0.
    layers.append(Layer(name, None, ()) if shape is None or 0 in shape else Layer(name, base, shape))
    return Leaf(len(layers) - 1, counts)


def group(tree: Tree, *, flatten_ties: bool = False) -> list[Element]:
    """Group the leaves of a tree into single layers and blocks, by the publication's rule.

    Args:
        tree: Leaves numbered 0, 1, 2, … from left to right.
        flatten_ties: Whether a module with as many single layers as blocks is flattened too. The publication keeps it;
            where weightless layers are not known, they would have tipped the balance.
    """
    content = _grouped(tree, 0, flatten_ties)[2]
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


def _grouped(tree: Tree, level: int, flatten_ties: bool) -> tuple[int, int, Content]:
    """Depth, number of convolution and linear layers inside, and content of a tree (SPEC 1.1)."""
    if isinstance(tree, Leaf):
        return 0, int(tree.counts), tree.index

    next_level = level if len(tree) == 1 else level + 1
    counted = 0
    items: list[Content] = []
    for child in tree:
        depth, child_counted, content = _grouped(child, next_level, flatten_ties)
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
