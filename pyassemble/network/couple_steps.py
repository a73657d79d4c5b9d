"""What rules for labels are written with: new labels, where they stand in the state_dict, and what ties them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyassemble.errors import UnsupportedOperationError
from pyassemble.network.coupling_result import Coupling, Labels, Site
from pyassemble.network.labels import SHARED, varying
from pyassemble.network.traced import describe, is_tensor

if TYPE_CHECKING:
    from typing import NoReturn

    from torch import fx


class CoupleSteps:
    """The state of a walk, and the steps that all of its rules are made of.

    Args:
        result: What was found so far.
        owned: Names of the tensors that each network has its own values of.
    """

    def __init__(self, result: Coupling, owned: frozenset[str]) -> None:
        self.result = result
        self.owned = owned
        self.root = result.graph
        self.used: set[str] = set()
        self.called = {str(node.target) for node in result.graph.graph.nodes if node.op == "call_module"}

    def refuse(self, node: fx.Node, why: str) -> NoReturn:
        """The error that names a node."""
        raise UnsupportedOperationError(f"{describe(node, self.root)} of {type(self.root).__name__} {why}")

    def new(self, *shape: int) -> Tensor:
        """Labels that nothing has yet."""
        first = self.result.count
        self.result.count += torch.Size(shape).numel()
        return torch.arange(first, self.result.count).reshape(shape)

    def born(self, name: str, count: int) -> Tensor:
        """New labels, noted under the layer or tensor that bears them."""
        self.result.produced[name] = labels = self.new(count)
        return labels

    def site(self, tensor: str, dim: int, labels: Tensor) -> None:
        """Notes a dimension of a tensor in the state_dict that runs over channels."""
        self.result.sites.append(Site(tensor, dim, labels))

    def fact(self, node: Any) -> Any:
        """What a node gives on the example input."""
        return self.result.facts[node]

    def given(self, argument: Any) -> Labels:
        """Labels of an argument; None for what is no node or depends on no channel."""
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
        """Makes labels one unit, and notes what ties them."""
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
