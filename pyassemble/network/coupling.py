"""Which channels of a network belong together, read from its traced graph.

The walk gives every tensor of the graph labels (see ``labels``): each layer that mixes channels, and each parameter
used by itself, brings new ones, and every other operation says how labels of its inputs and output relate. What comes
out are *groups* of interchangeable *units*, and for every dimension of every tensor in the state_dict the labels along
it: all that widening, gating and compressing need to know of an architecture.

torch-pruning's DependencyGraph answers a part of this. bench/coupling_comparison.py put both beside each other on 60
architectures of torchvision and timm, each library with 90 s and 5 GiB for a network: of the 39 that both took, 31 gave
the same coupled layers. Of the other 8, 5 differ in grouped convolutions whose two sides are one group of whole units
here and separate there (a RegNet, CPUBone, DLA, an NFNet, FastViT); in DPN, torch-pruning also ties what is only
concatenated; in EVA-02 it does not see a layer whose weight a function uses; FasterNet was not looked into.
torch-pruning did not take 14: 5 errors, 5 out of time, 4 out of memory. This walk refused 12 by the name of a node or
module; 7 of these torch-pruning took, as pruning needs no mean of several networks. A walk of our own is used because
merging needs what pruning does not: which operation is not understood, the order of channels through reshapes and
concatenations, heads, and parameters used by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import map_arg

from pyassemble.errors import UnsupportedOperationError
from pyassemble.network import operations as ops
from pyassemble.network.labels import SHARED, Relation, compact, full, varying
from pyassemble.network.traced import describe, holds_tensor, is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import NoReturn

    from torch import fx

    from pyassemble.network.traced import Traced

Labels = Any
"""Labels of a node's value: a tensor, None where it does not depend on any channel, or a tuple of these."""


@dataclass(frozen=True)
class Site:
    """A dimension of a tensor in the state_dict that runs over channels.

    Attributes:
        tensor: Its name.
        dim: The dimension.
        labels: (size,) what lies along it.
    """

    tensor: str
    dim: int
    labels: Tensor


@dataclass
class Coupling:
    """What the walk found.

    Attributes:
        graph: The traced network.
        facts: What each node gives on the example input.
        labels: Labels of each node's value.
        outputs: The layers whose results are averaged.
        sites: Dimensions of the state_dict's tensors, in order of use.
        mixing: Labels that enter each layer that mixes channels, by its node.
        spanning: Dimension of the channels of each normalization whose statistics span channels, by its node.
        produced: Labels that were born together, by the name of the layer or tensor that bore them.
        kinds: What ties the channels of a unit together, by one of its labels: "head" or "group".
        channels: The same channel.
        units: Kept or dropped together.
        held: Parameters that a function, not a module, uses as the weight of a linear layer.
        marks: Labels beside numbers that tell their channels apart without belonging to any network (a fixed scale for
            each channel, the network's input), as (labels, numbers of equal ones) of equal length.
        filled: Labels of what belongs to no network in particular and is joined with channels, by the joining node and
            its place there.
        count: How many labels there are.
    """

    graph: fx.GraphModule
    facts: dict[fx.Node, Any]
    outputs: set[fx.Node]
    attention_dropouts: dict[fx.Node, float]
    labels: dict[fx.Node, Labels] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    mixing: dict[fx.Node, Tensor] = field(default_factory=dict)
    spanning: dict[fx.Node, int] = field(default_factory=dict)
    produced: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    channels: Relation = field(default_factory=Relation)
    units: Relation = field(default_factory=Relation)
    held: set[fx.Node] = field(default_factory=set)
    marks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    filled: dict[tuple[fx.Node, int], Tensor] = field(default_factory=dict)
    count: int = 0


def couple(traced: Traced, outputs: set[fx.Node], owned: Collection[str]) -> Coupling:
    """Walks a traced network once.

    Args:
        traced: A network's graph.
        outputs: From :func:`~pyassemble.network.outputs.output_layers`.
        owned: Names of the tensors that each network has its own values of. Others, such as index tables, are alike in
            all networks that are merged.

    Raises:
        UnsupportedOperationError: An operation is not known, or relates channels in a way that has no unit.
    """
    result = Coupling(traced.graph, traced.facts, outputs, traced.attention_dropouts)
    walk = _Walk(result, frozenset(owned))
    for node in traced.graph.graph.nodes:
        result.labels[node] = walk.labels_of(node)
    result.units.include(result.channels)
    return result


