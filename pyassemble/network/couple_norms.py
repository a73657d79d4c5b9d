"""Which channels a normalization has weights for, and along which dimension its statistics span channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import map_arg

from pyassemble.network import operations as ops
from pyassemble.network.couple_steps import CoupleSteps
from pyassemble.network.labels import varying

if TYPE_CHECKING:
    from torch import fx

    from pyassemble.network.coupling_result import Labels


class CoupleNorms(CoupleSteps):
    """Rules for normalizations, as modules and as functions."""

    def channel_norm(self, node: fx.Node, module: Any, labels: Labels) -> Labels:
        """A normalization of each channel by itself, with a number of its state for each."""
        self.check_inside(node, module)
        if labels is None:
            self.refuse(node, "normalizes the network's input")
        entering = self.line(node, labels, 1, module.num_features)
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            if getattr(module, tensor) is not None:
                self.site(f"{node.target}.{tensor}", 0, entering)
        return labels

    def spanning_norm(self, node: fx.Node, module: Any, labels: Labels) -> Labels:
        """A normalization whose statistics span channels."""
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
        """A normalization by a function, over the last dimension."""
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
