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

from typing import TYPE_CHECKING, Any

from torch import nn

from pyassemble.network import operations as ops
from pyassemble.network.couple_layers import CoupleLayers
from pyassemble.network.couple_movement import CoupleMovement
from pyassemble.network.couple_norms import CoupleNorms
from pyassemble.network.couple_operations import CoupleOperations
from pyassemble.network.coupling_result import Coupling, Site
from pyassemble.network.labels import compact, full
from pyassemble.network.traced import describe, holds_tensor, is_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import fx

    from pyassemble.network.coupling_result import Labels
    from pyassemble.network.traced import Traced

__all__ = ["Coupling", "Site", "couple"]


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


class _Walk(CoupleLayers, CoupleNorms, CoupleMovement, CoupleOperations):
    """Which rule a node is given to."""

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