class _Walk:
    def __init__(self, result: Coupling, owned: frozenset[str]) -> None:
        self.result = result
        self.owned = owned
        self.root = result.graph
        self.used: set[str] = set()
        self.called = {str(node.target) for node in result.graph.graph.nodes if node.op == "call_module"}

    # -- What rules are written with ---------------------------------------------------------------------------------

    def refuse(self, node: fx.Node, why: str) -> NoReturn:
        raise UnsupportedOperationError(f"{describe(node, self.root)} of {type(self.root).__name__} {why}")

    def new(self, *shape: int) -> Tensor:
        first = self.result.count
        self.result.count += torch.Size(shape).numel()
        return torch.arange(first, self.result.count).reshape(shape)

    def born(self, name: str, count: int) -> Tensor:
        self.result.produced[name] = labels = self.new(count)
        return labels

    def site(self, tensor: str, dim: int, labels: Tensor) -> None:
        self.result.sites.append(Site(tensor, dim, labels))

    def fact(self, node: Any) -> Any:
        return self.result.facts[node]

    def given(self, argument: Any) -> Labels:
        return self.result.labels.get(argument) if hasattr(argument, "meta") else None

    def line(self, node: fx.Node, labels: Tensor, dim: int, size: int) -> Tensor:
        """Labels along the one dimension on which a layer expects channels."""
        dim %= labels.ndim
        if any(d != dim for d in varying(labels)):
            places = [d for d in varying(labels) if d != dim]
            self.refuse(node, f"applies one weight to channels on dimension {places[0]} of its input alike")
        labels = labels.movedim(dim, 0).reshape(-1).expand(size)
        if bool((labels == SHARED).any()):
            self.refuse(node, "takes a mean over channels, which belongs to one network, for a channel")
        return labels

    def tie(self, left: Tensor, right: Tensor, kind: str) -> None:
        self.result.units.relate(left, right)
        for label in left.reshape(-1).tolist():
            self.result.kinds.setdefault(label, kind)

    def mark(self, labels: Tensor, argument: fx.Node, ndim: int) -> None:
        """Notes which channels an operand that belongs to no network in particular treats differently."""
        value = self.fact(argument)
        if not is_tensor(value) or value.ndim > ndim:
            return
        shape = [1] * (ndim - value.ndim) + list(value.shape)
        dims = [dim for dim in varying(labels) if shape[dim] > 1]
        if not dims:
            return
        sizes = [shape[dim] for dim in dims]
        numbers = self.fixed(argument)
        if numbers is None:  # the network's input, or what comes of it: every place is another
            places = torch.arange(torch.Size(sizes).numel())
        else:
            rows = numbers.detach().cpu().reshape(shape).movedim(dims, list(range(len(dims)))).flatten(0, len(dims) - 1)
            places = torch.unique(rows.reshape(len(rows), -1), dim=0, return_inverse=True)[1]
        along = places.reshape([shape[dim] if dim in dims else 1 for dim in range(ndim)])
        if bool((places == places[0]).all()):
            return
        both = torch.broadcast_tensors(labels, along)  # type: ignore[no-untyped-call]
        self.result.marks.append((both[0].reshape(-1), both[1].reshape(-1)))

    def fixed(self, node: fx.Node) -> Tensor | None:
        """Value of a tensor that is a buffer or computed from buffers alone."""
        if node.op == "get_attr":
            value = self.root
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value if is_tensor(value) else None  # type: ignore[return-value]
        value = self.fact(node)
        return value if is_tensor(value) and not value.is_meta else None

    # -- Dispatch ----------------------------------------------------------------------------------------------------

    def labels_of(self, node: fx.Node) -> Labels:
        if node.op == "get_attr":
            return self.attribute(node)
        if node.op == "call_module":
            return self.module(node, self.root.get_submodule(str(node.target)))
        if node.op in ("call_function", "call_method"):
            return self.operation(node)
        return None

    def attribute(self, node: fx.Node) -> Labels:
        name, value = str(node.target), self.fact(node)
        if not is_tensor(value) or not value.is_floating_point() or name not in self.owned:
            return None
        computing = [user for user in node.users if holds_tensor(self.fact(user))]
        if computing and name.rpartition(".")[0] in self.called:
            self.refuse(node, f"is used by {describe(computing[0], self.root)} and by its own module as well")
        if node.users and all(ops.is_weight_of(node, user) for user in node.users):
            self.result.held.add(node)
            return None
        if name in self.result.produced:
            return self.result.produced[name]
        labels = self.new(*value.shape)
        self.result.produced[name] = labels
        return labels

    def module(self, node: fx.Node, module: nn.Module) -> Labels:
        inputs = [self.given(argument) for argument in node.all_input_nodes]
        if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
            if str(node.target) in self.used:
                self.refuse(node, "is used more than once; a module with weights of its own for each use is needed")
            self.used.add(str(node.target))
            rule = self.weighted_rule(module)
            if rule is None:
                self.refuse(node, "holds weights and is of no known kind")
            return rule(node, module, inputs[0])
        kind = ops.kind_of(node, self.root)
        if all(labels is None for labels in inputs):
            return None
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            return self.spanning_norm(node, module, inputs[0])
        if isinstance(module, nn.modules.batchnorm._NormBase):
            return self.channel_norm(node, module, inputs[0])
        if kind != ops.MOVEMENT:
            self.single(node)
        if kind == ops.ELEMENTWISE:
            return self.elementwise(node)
        if kind == ops.MOVEMENT:
            return compact(module(full(inputs[0], self.fact(node.args[0]).shape)))
        if kind == ops.ALONG:
            return self.along(node, inputs[0], (int(module.dim) % inputs[0].ndim,))  # type: ignore[arg-type]
        if kind == ops.SPATIAL:
            return self.spatial(node, inputs[0])
        return self.refuse(node, "is of no known kind")

    def single(self, node: fx.Node) -> None:
        """A rule that gives the labels of one tensor is asked for one."""
        if not is_tensor(self.fact(node)):
            self.refuse(node, "gives no single tensor")

    def weighted_rule(self, module: nn.Module) -> Callable[[fx.Node, Any, Labels], Labels] | None:
        if isinstance(module, nn.modules.conv._ConvNd):
            return self.convolution
        if isinstance(module, nn.Linear):
            return self.linear
        if isinstance(module, nn.modules.batchnorm._NormBase):
            return self.channel_norm
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            return self.spanning_norm
        if isinstance(module, nn.Embedding):
            return self.embedding
        return None

    def operation(self, node: fx.Node) -> Labels:
        owned = [argument for argument in node.all_input_nodes if self.given(argument) is not None]
        if not owned or not holds_tensor(self.fact(node)):
            return None
        name, kind = ops.operation_name(node), ops.kind_of(node, self.root)
        if kind is not None and kind != ops.MOVEMENT:
            self.single(node)
        if kind == ops.ELEMENTWISE:
            return self.elementwise(node)
        if name in ("cat", "concat", "stack"):
            return self.joined(node, stacked=name == "stack")
        if kind == ops.MOVEMENT:
            return self.moved(node)
        if kind == ops.REDUCTION:
            return self.reduction(node, owned[0])
        if kind == ops.ALONG:
            x = self.given(owned[0])
            position, default = (2, 1) if name == "normalize" else (1, None)
            dim = node.kwargs.get("dim", node.args[position] if len(node.args) > position else default)
            if not isinstance(dim, int):
                self.refuse(node, "names no dimension")
            return self.along(node, x, (dim % x.ndim,))
        if kind == ops.SPATIAL:
            return self.spatial(node, self.given(owned[0]))
        if name == "pad":
            return self.padded(node)
        if node.target in ops.MATMULS:
            return self.product(node)
        if node.target in ops.ATTENTION:
            return self.attention(node)
        if node.target in ops.NORM_FUNCTIONS:
            return self.norm_function(node)
        if node.target in ops.LINEAR:
            return self.function_linear(node)
        if node.target in ops.CONVOLUTIONS:
            return self.filtered(node)
        return self.refuse(node, "is not known")

    # -- Layers ------------------------------------------------------------------------------------------------------

    def convolution(self, node: fx.Node, module: Any, labels: Labels) -> Labels:
        name, weight = str(node.target), f"{node.target}.weight"
        into, out = (0, 1) if module.transposed else (1, 0)
        ndim = self.fact(node).ndim
        entering = (
            None if labels is None else self.line(node, labels, ndim - module.weight.ndim + 1, module.in_channels)
        )
        if module.groups > 1 and entering is not None:
            return self.grouped(node, module, entering)
        if module.groups > 1:
            self.refuse(node, "is a grouped convolution of the network's input")
        if entering is not None:
            self.result.mixing[node] = entering
            self.site(weight, into, entering)
        if node in self.result.outputs:
            return None
        leaving = self.born(name, module.out_channels)
        self.site(weight, out, leaving)
        if module.bias is not None:
            self.site(f"{name}.bias", 0, leaving)
        return _on_dim(leaving, ndim - module.weight.ndim + 1, ndim)

    def grouped(self, node: fx.Node, module: Any, entering: Tensor) -> Labels:
        name, ndim = str(node.target), self.fact(node).ndim
        leaving = self.new(module.out_channels)
        ins, outs = entering.reshape(module.groups, -1), leaving.reshape(module.groups, -1)
        self.result.units.relate(ins[:, :1], outs)
        if ins.shape[1] > 1:
            self.tie(ins, ins[:, :1], "group")
            self.result.mixing[node] = entering
        self.site(f"{name}.weight", 0, entering if module.transposed else leaving)
        if module.bias is not None:
            self.site(f"{name}.bias", 0, leaving)
        return _on_dim(leaving, ndim - module.weight.ndim + 1, ndim)

    def linear(self, node: fx.Node, module: nn.Linear, labels: Labels) -> Labels:
        name, ndim = str(node.target), self.fact(node).ndim
        if labels is not None:
            entering = self.line(node, labels, -1, module.in_features)
            self.result.mixing[node] = entering
            self.site(f"{name}.weight", 1, entering)
        if node in self.result.outputs:
            return None
        leaving = self.born(name, module.out_features)
        self.site(f"{name}.weight", 0, leaving)
        if module.bias is not None:
            self.site(f"{name}.bias", 0, leaving)
        return _on_dim(leaving, ndim - 1, ndim)

    def embedding(self, node: fx.Node, module: nn.Embedding, labels: Labels) -> Labels:
        if labels is not None or module.max_norm is not None:
            self.refuse(node, "looks up channels, or limits the norm over all of them")
        leaving = self.born(str(node.target), module.embedding_dim)
        self.site(f"{node.target}.weight", 1, leaving)
        ndim = self.fact(node).ndim
        return _on_dim(leaving, ndim - 1, ndim)

    def function_linear(self, node: fx.Node) -> Labels:
        """``F.linear`` with a parameter of the network as its weight."""
        x, weight, bias = ops.linear_arguments(node)
        if weight not in self.result.held or self.given(x) is None:
            self.refuse(node, "multiplies by a weight that is no parameter of the network, or the network's input")
        name, ndim = str(weight.target), self.fact(node).ndim
        if name in self.result.produced:
            self.refuse(node, f"uses the parameter {name!r} again; a parameter of its own for each use is needed")
        entering = self.line(node, self.given(x), -1, self.fact(weight).shape[1])
        self.result.mixing[node] = entering
        self.site(name, 1, entering)
        leaving = self.born(name, self.fact(weight).shape[0])
        self.site(name, 0, leaving)
        if bias is not None and self.given(bias) is not None:
            self.result.channels.relate(self.given(bias), leaving)
        return _on_dim(leaving, ndim - 1, ndim)

    def filtered(self, node: fx.Node) -> Labels:
        """A convolution of each channel by itself with a filter that is no parameter, as for blurring."""
        x, weight, groups = ops.convolution_arguments(node)
        labels = self.given(x)
        shape = self.fact(weight).shape
        if labels is None or self.given(weight) is not None or not groups == shape[0] == self.fact(x).shape[1]:
            self.refuse(node, "convolves with a weight that is no layer's; a fixed filter for each channel is known")
        channels = self.line(node, labels, 1, groups)
        self.mark(_on_dim(channels, 0, len(shape)), weight, len(shape))
        return labels

    def channel_norm(self, node: fx.Node, module: Any, labels: Labels) -> Labels:
        self.check_inside(node, module)
        if labels is None:
            self.refuse(node, "normalizes the network's input")
        entering = self.line(node, labels, 1, module.num_features)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, tensor) is not None:
                self.site(f"{node.target}.{tensor}", 0, entering)
        return labels

    def spanning_norm(self, node: fx.Node, module: Any, labels: Labels) -> Labels:
        self.check_inside(node, module)
        if labels is None:
            self.refuse(node, "normalizes the network's input")
        weight = module.weight
        shape = self.fact(node.args[0]).shape
        if isinstance(module, nn.GroupNorm):
            dim = 1
        elif len(module.normalized_shape) == 1 and type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
            dim = len(shape) - 1
        elif len(module.normalized_shape) == 1:  # a subclass that normalizes maps, with channels elsewhere
            dim = next((d for d in varying(labels) if shape[d] == module.normalized_shape[0]), len(shape) - 1)
        else:
            self.refuse(
                node, f"normalizes over dimensions {tuple(module.normalized_shape)}; over channels alone is known"
            )
        entering = self.line(node, labels, dim, shape[dim])
        self.result.spanning[node] = dim
        for tensor in ("weight", "bias"):
            if getattr(module, tensor, None) is not None:
                self.site(f"{node.target}.{tensor}", 0, entering)
        if weight is not None and weight.numel() != shape[dim]:
            self.refuse(node, f"normalizes over {weight.numel()} elements, the channels are {shape[dim]}")
        return labels

    def check_inside(self, node: fx.Node, module: nn.Module) -> None:
        """A norm may hold an activation and a dropout, which act on each channel by itself."""
        for child in module.children():
            for inner in child.modules():
                holds = next(inner.parameters(), None) is not None
                if holds or (next(inner.children(), None) is None and not ops.acts_elementwise(inner)):
                    self.refuse(
                        node, f"holds a {type(inner).__name__}, which is not known to act on each channel alone"
                    )

    def norm_function(self, node: fx.Node) -> Labels:
        labels = self.given(node.args[0])
        shape = self.fact(node.args[0]).shape
        normalized: Any = map_arg(node.args[1] if len(node.args) > 1 else node.kwargs["normalized_shape"], self.fact)
        if len(normalized) != 1:
            self.refuse(node, "normalizes over several dimensions; over channels alone is known")
        if labels is None:
            self.refuse(node, "normalizes what belongs to no network in particular")
        self.line(node, labels, -1, shape[-1])
        self.result.spanning[node] = labels.ndim - 1
        for affine in node.all_input_nodes[1:]:
            if (own := self.given(affine)) is not None:
                self.result.channels.relate(own, labels.movedim(-1, 0).reshape(-1))
        return labels

    # -- Operations --------------------------------------------------------------------------------------------------

    def elementwise(self, node: fx.Node) -> Labels:
        out = self.fact(node)
        operands = [
            (argument, _led(self.given(argument), out.ndim), self.fact(argument).shape)
            for argument in node.all_input_nodes
            if self.given(argument) is not None
        ]
        proper = [(argument, labels, shape) for argument, labels, shape in operands if not _is_shared(labels)]
        if not proper:
            return operands[0][1]
        for argument, labels, shape in proper:
            for _, others, _ in proper:
                for dim in varying(others):
                    if labels.shape[dim] == 1 and _size(shape, dim, out.ndim) == 1:
                        self.refuse(node, f"applies one number of {describe(argument, self.root)} to all channels")
        for argument in node.all_input_nodes:
            if self.given(argument) is None:
                for _, labels, _ in proper:
                    self.mark(labels, argument, out.ndim)
        chosen = min((labels for _, labels, _ in proper), key=torch.Tensor.numel)
        for _, labels, _ in proper:
            self.result.channels.relate(labels, chosen)
        return chosen

    def joined(self, node: fx.Node, *, stacked: bool) -> Labels:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        assert isinstance(parts, tuple | list)
        given = [self.given(part) for part in parts]
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        assert isinstance(dim, int)
        dim %= self.fact(node).ndim
        shapes = [self.fact(part).shape for part in parts]
        for place, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
            if given[place] is None:
                known = next(labels for labels in given if labels is not None)
                if stacked or varying(known) != [dim]:
                    self.refuse(node, f"joins channels with {describe(part, self.root)}, which belongs to no network")
                given[place] = _on_dim(self.new(shape[dim]), dim, len(shape))
                self.result.filled[node, place] = given[place].reshape(-1)
        spread = [labels for labels, shape in zip(given, shapes, strict=True) if stacked or _even(labels, shape, dim)]
        if spread:
            first = min(spread, key=torch.Tensor.numel)
            for labels in given:
                self.result.channels.relate(labels, first)
            return first.unsqueeze(dim) if stacked else first
        return compact(torch.cat([full(labels, shape) for labels, shape in zip(given, shapes, strict=True)], dim))

    def moved(self, node: fx.Node) -> Labels:
        def labels_or_value(argument: fx.Node) -> Any:
            labels = self.given(argument)
            return self.fact(argument) if labels is None else _full_tree(labels, self.fact(argument))

        args, kwargs = map_arg(node.args, labels_or_value), map_arg(node.kwargs, labels_or_value)
        # Labels are stretched over dimensions they do not depend on, which a view cannot merge.
        method = {"view": "reshape", "view_as": "reshape_as"}.get(str(node.target), str(node.target))
        try:
            if node.op == "call_method":
                result = getattr(args[0], method)(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # whatever torch raises for a call that real tensors took and labels do not
            self.refuse(node, f"cannot be followed: {error}")
        return _compact_tree(result)

    def padded(self, node: fx.Node) -> Labels:
        labels, shape = self.given(node.args[0]), self.fact(node.args[0]).shape
        amounts: Any = map_arg(node.args[1] if len(node.args) > 1 else node.kwargs["pad"], self.fact)
        for place, dim in enumerate(reversed(range(labels.ndim))):
            before, after = amounts[2 * place : 2 * place + 2] or (0, 0)
            if (before or after) and labels.shape[dim] > 1:
                mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
                if varying(labels) != [dim] or mode != "constant" or before < 0 or after < 0:
                    self.refuse(node, "pads channels in a way that is not known")
                along = labels.movedim(dim, 0).reshape(-1).expand(shape[dim])
                labels = _on_dim(torch.cat((self.new(before), along, self.new(after))), dim, labels.ndim)
        return labels

    def reduction(self, node: fx.Node, x: fx.Node) -> Labels:
        labels, before, after = self.given(x), self.fact(x), self.fact(node)
        if not is_tensor(after):
            self.refuse(node, "gives no single tensor")
        position = 2 if ops.operation_name(node) == "norm" else 1
        args = map_arg(node.args, lambda argument: self.fact(argument))
        dims = ops.dims_of(args, map_arg(node.kwargs, self.fact), before.ndim, position=position)
        hit = [d for d in dims if labels.shape[d] > 1]
        rest = [d for d in varying(labels) if d not in dims]
        if hit and not rest:
            labels = torch.full([1] * labels.ndim, SHARED)
            self.result.spanning[node] = hit[0]
            if len(hit) > 1 or after.ndim != before.ndim:
                self.refuse(node, "reduces over all channels and drops their dimension")
        for dim in hit if rest else ():
            self.tie(labels, labels.narrow(dim, 0, 1), "head")
            labels = labels.narrow(dim, 0, 1)
        if after.ndim == before.ndim:
            return labels
        return labels.reshape([size for dim, size in enumerate(labels.shape) if dim not in dims])

    def along(self, node: fx.Node, labels: Tensor, dims: tuple[int, ...]) -> Labels:
        for dim in dims:
            if labels.shape[dim] > 1:
                if varying(labels) == [dim]:
                    self.refuse(node, "mixes all channels with each other")
                self.tie(labels, labels.narrow(dim, 0, 1), "head")
        return labels

    def spatial(self, node: fx.Node, labels: Tensor) -> Labels:
        inner = [dim for dim in varying(labels) if dim > 1]
        if inner and labels.shape[1] == 1:
            self.refuse(node, "pools over channels")
        for dim in inner:  # a parameter with a label for every position
            self.result.channels.relate(labels, labels.narrow(dim, 0, 1))
            labels = labels.narrow(dim, 0, 1)
        return labels

    def product(self, node: fx.Node) -> Labels:
        """(..., i, k) @ (..., k, j)."""
        ndim = self.fact(node).ndim
        if any(self.fact(argument).ndim < 2 for argument in node.args[:2]):
            self.refuse(node, "multiplies by a vector")
        left, right = (_led(self.given(argument), ndim) for argument in node.args[:2])
        if left is None or right is None:
            labels, contracted = (right, -2) if left is None else (left, -1)
            if labels.shape[contracted] > 1:
                self.refuse(node, "mixes channels by what belongs to no network in particular")
            self.mark(labels, node.args[0 if left is None else 1], ndim)  # type: ignore[arg-type]
            return labels
        if left.shape[-1] > 1 or right.shape[-2] > 1:
            if left.shape[-2] > 1 or right.shape[-1] > 1:
                self.refuse(node, "mixes channels of its factors along two dimensions")
            return self.headwise(left, right)
        if left.shape[-2] > 1 and right.shape[-1] > 1:
            if not any(dim < ndim - 2 for dim in varying(left)):
                self.refuse(node, "gives one number for each pair of channels")
            return self.headwise(left, right)
        out, other = (left, right) if left.shape[-2] > 1 else (right, left)
        self.tie(out, other, "head")
        return out

    def headwise(self, left: Tensor, right: Tensor) -> Tensor:
        """Ties what is multiplied within each head; the result has a label for each head."""
        head = left.narrow(-1, 0, 1).narrow(-2, 0, 1)
        self.tie(left, head, "head")
        self.tie(right, head, "head")
        return head

    def attention(self, node: fx.Node) -> Labels:
        ndim = self.fact(node).ndim
        value = self.given(node.args[2])
        if value is None:
            self.refuse(node, "attends to what belongs to no network in particular")
        head = _led(value, ndim).narrow(-1, 0, 1)
        for argument in node.all_input_nodes:
            labels = self.given(argument)
            if labels is None:
                self.mark(head, argument, ndim)
                continue
            if argument in node.args[:3] and labels.shape[-2] > 1:
                self.refuse(node, "attends along the dimension of channels")
            self.tie(_led(labels, ndim), head, "head")
        return value


def _on_dim(labels: Tensor, dim: int, ndim: int) -> Tensor:
    shape = [1] * ndim
    shape[dim] = len(labels)
    return labels.reshape(shape)


def _led(labels: Labels, ndim: int) -> Labels:
    """The labels with leading dimensions, as broadcasting adds them."""
    return None if labels is None else labels.reshape([1] * (ndim - labels.ndim) + list(labels.shape))


def _size(shape: torch.Size, dim: int, ndim: int) -> int:
    place = dim - (ndim - len(shape))
    return shape[place] if place >= 0 else 1


def _is_shared(labels: Tensor) -> bool:
    return bool((labels == SHARED).all())


def _even(labels: Tensor, shape: torch.Size, dim: int) -> bool:
    """Whether elements along a dimension, of which there are several, carry the same labels."""
    return labels.shape[dim] == 1 and (shape[dim] > 1 or bool(varying(labels)))


def _full_tree(labels: Labels, value: Any) -> Any:
    if is_tensor(value):
        return full(labels, value.shape)
    return type(value)(_full_tree(part, inner) for part, inner in zip(labels, value, strict=True))


def _compact_tree(value: Any) -> Any:
    return compact(value) if is_tensor(value) else tuple(map(_compact_tree, value))
