"""Slicing a traced network into modules that run one after the other."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_all

from pyassemble.network.graph_module import BATCHES, TensorShape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pyassemble.network.graph_module import TracedNetwork, Value


def sliced(graph: TracedNetwork, cuts: Sequence[fx.Node], ends: Sequence[int]) -> list[nn.Module]:
    """Modules that together compute what the network does, each from what the one before returns.

    Args:
        graph: The network.
        cuts: Steps whose values cross from one module to the next, in order.
        ends: Position of the last step of each module but the last, as many as ``cuts``.

    Returns:
        One module more than there are cuts, in eval mode. They share the tensors of the graph's modules, and each of
        its tensors is in exactly one.
    """
    nodes = list(graph.module.graph.nodes)
    edges = [-1, *ends, len(nodes) - 1]
    entries = [graph.input, *cuts]
    modules: list[nn.Module] = []
    for k, (before, last) in enumerate(pairwise(edges)):
        part = [node for node in nodes[before + 1 : last + 1] if node.op not in ("placeholder", "output")]
        leaves = cuts[k] if k < len(cuts) else nodes[-1].args[0]
        modules.append(_module(graph, part, entries[k], leaves, "Segment" if k < len(cuts) else "Head"))
    _place_unused(graph.root, modules)
    return [module.eval() for module in modules]


def is_restorable(value: Value) -> bool:
    """Whether a value without tensors can be computed from the size of a batch."""
    return tree_all(lambda leaf: leaf is not _UNKNOWN, _restored(value.small, value.large))


class _Unknown:
    pass


class _TimesBatch:
    """An integer that is a multiple of the number of images."""

    def __init__(self, factor: int) -> None:
        self.factor = factor


_UNKNOWN = _Unknown()


def _restored(small: Any, large: Any) -> Any:
    """A value from its two instances: constants as they are, the rest as a multiple of the batch."""
    if isinstance(small, TensorShape):
        return _UNKNOWN
    if isinstance(small, tuple | list) and isinstance(large, tuple | list) and len(small) == len(large):
        return tuple(_restored(*pair) for pair in zip(small, large, strict=True))
    if isinstance(small, bool | float | str | torch.dtype | torch.device | None):
        return small if small == large else _UNKNOWN
    if isinstance(small, int) and isinstance(large, int):
        if small == large:
            return small
        if small * BATCHES[1] == large * BATCHES[0] and small % BATCHES[0] == 0:
            return _TimesBatch(small // BATCHES[0])
    return _UNKNOWN


def _module(graph: TracedNetwork, part: Sequence[fx.Node], entry: fx.Node, result: Any, name: str) -> fx.GraphModule:
    """The steps of ``part`` as a module that takes the value of ``entry`` and returns ``result``."""
    new = fx.Graph()
    images = new.placeholder("x")
    inputs = {entry: _own_memory(graph, entry, part, images)}

    def taken(node: fx.Node) -> Any:
        if node not in inputs:
            value = graph.values[node]
            inputs[node] = _insert(_restored(value.small, value.large), images)
        return inputs[node]

    for node in part:
        inputs[node] = new.node_copy(node, taken)
    new.output(fx.map_arg(result, taken))
    for node in new.nodes:
        node.meta.clear()
    return fx.GraphModule(graph.module, new, name)


def _insert(value: Any, images: fx.Node) -> Any:
    """A restored value as an argument; what depends on the batch is read off the images that come in."""
    if isinstance(value, tuple):
        return tuple(_insert(item, images) for item in value)
    if isinstance(value, torch.device):  # the modules may have been moved since
        return images.graph.call_function(getattr, (images, "device"))
    if isinstance(value, _TimesBatch):
        batch = images.graph.call_method("size", (images, 0))
        return images.graph.call_function(int.__mul__, (batch, value.factor)) if value.factor > 1 else batch
    return value


def _own_memory(graph: TracedNetwork, entry: fx.Node, part: Sequence[fx.Node], images: fx.Node) -> fx.Node:
    """A copy of what comes in where a step would overwrite it: others may read it too."""
    inside = set(part)
    pending, seen = [entry], {entry}
    while pending:
        node = pending.pop()
        for user in node.users:
            if user not in inside or user in seen:
                continue
            if _works_in_place(graph, user):
                return images.graph.call_method("clone", (images,))
            if _may_view(graph, user):
                seen.add(user)
                pending.append(user)
    return images


def _works_in_place(graph: TracedNetwork, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = graph.module.get_submodule(str(node.target))
        return any(getattr(inner, "inplace", False) for inner in module.modules())
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place_name = name.endswith("_") and not name.endswith("__")
    return in_place_name or name == "setitem" or bool(node.kwargs.get("inplace", False)) or "out" in node.kwargs


_VIEWS = frozenset(
    (
        *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "squeeze", "unsqueeze"),
        *("expand", "expand_as", "view_as", "getitem", "chunk", "split", "unbind", "narrow", "select", "movedim"),
        *("contiguous", "to", "float", "type_as", "t", "dropout", "getattr"),
    )
)


def _may_view(graph: TracedNetwork, node: fx.Node) -> bool:
    """Whether a step may return the memory that it was given."""
    if node.op == "call_module":
        module = graph.module.get_submodule(str(node.target))
        return not any(True for _ in chain(module.parameters(), module.buffers()))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _VIEWS


def _place_unused(root: nn.Module, modules: Sequence[nn.Module]) -> None:
    """Puts each tensor that no step uses where others of its module are, or else that defined before it."""
    homes = {id(tensor): module for module in modules for tensor in _tensors(module)}
    home = modules[0]
    for path, module in root.named_modules():
        own = dict(chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)))
        unused = {name: tensor for name, tensor in own.items() if id(tensor) not in homes}
        home = next((homes[id(tensor)] for tensor in _tensors(module) if id(tensor) in homes), home)
        for name, tensor in unused.items():
            _register(home, f"{path}.{name}" if path else name, tensor)
            homes[id(tensor)] = home


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _register(holder: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Gives a module a tensor under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in holder._modules:
            holder.add_module(part, nn.Module())
        holder = holder.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        holder.register_parameter(last, tensor)
    else:
        holder.register_buffer(last, tensor)
