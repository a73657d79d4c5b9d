"""Where channels are after operations that move them: reshapes, splits, concatenations and paddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx import map_arg

from pyassemble.network.couple_steps import CoupleSteps
from pyassemble.network.labels import compact, full, on_dim, varying
from pyassemble.network.traced import describe, is_tensor

if TYPE_CHECKING:
    from torch import Tensor, fx

    from pyassemble.network.coupling_result import Labels


class CoupleMovement(CoupleSteps):
    """Rules for operations that compute nothing."""

    def joined(self, node: fx.Node, *, stacked: bool) -> Labels:
        """A concatenation or a stack."""
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
                given[place] = on_dim(self.new(shape[dim]), dim, len(shape))
                self.result.filled[node, place] = given[place].reshape(-1)
        spread = [labels for labels, shape in zip(given, shapes, strict=True) if stacked or _even(labels, shape, dim)]
        if spread:
            first = min(spread, key=torch.Tensor.numel)
            for labels in given:
                self.result.channels.relate(labels, first)
            return first.unsqueeze(dim) if stacked else first
        return compact(torch.cat([full(labels, shape) for labels, shape in zip(given, shapes, strict=True)], dim))

    def moved(self, node: fx.Node) -> Labels:
        """An operation that puts elements elsewhere: done to the labels as well."""

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
        """A padding; what it adds along channels gets labels of its own."""
        labels, shape = self.given(node.args[0]), self.fact(node.args[0]).shape
        amounts: Any = map_arg(node.args[1] if len(node.args) > 1 else node.kwargs["pad"], self.fact)
        for place, dim in enumerate(reversed(range(labels.ndim))):
            before, after = amounts[2 * place : 2 * place + 2] or (0, 0)
            if (before or after) and labels.shape[dim] > 1:
                mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
                if varying(labels) != [dim] or mode != "constant" or before < 0 or after < 0:
                    self.refuse(node, "pads channels in a way that is not known")
                along = labels.movedim(dim, 0).reshape(-1).expand(shape[dim])
                labels = on_dim(torch.cat((self.new(before), along, self.new(after))), dim, labels.ndim)
        return labels


def _even(labels: Tensor, shape: torch.Size, dim: int) -> bool:
    """Whether elements along a dimension, of which there are several, carry the same labels."""
    return labels.shape[dim] == 1 and (shape[dim] > 1 or bool(varying(labels)))


def _full_tree(labels: Labels, value: Any) -> Any:
    if is_tensor(value):
        return full(labels, value.shape)
    return type(value)(_full_tree(part, inner) for part, inner in zip(labels, value, strict=True))


def _compact_tree(value: Any) -> Any:
    return compact(value) if is_tensor(value) else tuple(map(_compact_tree, value))
