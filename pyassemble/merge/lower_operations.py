"""Operations of the wide student that compute: element by element, along a dimension, or as products."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx import map_arg
from torch.nn import functional as F

from pyassemble.merge.layout import Places
from pyassemble.merge.lower_layers import LowerLayers
from pyassemble.network import operations as ops
from pyassemble.network.attention import DroppedAttention
from pyassemble.network.labels import SHARED
from pyassemble.network.traced import describe, holds_tensor, is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyassemble.merge.lowering import Wide


_DROPOUTS: dict[Any, Callable[[float], nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
}


class LowerOperations(LowerLayers):
    """Rules for functions and methods."""

    def operation(self, node: fx.Node) -> tuple[Any, Wide]:
        """A function or method that a wide tensor enters."""
        name, kind = ops.operation_name(node), ops.kind_of(node, self.root)
        if not holds_tensor(self.fact(node)):
            return self.size(node, name), None
        if node.target in _DROPOUTS:
            return self.dropout(node)
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

    def dropout(self, node: fx.Node) -> tuple[Any, Wide]:
        """A dropout by a function, which the trace saw in eval mode: a module that is at work in train mode."""
        argument = node.all_input_nodes[0]
        given = dict(zip(("p", "training", "inplace"), node.args[1:], strict=False)) | dict(node.kwargs)
        p = given.get("p", 0.5)
        if given.get("training", True) is not False or not isinstance(p, int | float):
            return self.elementwise(node)
        module = _DROPOUTS[node.target](p)
        return self.call(node, f"dropouts.{node.name}", module, self.made[argument]), self.placed(argument)

    def along_dims(self, node: fx.Node) -> tuple[int, ...]:
        """The dimension that a softmax or normalization works along."""
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
        """Operands with their channels in the order of the first."""
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
        """A concatenation or stack."""
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        assert isinstance(parts, tuple | list)
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        assert isinstance(dim, int)
        dim %= self.fact(node).ndim
        for place, part in enumerate(parts):
            if (node, place) in self.coupling.filled:
                line = self.kept.places(self.coupling.filled[node, place], dim)
                index = self.tensor("order", line.index.to(self.device))
                self.made[part] = self.graph.call_function(torch.index_select, (self.made[part], dim, index))
                self.wide[part] = line
        first = self.placed(parts[0])
        if not stacked and first.dim == dim:
            places = [self.placed(part) for part in parts]
            if any(place is None or place.dim != dim for place in places):
                self.refuse(node, "joins channels with something else")
            starts = [0]
            for part in parts:
                starts.append(starts[-1] + self.fact(part).shape[dim])
            joined = Places(
                dim,
                torch.cat([place.teacher for place in places]),
                torch.cat([place.index + start for place, start in zip(places, starts[:-1], strict=True)]),
            )
            return self.copied(node, ([self.made[part] for part in parts], dim), {}), joined
        made = []
        for part in parts:
            if self.placed(part) is None or self.placed(part).dim != first.dim:
                self.refuse(node, "joins channels with something else")
            made.append(self.reordered(node, part, first))
        target = first.on(first.dim + 1) if stacked and dim <= first.dim else first
        return self.copied(node, (made, dim), {}), target

    def per_teacher(self, node: fx.Node) -> tuple[Any, Wide]:
        """A normalization or reduction over channels, of each teacher's by themselves."""
        argument = node.args[0]
        assert isinstance(argument, fx.Node)
        dim, places = self.coupling.spanning[node], self.placed(argument)
        if places.dim != dim:
            self.refuse(node, "takes one teacher's channels together with another's")
        reduces = self.fact(node).shape != self.fact(argument).shape
        if self.at_once(argument):
            return self.spanning_at_once(node, argument, dim, places)
        parts, teachers, indices = [], [], []
        for teacher in range(len(self.teachers)):
            mine = places.of(teacher)
            count = len(mine)
            if not count:
                continue

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
        """A normalization or reduction over all channels together."""
        made = self.copied(node)
        if node.target in ops.NORM_FUNCTIONS:
            made.args = (made.args[0], (places.size,), *made.args[2:])
        if self.fact(node).shape != self.fact(argument).shape:
            sizes = [places.size if d == dim else -1 for d in range(self.fact(argument).ndim)]
            made = self.graph.call_method("expand", (made, *sizes))
        return made, places

    def padded(self, node: fx.Node) -> tuple[Any, Wide]:
        """A padding with zeros, along the channels as wide as the channels it will be added to."""
        argument = node.all_input_nodes[0]
        places, ndim = self.placed(argument), self.fact(argument).ndim
        given = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
        amounts = list(self.map(given))
        place = 2 * (ndim - 1 - places.dim)
        numbers: Any = map_arg(given, self.fact)
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
        """A reduction over other dimensions than that of the channels."""
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

        p = self.coupling.attention_dropouts.get(node)
        if p is not None:
            name = f"dropouts.{node.name}"
            self.modules[name] = DroppedAttention(p)
            given = {key: map_arg(value, mapped) for key, value in ops.attention_arguments(node)[0].items()}
            return self.graph.create_node("call_module", name, (), given, name.replace(".", "_")), target
        return self.copied(node, map_arg(node.args, mapped), map_arg(node.kwargs, mapped)), target
