"""Which channels meet in operations that compute: element by element, over a dimension, or as products."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.fx import map_arg

from pyassemble.network import operations as ops
from pyassemble.network.couple_steps import CoupleSteps
from pyassemble.network.labels import SHARED, varying
from pyassemble.network.traced import describe, is_tensor

if TYPE_CHECKING:
    from torch import Tensor, fx

    from pyassemble.network.coupling_result import Labels


class CoupleOperations(CoupleSteps):
    """Rules for functions, methods and modules without weights."""

    def elementwise(self, node: fx.Node) -> Labels:
        """Operands whose channels meet element by element are the same channels."""
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

    def reduction(self, node: fx.Node, x: fx.Node) -> Labels:
        """A sum, mean or the like over some dimensions."""
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
        """A softmax or the like, which ties what lies along its dimensions."""
        for dim in dims:
            if labels.shape[dim] > 1:
                if varying(labels) == [dim]:
                    self.refuse(node, "mixes all channels with each other")
                self.tie(labels, labels.narrow(dim, 0, 1), "head")
        return labels

    def spatial(self, node: fx.Node, labels: Tensor) -> Labels:
        """A pooling or resizing over positions."""
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
        """Scaled dot-product attention: what enters a head is one unit."""
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


def _led(labels: Labels, ndim: int) -> Labels:
    """The labels with leading dimensions, as broadcasting adds them."""
    return None if labels is None else labels.reshape([1] * (ndim - labels.ndim) + list(labels.shape))


def _size(shape: torch.Size, dim: int, ndim: int) -> int:
    place = dim - (ndim - len(shape))
    return shape[place] if place >= 0 else 1


def _is_shared(labels: Tensor) -> bool:
    return bool((labels == SHARED).all())
