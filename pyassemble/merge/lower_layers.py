"""Layers of the wide student: convolutions, linear layers and normalizations over the teachers' channels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from pyassemble.errors import OutOfRangeError
from pyassemble.merge.layers import (
    gathered,
    joint_spanning_norm,
    trainable_copy,
    union_dense,
    wide_dense,
    wide_embedding,
    wide_grouped,
    wide_norm,
    wide_weight,
)
from pyassemble.merge.layout import Places
from pyassemble.merge.lower_movement import LowerMovement
from pyassemble.merge.lowering import Fold, Wide
from pyassemble.merge.parts import Part
from pyassemble.network import operations as ops
from pyassemble.network.traced import is_tensor


class LowerLayers(LowerMovement):
    """Rules for modules and parameters."""

    def module(self, node: fx.Node, module: nn.Module) -> tuple[Any, Wide]:
        """A module that a wide tensor enters."""
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
        if (shuffled := self.shuffled(node, argument)) is not None:
            return shuffled
        self.modules[name] = copy.deepcopy(module)
        if ops.kind_of(node, self.root) == ops.MOVEMENT:
            made = self.copied(node)
            return made, self.followed(node, module, [argument])
        return self.copied(node), places

    def layer(self, node: fx.Node, module: Any) -> tuple[Any, Wide]:
        """A convolution or linear layer, with the gates of what enters it."""
        name, ndim = str(node.target), self.fact(node).ndim
        argument = node.all_input_nodes[0]
        places, x = self.placed(argument), self.made[argument]
        layers = self.teachers_modules(name)
        if isinstance(module, nn.Embedding):
            looked_up = self.kept.places(self.coupling.produced[name], ndim - 1)
            self.note(f"{name}.weight", 1, looked_up)
            return self.call(node, name, wide_embedding(layers, looked_up), x), looked_up
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
        elif self.union:
            return self.call(node, name, union_dense(layers, places), x), None
        if places is not None and leaving is not None and name in self.blocks:
            return self.blockwise(node, layers, x, places, leaving), leaving
        return self.call(node, name, wide_dense(layers, places, leaving), x), leaving

    def blockwise(self, node: fx.Node, layers: list[Any], x: Any, entering: Places, leaving: Places) -> Any:
        """A layer without weights between teachers: a block for each, which the others' channels do not enter."""
        name = str(node.target)
        made: list[Any] = []
        order: list[Tensor] = []
        into, out = (0, 1) if getattr(layers[0], "transposed", False) else (1, 0)
        for teacher, layer in enumerate(layers):
            rows = torch.nonzero(leaving.teacher == teacher)[:, 0]
            columns = torch.nonzero(entering.teacher == teacher)[:, 0]
            if not len(rows):
                continue
            if not len(columns):  # a layer needs something that enters; its weights to it start at zero
                columns = torch.arange(1)
            own = wide_dense(layers, entering.taken(columns), leaving.taken(rows))
            part = f"{name}.blocks.{teacher}"
            made.append(self.call(node, part, own, self.take(x, entering.dim, columns, entering.size)))
            self.parts.setdefault(f"{name}.weight", []).append(Part(f"{part}.weight", {out: rows, into: columns}))
            if layer.bias is not None:
                self.parts.setdefault(f"{name}.bias", []).append(Part(f"{part}.bias", {0: rows}))
            order.append(rows)
        joined = self.graph.call_function(torch.cat, (made, leaving.dim))
        return self.take(joined, leaving.dim, torch.argsort(torch.cat(order)), leaving.size)

    def grouped(self, node: fx.Node, layers: list[Any], x: Any, places: Places, dim: int) -> tuple[Any, Wide]:
        """A grouped convolution over whole groups of the teachers."""
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
        """What enters a layer, times its gates: one product for all layers that the same gates of one tensor enter."""
        if self.gate is None or places is None:
            return x
        labels = self.coupling.mixing[node][places.index]
        key = x, places.dim, tuple(labels.tolist()), tuple(places.teacher.tolist())
        if key not in self.products:
            site = self.gate(labels, places)
            name = f"gate_sites.{str(node.target).replace('.', '_')}"
            self.products[key] = x if site is None else self.call(node, name, site, x)
        return self.products[key]

    def spanning(self, node: fx.Node, module: nn.Module, places: Places) -> tuple[Any, Wide]:
        """Each teacher's channels normalized by themselves, then side by side."""
        name, argument = str(node.target), node.all_input_nodes[0]
        dim = self.coupling.spanning[node]
        if places.dim != dim:
            self.refuse(node, "normalizes one teacher's channels with another's")
        norms = self.teachers_modules(name)
        affine = [tensor for tensor, _ in norms[0].named_parameters(recurse=False)]
        if self.at_once(argument):
            self.check_groups(name, module, places.size)
            for tensor in affine:
                self.note(f"{name}.{tensor}", 0, places)
            return self.call(node, name, joint_spanning_norm(norms, places), self.made[argument]), places
        made: list[Any] = []
        order: list[Tensor] = []
        for teacher, norm in enumerate(norms):
            mine = places.of(teacher)
            if not len(mine):
                continue
            whole = len(mine) == self.fact(argument).shape[dim]
            if not whole:
                self.check_groups(name, module, len(mine))
            own = trainable_copy(norm) if whole else joint_spanning_norm(norms, places.taken(mine))
            x = self.take(self.made[argument], dim, mine, places.size)
            made.append(self.call(node, f"{name}.teachers.{teacher}", own, x))
            start = sum(len(positions) for positions in order)
            for tensor in affine:
                piece = Part(f"{name}.teachers.{teacher}.{tensor}", {0: torch.arange(start, start + len(mine))})
                self.parts.setdefault(f"{name}.{tensor}", []).append(piece)
            order.append(mine)
        joined = places.taken(torch.cat(order))
        for tensor in affine:
            self.note(f"{name}.{tensor}", 0, joined)
        return self.graph.call_function(torch.cat, (made, dim)), joined

    def check_groups(self, name: str, module: nn.Module, channels: int) -> None:
        """A group norm divides its channels evenly."""
        if isinstance(module, nn.GroupNorm) and channels % module.num_groups:
            raise OutOfRangeError(
                f"module {name!r}: {channels} channels cannot be normalized in {module.num_groups} groups; "
                f"accepted are multiples of {module.num_groups}"
            )

    def attribute(self, node: fx.Node) -> tuple[Any, Wide]:
        """A parameter that is used by itself, or a buffer that belongs to no teacher."""
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
