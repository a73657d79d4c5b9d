"""The graph of a network made of units of several teachers (Merging, section 3: the wide student).

The teachers' common graph is walked once more. Layers are built over the channels of all teachers; an operation is kept
where doing it to the wide tensor does it to every teacher's, and rewritten where sizes or positions of channels stand in
its arguments. For every tensor it is known which slice is which teacher's (see ``layout``); an operation after which
that cannot be said is refused.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import map_arg

from pyassemble.errors import OutOfRangeError, UnsupportedOperationError
from pyassemble.merge.layers import (
    gathered,
    joint_spanning_norm,
    trainable_copy,
    wide_dense,
    wide_grouped,
    wide_norm,
    wide_weight,
)
from pyassemble.merge.layout import Kept, Places, recognize, wide_labels
from pyassemble.network import operations as ops
from pyassemble.network.labels import SHARED, compact, varying
from pyassemble.network.traced import describe, holds_tensor, is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from pyassemble.network.coupling import Coupling

#: Places of a node's value: one for a tensor, None where no dimension is wide, or a tuple of these.
Wide = Any

_RESHAPES = ("reshape", "view", "flatten", "unflatten", "reshape_as", "view_as")
_PICKS = ("getitem", "split", "chunk", "unbind", "narrow", "select")


@dataclass(frozen=True)
class Fold:
    """A tensor that takes up the gates of what enters its layer, once they are fixed.

    Attributes:
        tensor: Its name.
        dim: The dimension over which the gates run.
        labels: (size,) of the teachers' channels along it.
        teacher: (size,) whose channel each is.
    """

    tensor: str
    dim: int
    labels: Tensor
    teacher: Tensor


@dataclass(frozen=True)
class Widened:
    """What widening gives.

    Attributes:
        graph: The wide network.
        places: For each tensor of the architecture's state_dict that runs over channels, where they lie: dimension to
            places.
        parts: The tensors that the wide network holds in place of one of the architecture's, to be joined along their
            first dimension.
        folds: Where gates go when they are fixed.
        nodes: Node of the wide graph, and places of its value, for each node of the architecture's graph.
    """

    graph: fx.GraphModule
    places: dict[str, dict[int, Places]]
    parts: dict[str, list[str]]
    folds: list[Fold]
    nodes: dict[fx.Node, tuple[Any, Wide]]

    def state(self) -> dict[str, Tensor]:
        """The wide network's tensors by the names of the architecture's state_dict."""
        held = self.graph.state_dict(keep_vars=True)
        joined = {name: torch.cat([held[part] for part in parts]) for name, parts in self.parts.items()}
        return {name: value.detach() for name, value in (held | joined).items()}


def widen(
    coupling: Coupling,
    teachers: Sequence[nn.Module],
    kept: Kept,
    gate: Callable[[Tensor, Places], nn.Module] | None,
    *,
    joint_norms: bool = False,
) -> Widened:
    """Builds the network that consists of chosen units of several teachers.

    Args:
        coupling: Of the teachers' architecture.
        teachers: N networks of it.
        kept: The units.
        gate: Makes the gates of what enters a layer that mixes channels, from the labels and their places; None for a
            network without gates.
        joint_norms: Whether a normalization that spans channels normalizes all of them at once, not each teacher's.

    Raises:
        UnsupportedOperationError: An operation cannot be done to several teachers at once.
    """
    return _Widener(coupling, teachers, kept, gate, joint_norms).run()


class _Widener:
    def __init__(
        self,
        coupling: Coupling,
        teachers: Sequence[nn.Module],
        kept: Kept,
        gate: Callable[[Tensor, Places], nn.Module] | None,
        joint_norms: bool,
    ) -> None:
        self.coupling = coupling
        self.teachers = teachers
        self.kept = kept
        self.gate = gate
        self.joint_norms = joint_norms
        self.root = coupling.graph
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.buffers: dict[str, Tensor] = {}
        self.made: dict[fx.Node, Any] = {}
        self.wide: dict[fx.Node, Wide] = {}
        self.places: dict[str, dict[int, Places]] = {}
        self.parts: dict[str, list[str]] = {}
        self.folds: list[Fold] = []

    def run(self) -> Widened:
        for node in self.coupling.graph.graph.nodes:
            self.made[node], self.wide[node] = self.lower(node)
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        used = {str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")}
        content = {name: value for name, value in (self.modules | self.buffers).items() if name in used}
        graph = fx.GraphModule(content, self.graph, f"Wide{type(self.root).__name__}")
        for name in self.buffers.keys() & used:
            path, _, last = name.rpartition(".")
            owner = graph.get_submodule(path)
            value = getattr(owner, last)
            delattr(owner, last)
            owner.register_buffer(last, value, persistent=False)
        nodes = {node: (self.made[node], self.wide[node]) for node in self.made}
        return Widened(graph, self.places, self.parts, self.folds, nodes)

    # -- What lowering is written with -------------------------------------------------------------------------------

    def refuse(self, node: fx.Node, why: str) -> NoReturn:
        raise UnsupportedOperationError(f"{describe(node, self.root)} of {type(self.root).__name__} {why}")

    def fact(self, node: fx.Node) -> Any:
        return self.coupling.facts[node]

    def label(self, argument: Any) -> Any:
        return self.coupling.labels.get(argument) if isinstance(argument, fx.Node) else None

    def placed(self, argument: Any) -> Wide:
        return self.wide.get(argument) if isinstance(argument, fx.Node) else None

    def map(self, arguments: Any) -> Any:
        return map_arg(arguments, self.made.__getitem__)

    def copied(self, node: fx.Node, args: Any = None, kwargs: Any = None) -> fx.Node:
        args = self.map(node.args) if args is None else args
        kwargs = self.map(node.kwargs) if kwargs is None else kwargs
        made = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        made.meta = {key: value for key, value in node.meta.items() if key == "nn_module_stack"}
        return made

    def call(self, node: fx.Node, name: str, module: nn.Module, x: Any) -> fx.Node:
        self.modules[name] = module
        return self.graph.create_node("call_module", name, (x,), {}, name.replace(".", "_"))

    def tensor(self, name: str, value: Tensor) -> fx.Node:
        name = f"_{name}_{len(self.buffers)}"
        self.buffers[name] = value
        return self.graph.create_node("get_attr", name, (), {})

    def take(self, made: Any, dim: int, positions: Tensor, size: int) -> Any:
        """Some slices of a wide tensor; nothing to do where they are all, in order."""
        if torch.equal(positions, torch.arange(size)):
            return made
        count = len(positions)
        start = int(positions[0]) if count else 0
        if torch.equal(positions, torch.arange(start, start + count)):
            return self.graph.call_function(torch.narrow, (made, dim, start, count))
        index = self.tensor("order", positions.to(self.device))
        return self.graph.call_function(torch.index_select, (made, dim, index))

    @property
    def device(self) -> torch.device:
        return next(self.teachers[0].parameters()).device

    def teachers_modules(self, name: str) -> list[Any]:
        return [teacher.get_submodule(name) for teacher in self.teachers]

    def reordered(self, node: fx.Node, argument: fx.Node, target: Places) -> Any:
        """An argument with its slices in another order."""
        mine = self.placed(argument)
        if mine.same_order(target):
            return self.made[argument]
        try:
            order = target.order_from(mine)
        except ValueError:
            self.refuse(node, f"combines channels with other channels of {describe(argument, self.root)}")
        return self.take(self.made[argument], mine.dim, order, mine.size)

    def note(self, tensor: str, dim: int, places: Places) -> None:
        self.places.setdefault(tensor, {})[dim] = places

    # -- Dispatch ----------------------------------------------------------------------------------------------------

    def lower(self, node: fx.Node) -> tuple[Any, Wide]:
        if node.op == "placeholder":
            return self.copied(node), None
        if node.op == "output":
            for argument in node.all_input_nodes:
                if _is_wide(self.wide[argument]):
                    self.refuse(argument, "gives an output that no output layer averages")
            return self.copied(node), None
        if node.op == "get_attr":
            return self.attribute(node)
        if not any(_is_wide(self.wide[argument]) for argument in node.all_input_nodes):
            return self.plain(node)
        if node.op == "call_module":
            return self.module(node, self.root.get_submodule(str(node.target)))
        return self.operation(node)

    def plain(self, node: fx.Node) -> tuple[Any, Wide]:
        """A node that no wide tensor enters: the input, sizes, and what is computed from them."""
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            if node in self.coupling.outputs or self.label(node) is not None:
                return self.layer(node, module)
            self.modules[str(node.target)] = copy.deepcopy(module)
            return self.copied(node), None
        args, kwargs = self.map(node.args), self.map(node.kwargs)
        if node.target is operator.getitem and isinstance(args[0], tuple):
            return args[0][args[1]], None
        if node.op == "call_function" and not _has_node((args, kwargs)):
            if ops.operation_name(node) in ("_assert", "_assert_is_none"):
                return None, None
            return node.target(*args, **kwargs), None  # type: ignore[operator]
        return self.copied(node, args, kwargs), None

    def attribute(self, node: fx.Node) -> tuple[Any, Wide]:
        name, labels = str(node.target), self.label(node)
        if node in self.coupling.held:
            return None, None  # made by the function that uses it
        if labels is None:
            values = [attribute(teacher, name) for teacher in (self.root, *self.teachers) if has(teacher, name)]
            if any(not torch.equal(values[0], value) for value in values[1:]):
                self.refuse(node, "is a buffer whose values differ between the networks")
            self.buffers[name] = values[0]
            return self.copied(node), None
        site = next(site for site in self.kept.groups.sites if site.tensor == name)
        places = self.kept.places(site.labels, site.dim)
        if name not in self.modules:
            values = [teacher.get_parameter(name) for teacher in self.teachers]
            self.modules[name] = nn.Parameter(gathered(values, places, site.dim))
            self.note(name, site.dim, places)
        return self.copied(node), places

    # -- Layers ------------------------------------------------------------------------------------------------------

    def module(self, node: fx.Node, module: nn.Module) -> tuple[Any, Wide]:
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            return self.layer(node, module)
        name, argument = str(node.target), node.all_input_nodes[0]
        places = self.placed(argument)
        if node in self.coupling.spanning:
            return self.spanning(node, module, places)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            made = self.call(node, name, wide_norm(self.teachers_modules(name), places), self.made[argument])
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                self.note(f"{name}.{tensor}", 0, places)
            return made, places
        self.modules[name] = copy.deepcopy(module)
        if ops.kind_of(node, self.root) == ops.MOVEMENT:
            made = self.copied(node)
            return made, self.followed(node, module, [argument])
        return self.copied(node), places

    def layer(self, node: fx.Node, module: Any) -> tuple[Any, Wide]:
        name, ndim = str(node.target), self.fact(node).ndim
        argument = node.all_input_nodes[0]
        places, x = self.placed(argument), self.made[argument]
        layers = self.teachers_modules(name)
        dim = ndim - 1 if isinstance(module, nn.Linear) else ndim - module.weight.ndim + 1
        if getattr(module, "groups", 1) > 1:
            return self.grouped(node, layers, x, places, dim)
        x = self.gated(node, x, places)
        into, out = (0, 1) if getattr(module, "transposed", False) else (1, 0)
        if places is not None:
            if places.dim != dim:
                self.refuse(node, "applies one teacher's weights to another's channels")
            self.note(f"{name}.weight", into, places)
            entering = self.coupling.mixing[node][places.index]
            self.folds.append(Fold(f"{name}.weight", into, entering, places.teacher))
        leaving = None
        if node not in self.coupling.outputs:
            leaving = self.kept.places(self.coupling.produced[name], dim)
            self.note(f"{name}.weight", out, leaving)
            self.note(f"{name}.bias", 0, leaving)
        return self.call(node, name, wide_dense(layers, places, leaving), x), leaving

    def grouped(self, node: fx.Node, layers: list[Any], x: Any, places: Places, dim: int) -> tuple[Any, Wide]:
        name, groups = str(node.target), layers[0].groups
        each = layers[0].in_channels // groups
        chosen = list(dict.fromkeys(zip(places.teacher.tolist(), (places.index // each).tolist(), strict=True)))
        teacher, first = (torch.tensor(column) for column in zip(*chosen, strict=True))
        entering = Places(
            dim,
            teacher.repeat_interleave(each),
            (first[:, None] * each + torch.arange(each)).flatten(),
        )
        if not entering.same_order(places):
            try:
                x = self.take(x, dim, entering.order_from(places), places.size)
            except ValueError:
                self.refuse(node, "would have to be split within a group")
        if node in self.coupling.mixing:
            x = self.gated(node, x, entering)
            # The gate of a whole group scales all rows of its block.
            per_group = self.coupling.mixing[node][first * each]
            rows = len(layers[0].weight) // groups
            fold = Fold(f"{name}.weight", 0, per_group.repeat_interleave(rows), teacher.repeat_interleave(rows))
            self.folds.append(fold)
        outs = layers[0].out_channels // groups
        leaving = Places(dim, teacher.repeat_interleave(outs), (first[:, None] * outs + torch.arange(outs)).flatten())
        self.note(f"{name}.weight", 0, entering if layers[0].transposed else leaving)
        self.note(f"{name}.bias", 0, leaving)
        return self.call(node, name, wide_grouped(layers, chosen), x), leaving

    def function_linear(self, node: fx.Node) -> tuple[Any, Wide]:
        """``F.linear`` with a parameter of the network as its weight."""
        argument, weight, bias = ops.linear_arguments(node)
        name, places = str(weight.target), self.placed(argument)
        dim = self.fact(node).ndim - 1
        if places.dim != dim:
            self.refuse(node, "applies one teacher's weights to another's channels")
        x = self.gated(node, self.made[argument], places)
        leaving = self.kept.places(self.coupling.produced[name], dim)
        self.note(name, 1, places)
        self.note(name, 0, leaving)
        self.folds.append(Fold(name, 1, self.coupling.mixing[node][places.index], places.teacher))
        weights = [teacher.get_parameter(name) for teacher in self.teachers]
        self.modules[name] = nn.Parameter(wide_weight(weights, places, leaving, 1, 0))
        made = self.graph.create_node("get_attr", name, (), {})
        own = None
        if bias is not None and self.placed(bias) is not None:
            own = self.reordered(node, bias, leaving.on(0))
        elif bias is not None:
            index = self.tensor("order", leaving.index.to(self.device))
            own = self.graph.call_function(torch.index_select, (self.made[bias], 0, index))
        return self.graph.call_function(node.target, (x, made, own)), leaving  # type: ignore[arg-type]

    def filtered(self, node: fx.Node) -> tuple[Any, Wide]:
        """A convolution of each channel by itself with a fixed filter."""
        argument, weight, _ = ops.convolution_arguments(node)
        places = self.placed(argument)
        index = self.tensor("order", places.index.to(self.device))
        filters = self.graph.call_function(torch.index_select, (self.made[weight], 0, index))
        values = {
            name: self.map(value)
            for name, value in zip(("bias", "stride", "padding", "dilation"), node.args[2:], strict=False)
        }
        values |= {name: self.map(value) for name, value in node.kwargs.items() if name not in ("input", "weight")}
        values["groups"] = places.size
        return self.graph.call_function(node.target, (self.made[argument], filters), values), places  # type: ignore[arg-type]

    def gated(self, node: fx.Node, x: Any, places: Places | None) -> Any:
        if self.gate is None or places is None:
            return x
        site = self.gate(self.coupling.mixing[node][places.index], places)
        return self.call(node, f"gate_sites.{str(node.target).replace('.', '_')}", site, x)

    def spanning(self, node: fx.Node, module: nn.Module, places: Places) -> tuple[Any, Wide]:
        """Each teacher's channels normalized by themselves, then side by side."""
        name, argument = str(node.target), node.all_input_nodes[0]
        dim = self.coupling.spanning[node]
        if places.dim != dim:
            self.refuse(node, "normalizes one teacher's channels with another's")
        norms = self.teachers_modules(name)
        if self.joint_norms:
            if isinstance(module, nn.GroupNorm) and places.size % module.num_groups:
                raise OutOfRangeError(
                    f"module {name!r}: {places.size} channels cannot be normalized in {module.num_groups} groups; "
                    f"accepted are multiples of {module.num_groups}"
                )
            for tensor in ("weight", "bias"):
                self.note(f"{name}.{tensor}", 0, places)
            return self.call(node, name, joint_spanning_norm(norms, places), self.made[argument]), places
        parts, teachers, indices = [], [], []
        for teacher, norm in enumerate(norms):
            mine = places.of(teacher)
            x = self.take(self.made[argument], dim, mine, places.size)
            parts.append(self.call(node, f"{name}.teachers.{teacher}", trainable_copy(norm), x))
            teachers.append(places.teacher[mine])
            indices.append(places.index[mine])
        joined = Places(dim, torch.cat(teachers), torch.cat(indices))
        for tensor, _ in norms[0].named_parameters(recurse=False):
            self.note(f"{name}.{tensor}", 0, joined)
            self.parts[f"{name}.{tensor}"] = [f"{name}.teachers.{t}.{tensor}" for t in range(len(norms))]
        return self.graph.call_function(torch.cat, (parts, dim)), joined

    # -- Operations --------------------------------------------------------------------------------------------------

    def operation(self, node: fx.Node) -> tuple[Any, Wide]:
        name, kind = ops.operation_name(node), ops.kind_of(node, self.root)
        if not holds_tensor(self.fact(node)):
            return self.size(node, name), None
        if kind == ops.ELEMENTWISE:
            return self.elementwise(node)
        if name in ("cat", "concat", "stack"):
            return self.joined(node, stacked=name == "stack")
        if kind == ops.MOVEMENT:
            return self.moved(node, name)
        if node in self.coupling.spanning:
            return self.per_teacher(node)
        if name == "pad":
            return self.padded(node)
        if node.target in ops.LINEAR:
            return self.function_linear(node)
        if node.target in ops.CONVOLUTIONS:
            return self.filtered(node)
        if kind == ops.REDUCTION:
            return self.reduction(node)
        if node.target in ops.MATMULS or node.target in ops.ATTENTION:
            return self.product(node)
        if kind == ops.ALONG and self.placed(node.all_input_nodes[0]).dim in self.along_dims(node):
            self.refuse(node, "mixes the teachers' channels with each other")
        return self.copied(node), self.placed(node.all_input_nodes[0])

    def along_dims(self, node: fx.Node) -> tuple[int, ...]:
        position = 2 if ops.operation_name(node) == "normalize" else 1
        default = 1 if ops.operation_name(node) == "normalize" else None
        dim = node.kwargs.get("dim", node.args[position] if len(node.args) > position else default)
        assert isinstance(dim, int)
        return (dim % self.fact(node).ndim,)

    def size(self, node: fx.Node, name: str) -> Any:
        """A size of a wide tensor: a teacher's own along the wide dimension, as the network computes with it."""
        argument = node.all_input_nodes[0]
        places, value = self.placed(argument), self.fact(node)
        if name == "size" and isinstance(value, int):
            dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            assert isinstance(dim, int)
            return value if dim % self.fact(argument).ndim == places.dim else self.copied(node)
        if not isinstance(value, tuple):
            return self.copied(node)
        shape = self.copied(node)
        return tuple(
            length if dim == places.dim else self.graph.call_function(operator.getitem, (shape, dim))
            for dim, length in enumerate(value)
        )

    def elementwise(self, node: fx.Node) -> tuple[Any, Wide]:
        ndim = self.fact(node).ndim
        wide = [argument for argument in node.all_input_nodes if self.placed(argument) is not None]
        proper = [argument for argument in wide if not bool((self.label(argument) == SHARED).all())] or wide
        lead = max(proper, key=lambda argument: self.fact(argument).ndim)
        target = self.placed(lead)
        dim = target.dim + ndim - self.fact(lead).ndim
        made: dict[fx.Node, Any] = {}
        for argument in node.all_input_nodes:
            value = self.fact(argument)
            if not is_tensor(value):
                continue
            mine, place = self.placed(argument), dim - (ndim - value.ndim)
            if mine is not None:
                if mine.dim != place:
                    self.refuse(node, f"combines channels with another dimension of {describe(argument, self.root)}")
                made[argument] = self.reordered(node, argument, target.on(place))
            elif place >= 0 and value.shape[place] > 1:
                index = self.tensor("order", target.index.to(self.device))
                made[argument] = self.graph.call_function(torch.index_select, (self.made[argument], place, index))

        def mapped(argument: fx.Node) -> Any:
            return made.get(argument, self.made[argument])

        return self.copied(node, map_arg(node.args, mapped), map_arg(node.kwargs, mapped)), target.on(dim)

    def joined(self, node: fx.Node, *, stacked: bool) -> tuple[Any, Wide]:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        assert isinstance(parts, tuple | list)
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        assert isinstance(dim, int)
        dim %= self.fact(node).ndim
        for place, part in enumerate(parts):
            if (node, place) in self.coupling.filled:
                line = self.kept.places(self.coupling.filled[node, place], dim)
                index = self.tensor("order", line.index.to(self.device))
                self.made[part] = self.graph.call_function(torch.index_select, (self.made[part], dim, index))  # type: ignore[index]
                self.wide[part] = line  # type: ignore[index]
        first = self.placed(parts[0])
        if not stacked and first.dim == dim:
            places = [self.placed(part) for part in parts]
            if any(place is None or place.dim != dim for place in places):
                self.refuse(node, "joins channels with something else")
            starts = [0]
            for part in parts:
                starts.append(starts[-1] + self.fact(part).shape[dim])  # type: ignore[arg-type]
            joined = Places(
                dim,
                torch.cat([place.teacher for place in places]),
                torch.cat([place.index + start for place, start in zip(places, starts[:-1], strict=True)]),
            )
            return self.graph.call_function(node.target, ([self.made[part] for part in parts], dim)), joined  # type: ignore[arg-type, index]
        made = []
        for part in parts:
            if self.placed(part) is None or self.placed(part).dim != first.dim:
                self.refuse(node, "joins channels with something else")
            made.append(self.reordered(node, part, first))  # type: ignore[arg-type]
        target = first.on(first.dim + 1) if stacked and dim <= first.dim else first
        return self.graph.call_function(node.target, (made, dim)), target  # type: ignore[arg-type]

    def moved(self, node: fx.Node, name: str) -> tuple[Any, Wide]:
        argument = node.all_input_nodes[0]
        if name in _RESHAPES:
            return self.reshaped(node, argument)
        if any(self.placed(other) is not None for other in node.all_input_nodes[1:]):
            self.refuse(node, "moves channels by the shape of another tensor")
        if name in ("expand", "expand_as"):
            return self.expanded(node, argument)
        if name in _PICKS and not isinstance(self.wide[argument], tuple):
            picked = self.picked(node, argument)
            if picked is not None:
                return picked
        if name == "getitem" and isinstance(self.wide[argument], tuple):
            place = node.args[1]
            if isinstance(self.made[argument], tuple | list):
                return self.made[argument][place], self.wide[argument][place]  # type: ignore[index]
            return self.copied(node), self.wide[argument][place]  # type: ignore[index]

        def apply(labels: Tensor) -> Any:
            args = map_arg(node.args, lambda a: labels if a is argument else self.fact(a))
            kwargs = map_arg(node.kwargs, lambda a: labels if a is argument else self.fact(a))
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        return self.copied(node), self.followed(node, apply, [argument])

    def followed(self, node: fx.Node, apply: Callable[[Tensor], Any], arguments: list[fx.Node]) -> Wide:
        """Places after an operation that is done to the wide tensor as it is."""
        (argument,) = arguments
        plain, wide = self.both_labels(argument)
        try:
            before, after = apply(plain), apply(wide)
        except Exception as error:  # whatever torch raises where sizes do not fit
            self.refuse(node, f"does not fit several teachers' channels: {str(error).splitlines()[0]}")
        dims: list[int] | None = None
        places = self.placed(argument)
        if is_tensor(before) and places.size == plain.shape[places.dim]:
            # Nothing is wider to be recognized by: where does a second copy go?
            try:
                twice = apply(torch.cat((plain, plain), places.dim))
                dims = [d for d in range(before.ndim) if twice.shape[d] != before.shape[d]]
            except (RuntimeError, IndexError):
                dims = None
        return self.recognized(node, before, after, argument, dims)

    def both_labels(self, argument: fx.Node) -> tuple[Tensor, Tensor]:
        """Labels of the teachers' and of the wide tensor, at their full shapes."""
        labels, places = self.label(argument), self.placed(argument)
        shape = self.fact(argument).shape
        wide_shape = list(shape)
        wide_shape[places.dim] = places.size
        wide = wide_labels(labels, places, self.coupling.count, shape[places.dim])
        return labels.expand(shape), wide.expand(wide_shape)

    def recognized(
        self, node: fx.Node, before: Any, after: Any, argument: fx.Node, dims: list[int] | None = None
    ) -> Wide:
        if isinstance(before, tuple | list):
            if len(before) != len(after):
                self.refuse(node, "splits the teachers' channels at other places than one network's")
            return tuple(self.recognized(node, b, a, argument) for b, a in zip(before, after, strict=True))
        plain = compact(before)
        different = [d for d in range(before.ndim) if before.shape[d] != after.shape[d]]
        dims = different or dims or varying(plain) or list(range(before.ndim))
        if before.ndim != after.ndim or len(different) > 1:
            self.refuse(node, "does not do to several teachers' channels what it does to one network's")
        for dim in dims:
            shape_plain, shape_wide = _narrowed(before, dim), _narrowed(after, dim)
            found = recognize(shape_wide, shape_plain, self.coupling.count, [dim])
            if found is not None and found.size == self.expected(shape_plain, dim):
                return found
        return self.refuse(node, "does not do to several teachers' channels what it does to one network's")

    def expected(self, labels: Tensor, dim: int) -> int:
        """How many slices the kept units make along a dimension."""
        line = labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0]
        return sum(int(self.kept.holds(line, teacher).sum()) for teacher in range(len(self.teachers)))

    def reshaped(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide]:
        plain, wide = self.both_labels(argument)
        shape = list(self.fact(node).shape)
        before = plain.reshape(shape)
        factor = wide.numel(), plain.numel()
        # Heads, not the channels inside them, are what teachers have more of.
        unit = self.kept.groups.unit_of[before]
        likely = [d for d in reversed(varying(compact(before))) if not bool((unit == unit.narrow(d, 0, 1)).all())]
        if bool((unit == unit.reshape(-1)[0]).all()):
            likely = [d for d in reversed(range(len(shape))) if shape[d] == 1]  # a single head
        inside = [d for d in reversed(varying(compact(before))) if d not in likely]
        others = [d for d in range(len(shape)) if d not in likely and d not in inside]
        for dims in (likely, inside, others):
            for dim, directly in [(d, True) for d in dims] + [(d, False) for d in dims]:
                size, rest = divmod(shape[dim] * factor[0], factor[1])
                if rest or not size:
                    continue
                target = [*shape[:dim], size, *shape[dim + 1 :]]
                if not directly:
                    done = self.reshaped_after_reordering(node, argument, before, dim, target)
                    if done is not None:
                        return done
                    continue
                line = _narrowed(before, dim)
                found = recognize(_narrowed(wide.reshape(target), dim), line, self.coupling.count, [dim])
                if found is not None and found.size == self.expected(line, dim):
                    return self.emit_reshape(node, argument, self.made[argument], shape, dim, size), found
        return self.refuse(node, "does not do to several teachers' channels what it does to one network's")

    def reshaped_after_reordering(
        self, node: fx.Node, argument: fx.Node, before: Tensor, dim: int, target: list[int]
    ) -> tuple[Any, Wide] | None:
        """A reshape that needs the teachers' channels in another order than the layers before it give them."""
        places, (plain, wide) = self.placed(argument), self.both_labels(argument)
        line = before.movedim(dim, 0).reshape(before.shape[dim], -1)[:, 0]
        order = [torch.nonzero(self.kept.holds(line, t))[:, 0] for t in range(len(self.teachers))]
        desired = torch.cat(
            [before.index_select(dim, mine) + self.coupling.count * t for t, mine in enumerate(order)], dim
        )
        if list(desired.shape) != target:
            return None
        found = recognize(
            _narrowed(desired.reshape(wide.shape), places.dim),
            _narrowed(plain, places.dim),
            self.coupling.count,
            [places.dim],
        )
        if found is None or sorted(_keys(found)) != sorted(_keys(places)):
            return None
        x = self.take(self.made[argument], places.dim, found.order_from(places), places.size)
        result = Places(
            dim,
            torch.cat([torch.full_like(mine, t) for t, mine in enumerate(order)]),
            torch.cat(order),
        )
        return self.emit_reshape(node, argument, x, list(before.shape), dim, target[dim]), result

    def emit_reshape(
        self, node: fx.Node, argument: fx.Node, x: Any, shape: list[int], dim: int, size: int
    ) -> fx.Node:
        name = ops.operation_name(node)
        if name.endswith("_as"):
            like = node.args[1]
            assert isinstance(like, fx.Node)
            if self.placed(like) is None or self.placed(like).dim != dim or self.placed(like).size != size:
                self.refuse(node, "takes the shape of a tensor with other channels")
            return self.copied(node, (x, self.made[like]))
        if name == "flatten":
            return self.copied(node, (x, *self.map(node.args[1:])))
        if name == "unflatten":
            split = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
            sizes = list(self.map(node.args[2] if len(node.args) > 2 else node.kwargs["sizes"]))
            assert isinstance(split, int)
            place = dim - split % self.fact(argument).ndim
            if 0 <= place < len(sizes):
                sizes[place] = size
            return self.graph.call_method("unflatten", (x, split, tuple(sizes)))
        given = node.args[1:] if len(node.args) > 2 else node.args[1:2] or (node.kwargs.get("shape"),)
        sizes = list(self.sizes(given))
        if len(sizes) != len(shape):
            self.refuse(node, "names its shape in a way that is not known")
        if sizes[dim] != -1:
            sizes[dim] = size
        return self.graph.call_method(name, (x, tuple(sizes)))

    def sizes(self, given: tuple[Any, ...]) -> Any:
        """The sizes that an operation names one by one, in a tuple, or as another tensor's shape."""
        mapped = self.map(given)
        return mapped[0] if len(mapped) == 1 and isinstance(mapped[0], tuple | list) else mapped

    def expanded(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide]:
        places, ndim = self.placed(argument), self.fact(node).ndim
        dim = places.dim + ndim - self.fact(argument).ndim
        if self.fact(node).shape[dim] != self.fact(argument).shape[places.dim]:
            self.refuse(node, "repeats channels")
        if ops.operation_name(node) == "expand_as":
            self.refuse(node, "moves channels by the shape of another tensor")
        given = node.args[1:] if len(node.args) > 2 else node.args[1:2]
        sizes = list(self.sizes(given))
        sizes[dim] = -1
        return self.graph.call_method("expand", (self.made[argument], *sizes)), places.on(dim)

    def picked(self, node: fx.Node, argument: fx.Node) -> tuple[Any, Wide] | None:
        """A choice among channels: each piece is taken where the teachers' channels lie. None where none is cut."""
        places, shape = self.placed(argument), self.fact(argument).shape
        line = torch.arange(shape[places.dim]).reshape([-1 if d == places.dim else 1 for d in range(len(shape))])
        args = map_arg(node.args, lambda a: line.expand(shape) if a is argument else self.fact(a))
        kwargs = map_arg(node.kwargs, self.fact)
        if node.op == "call_method":
            pieces = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            pieces = node.target(*args, **kwargs)  # type: ignore[operator]
        several = isinstance(pieces, tuple | list)
        found = []
        for piece in pieces if several else [pieces]:
            if piece.ndim != len(shape):
                return None
            values = piece.movedim(places.dim, 0).reshape(piece.shape[places.dim], -1)[:, 0]
            if len(values) == shape[places.dim]:
                return self.picked_elsewhere(node, argument, places)
            if any(piece.shape[d] != shape[d] for d in range(len(shape)) if d != places.dim):
                self.refuse(node, "cuts channels and another dimension at once")
            where = {int(value): place for place, value in enumerate(values)}
            positions = torch.tensor([p for p, i in enumerate(places.index.tolist()) if i in where], dtype=torch.int64)
            index = torch.tensor([where[int(i)] for i in places.index[positions]], dtype=torch.int64)
            taken = self.take(self.made[argument], places.dim, positions, places.size)
            found.append((taken, Places(places.dim, places.teacher[positions], index)))
        if several:
            return tuple(made for made, _ in found), tuple(place for _, place in found)
        return found[0]

    def picked_elsewhere(self, node: fx.Node, argument: fx.Node, places: Places) -> tuple[Any, Wide] | None:
        """An index that takes all channels, perhaps by their number, and chooses along other dimensions."""
        if node.target is not operator.getitem:
            return None
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if len(index) <= places.dim or not all(isinstance(part, slice) for part in index):
            return None
        freed = (*index[: places.dim], slice(None), *index[places.dim + 1 :])
        return self.copied(node, (self.made[argument], self.map(freed))), places

    def per_teacher(self, node: fx.Node) -> tuple[Any, Wide]:
        """A normalization or reduction over channels, of each teacher's by themselves."""
        argument = node.args[0]
        assert isinstance(argument, fx.Node)
        dim, places = self.coupling.spanning[node], self.placed(argument)
        if places.dim != dim:
            self.refuse(node, "takes one teacher's channels together with another's")
        reduces = self.fact(node).shape != self.fact(argument).shape
        if self.joint_norms:
            return self.spanning_at_once(node, argument, dim, places)
        parts, teachers, indices = [], [], []
        for teacher in range(len(self.teachers)):
            mine = places.of(teacher)
            count = len(mine)

            def piece(other: fx.Node, teacher: int = teacher) -> Any:
                wide = self.placed(other)
                if wide is None:
                    return self.made[other]
                return self.take(self.made[other], wide.dim, wide.of(teacher), wide.size)

            made = self.copied(node, map_arg(node.args, piece), map_arg(node.kwargs, piece))
            if node.target in ops.NORM_FUNCTIONS:
                made.args = (made.args[0], (count,), *made.args[2:])
            if reduces:
                sizes = [count if d == dim else -1 for d in range(self.fact(argument).ndim)]
                made = self.graph.call_method("expand", (made, *sizes))
            parts.append(made)
            teachers.append(places.teacher[mine])
            indices.append(places.index[mine])
        joined = self.graph.call_function(torch.cat, (parts, dim))
        return joined, Places(dim, torch.cat(teachers), torch.cat(indices))

    def spanning_at_once(self, node: fx.Node, argument: fx.Node, dim: int, places: Places) -> tuple[Any, Wide]:
        made = self.copied(node)
        if node.target in ops.NORM_FUNCTIONS:
            made.args = (made.args[0], (places.size,), *made.args[2:])
        if self.fact(node).shape != self.fact(argument).shape:
            sizes = [places.size if d == dim else -1 for d in range(self.fact(argument).ndim)]
            made = self.graph.call_method("expand", (made, *sizes))
        return made, places

    def padded(self, node: fx.Node) -> tuple[Any, Wide]:
        argument = node.all_input_nodes[0]
        places, ndim = self.placed(argument), self.fact(argument).ndim
        given = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        amounts = list(self.map(given))
        place = 2 * (ndim - 1 - places.dim)
        numbers = map_arg(given, self.fact)
        before, after = tuple(numbers[place : place + 2]) or (0, 0)
        if not before and not after:
            return self.copied(node), places
        line = self.label(node).movedim(places.dim, 0).reshape(-1)
        middle = len(line) - before - after
        left = self.kept.places(line[:before], places.dim) if before else places.taken(torch.arange(0))
        right = self.kept.places(line[before + middle :], places.dim) if after else places.taken(torch.arange(0))
        amounts[place : place + 2] = [left.size, right.size]
        joined = Places(
            places.dim,
            torch.cat((left.teacher, places.teacher, right.teacher)),
            torch.cat((left.index, places.index + before, right.index + before + middle)),
        )
        rest = self.map(node.args[2:])
        kwargs = {key: value for key, value in self.map(node.kwargs).items() if key != "pad"}
        return self.copied(node, (self.made[argument], tuple(amounts), *rest), kwargs), joined

    def reduction(self, node: fx.Node) -> tuple[Any, Wide]:
        argument = node.all_input_nodes[0]
        places, before, after = self.placed(argument), self.fact(argument), self.fact(node)
        position = 2 if ops.operation_name(node) == "norm" else 1
        args, kwargs = (map_arg(part, self.fact) for part in (node.args, node.kwargs))
        dims = ops.dims_of(args, kwargs, before.ndim, position=position)
        if places.dim in dims:
            self.refuse(node, "mixes the teachers' channels with each other")
        shift = 0 if after.ndim == before.ndim else sum(dim < places.dim for dim in dims)
        return self.copied(node), places.on(places.dim - shift)

    def product(self, node: fx.Node) -> tuple[Any, Wide]:
        """A matrix product or an attention whose teachers lie along a dimension that is not summed over."""
        ndim = self.fact(node).ndim
        wide = [argument for argument in node.all_input_nodes if self.placed(argument) is not None]
        lead = wide[0]
        dim = self.placed(lead).dim + ndim - self.fact(lead).ndim
        target = self.placed(lead).on(dim)
        if len(wide) == 1 and node.target in ops.MATMULS:
            contracted = ndim - 1 if lead is node.args[0] else ndim - 2
            if dim == contracted:
                self.refuse(node, "mixes the teachers' channels with each other")
        elif dim >= ndim - 2:
            self.refuse(node, "mixes the teachers' channels with each other")
        made: dict[fx.Node, Any] = {}
        for argument in wide:
            place = dim - (ndim - self.fact(argument).ndim)
            if self.placed(argument).dim != place:
                self.refuse(node, f"combines channels with another dimension of {describe(argument, self.root)}")
            made[argument] = self.reordered(node, argument, target.on(place))

        def mapped(argument: fx.Node) -> Any:
            return made.get(argument, self.made[argument])

        return self.copied(node, map_arg(node.args, mapped), map_arg(node.kwargs, mapped)), target


def _narrowed(labels: Tensor, dim: int) -> Tensor:
    """The same labels, compact along every dimension but one."""
    for other in range(labels.ndim):
        if other != dim and labels.shape[other] > 1:
            first = labels.narrow(other, 0, 1)
            if bool((labels == first).all()):
                labels = first
    return labels


def _keys(places: Places) -> list[tuple[int, int]]:
    return list(zip(places.teacher.tolist(), places.index.tolist(), strict=True))


def has(module: nn.Module, name: str) -> bool:
    """Whether a module holds a tensor of that name; those that tracing adds are held by the graph alone."""
    try:
        return is_tensor(attribute(module, name))
    except AttributeError:
        return False


def attribute(module: nn.Module, name: str) -> Tensor:
    """A tensor by its full name."""
    path, _, last = name.rpartition(".")
    value = getattr(module.get_submodule(path), last)
    assert isinstance(value, Tensor)
    return value


def _is_wide(wide: Wide) -> bool:
    return wide is not None and (not isinstance(wide, tuple) or any(map(_is_wide, wide)))


def _has_node(arguments: Any) -> bool:
    found = []
    map_arg(arguments, found.append)
    return bool(found)
