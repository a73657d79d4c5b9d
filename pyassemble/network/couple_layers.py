"""Which channels enter and leave layers with weights: convolutions, linear layers and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyassemble.network import operations as ops
from pyassemble.network.couple_steps import CoupleSteps
from pyassemble.network.labels import on_dim

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    from pyassemble.network.coupling_result import Labels


class CoupleLayers(CoupleSteps):
    """Rules for layers that bear channels, as modules and as functions of a weight."""

    def convolution(self, node: fx.Node, module: Any, labels: Labels) -> Labels:
        """A convolution, in groups or not."""
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
        return on_dim(leaving, ndim - module.weight.ndim + 1, ndim)

    def grouped(self, node: fx.Node, module: Any, entering: Tensor) -> Labels:
        """A convolution in groups: the channels of a group are one unit."""
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
        return on_dim(leaving, ndim - module.weight.ndim + 1, ndim)

    def linear(self, node: fx.Node, module: nn.Linear, labels: Labels) -> Labels:
        """A linear layer, over the last dimension."""
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
        return on_dim(leaving, ndim - 1, ndim)

    def embedding(self, node: fx.Node, module: nn.Embedding, labels: Labels) -> Labels:
        """A table of vectors, whose columns are channels."""
        if labels is not None or module.max_norm is not None:
            self.refuse(node, "looks up channels, or limits the norm over all of them")
        leaving = self.born(str(node.target), module.embedding_dim)
        self.site(f"{node.target}.weight", 1, leaving)
        ndim = self.fact(node).ndim
        return on_dim(leaving, ndim - 1, ndim)

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
        return on_dim(leaving, ndim - 1, ndim)

    def filtered(self, node: fx.Node) -> Labels:
        """A convolution of each channel by itself with a filter that is no parameter, as for blurring."""
        x, weight, groups = ops.convolution_arguments(node)
        labels = self.given(x)
        shape = self.fact(weight).shape
        if labels is None or self.given(weight) is not None or not groups == shape[0] == self.fact(x).shape[1]:
            self.refuse(node, "convolves with a weight that is no layer's; a fixed filter for each channel is known")
        channels = self.line(node, labels, 1, groups)
        self.mark(on_dim(channels, 0, len(shape)), weight, len(shape))
        return labels
