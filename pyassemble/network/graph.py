"""Traced network → sequence of every tensor that carries weights, in execution order (``standardization="graph"``).

This lifts the limits of the publication's block standardization: layers come in the order in which the forward pass
uses them, and normalization, attention, embeddings, tokens, position embeddings and layer scale take part. Blocks are
found by the publication's rule on the module tree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from pyassemble.errors import UnsupportedNetworkError
from pyassemble.network.blocks import Leaves, Tree, group
from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.network.modules import CONVOLUTIONS, computed, refuse, traits, unwrap
from pyassemble.network.trace import use_order


def standardize_graph(network: nn.Module, example_input: Any = None) -> LayerSequence:
    """Sequence of all tensors that carry weights, in execution order.

    The kind of an element is its base class in torch (``Module`` for a class of its own) and the tensor's role in it,
    for example ``Conv2d.depthwise``, ``LayerNorm.weight``, ``Module.cls_token``. A bias, a batch norm's buffers and
    other tensors beside a ``weight`` belong to its element.

    Raises:
        UnsupportedNetworkError: A lazy, quantized, scripted or sharded network.

    Warns:
        StandardizationWarning: The network could not be traced; its layers are in definition order.
    """
    network = unwrap(network)
    leaves = Leaves()
    elements = group(_module_tree(network, "", leaves), leaves.counts)
    weighted = any(kind is not None for kind in leaves.kinds)
    return _in_order(leaves.layers(), elements, use_order(network, example_input) if weighted else {})


def _module_tree(module: nn.Module, name: str, leaves: Leaves) -> Tree:
    if traits(type(module)).refusal:
        refuse(module, name)
    prefix = f"{name}." if name else ""
    if module in leaves.first_names:
        # A module used twice holds its tensors once.
        return leaves.add(Layer(leaves.first_names[module], None, ()), False)
    leaves.first_names[module] = name

    own: list[Tree] = [
        leaves.add(Layer(name if role == "weight" else prefix + role, _kind(module, role), shape), counts)
        for role, shape, counts in _elements_of(module, prefix)
        if 0 not in shape
    ]
    inner = _children(module)
    if own and all(next(child.parameters(), None) is None for _, child in inner):
        # An activation inside a norm does not make the norm a container.
        return own[0] if len(own) == 1 else own
    children: list[Tree] = [_module_tree(child, prefix + child_name, leaves) for child_name, child in inner]
    if own or children:
        return own + children
    return leaves.add(Layer(name, None, ()), False)


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children in definition order, without the container in which torch keeps parametrizations."""
    hidden = parametrize.is_parametrized(module)
    return [(name, child) for name, child in module.named_children() if not (hidden and name == "parametrizations")]


def _elements_of(module: nn.Module, prefix: str) -> list[tuple[str, tuple[int, ...], bool]]:
    """Role, shape and whether it counts as a weight layer, of each tensor of a module that leads an element."""
    tensors = own_tensors(module)
    for role, tensor in tensors.items():
        if is_lazy(tensor):
            raise UnsupportedNetworkError(
                f"parameter {prefix + role!r} is lazy and has no shape yet; run one forward pass first"
            )
    if "weight" in tensors:
        return [("weight", tuple(tensors["weight"].shape), traits(type(module)).counts)]
    frozen = module._buffers.get("weight")
    if frozen is not None and "weight" not in module._non_persistent_buffers_set:
        # A frozen norm keeps what it learned in buffers.
        return [("weight", tuple(frozen.shape), False)]
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
        return [("running_mean", tuple(module.running_mean.shape), False)]
    return [
        (role, tuple(tensor.shape), isinstance(module, nn.MultiheadAttention) and role.endswith("proj_weight"))
        for role, tensor in tensors.items()
        if not _follows(role, tensors)
    ]


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that a module itself holds, parametrized ones by their computed value."""
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(recurse=False))
    if parametrize.is_parametrized(module):
        parametrizations = module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        tensors.update((role, computed(module, role)) for role in parametrizations)
    return tensors


def _follows(role: str, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a tensor is the bias of another in its module (``in_proj_bias`` of ``in_proj_weight``)."""
    return "bias" in role and role.replace("bias", "weight") in tensors


def _kind(module: nn.Module, role: str) -> str:
    if isinstance(module, nn.MultiheadAttention) and role.endswith("proj_weight"):
        # The stacked projections of q, k and v are the weight of one linear layer.
        return "Linear.weight"
    if isinstance(module, CONVOLUTIONS) and role == "weight" and module.groups > 1:
        role = "depthwise" if module.groups == module.in_channels else "grouped"
    return f"{_torch_base(type(module))}.{role}"


def _torch_base(kind: type[nn.Module]) -> str:
    """The torch layer class a module is or derives from; ``Module`` for a class of the user's own."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules.") and not base.__name__.startswith("_"):
            return "Linear" if issubclass(base, nn.Linear) else base.__name__
    return "Module"


def _in_order(layers: list[Layer], elements: list[Element], order: dict[str, int]) -> LayerSequence:
    """Weighted layers only, blocks and the layers inside them sorted by first use."""
    # A layer that was not seen stays behind the one before it in definition order.
    positions: list[int] = []
    for layer in layers:
        before = positions[-1] if positions else -1
        found = order.get(f"{layer.name}.weight", order.get(layer.name))
        positions.append(before if found is None else found)

    groups: list[tuple[int, list[int], bool]] = []
    for element in elements:
        members = [i for i in range(element.start, element.stop) if layers[i].kind is not None]
        if members:
            members.sort(key=positions.__getitem__)
            groups.append((positions[members[0]], members, element.is_block and len(members) > 1))
    groups.sort(key=lambda item: item[0])

    ordered: list[Layer] = []
    tops: list[Element] = []
    for _, members, is_block in groups:
        tops.append(Element(len(ordered), len(ordered) + len(members), is_block))
        ordered.extend(layers[i] for i in members)
    return LayerSequence.of(ordered, tops)
