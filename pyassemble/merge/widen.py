"""The graph of a network made of units of several teachers (Merging, section 3: the wide student).

The teachers' common graph is walked once more. Layers are built over the channels of all teachers; an operation is kept
where doing it to the wide tensor does it to every teacher's, and rewritten where sizes or positions of channels stand
in its arguments. For every tensor it is known which slice is which teacher's (see ``layout``); an operation after which
that cannot be said is refused.
"""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.fx import map_arg

from pyassemble.merge.lower_operations import LowerOperations
from pyassemble.merge.parts import WideState
from pyassemble.network import operations as ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from pyassemble.merge.layout import Kept, Places
    from pyassemble.merge.lowering import Fold, Wide
    from pyassemble.merge.parts import Part
    from pyassemble.network.coupling import Coupling


@dataclass(frozen=True)
class Widened:
    """What widening gives.

    Attributes:
        graph: The wide network.
        places: For each tensor of the architecture's state_dict that runs over channels, where they lie: dimension to
            places.
        parts: The pieces in which the wide network holds some of the architecture's tensors.
        folds: Where gates go when they are fixed.
    """

    graph: fx.GraphModule
    places: dict[str, dict[int, Places]]
    parts: dict[str, list[Part]]
    folds: list[Fold]

    def state(self, factors: Mapping[str, tuple[int, Tensor]] | None = None) -> WideState:
        """The wide network's tensors by the names of the architecture's state_dict, some of them times a factor."""
        return WideState(self.graph, self.parts, self.places, factors)


def widen(
    coupling: Coupling,
    teachers: Sequence[nn.Module],
    kept: Kept,
    gate: Callable[[Tensor, Places], nn.Module | None] | None,
    device: torch.device,
    *,
    compressed: frozenset[int] = frozenset(),
    blocks: frozenset[str] = frozenset(),
    union: bool = False,
) -> Widened:
    """Builds the network that consists of chosen units of several teachers.

    Args:
        coupling: Of the teachers' architecture.
        teachers: N networks of it.
        kept: The units.
        gate: Makes the gates of what enters a layer that mixes channels, from the labels and their places, or says
            that none are wanted there; None for a network without gates.
        device: Where the network's tensors lie; the teachers' parameters may be on the meta device.
        compressed: Groups whose units are one network's: a normalization that spans channels of these alone normalizes
            all of them at once, not each teacher's.
        blocks: Layers held as one block for each teacher, without weights between teachers.
        union: Whether an output layer gives all teachers' outputs side by side, not their mean.

    Raises:
        UnsupportedOperationError: An operation cannot be done to several teachers at once.
    """
    return _Widener(coupling, teachers, kept, gate, device, compressed, blocks, union).run()


class _Widener(LowerOperations):
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
        return Widened(graph, self.places, self.parts, self.folds)

    def lower(self, node: fx.Node) -> tuple[Any, Wide]:
        if node in self.passed:
            return self.passed[node]
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


def _is_wide(wide: Wide) -> bool:
    return wide is not None and (not isinstance(wide, tuple) or any(map(_is_wide, wide)))


def _has_node(arguments: Any) -> bool:
    found: list[fx.Node] = []
    map_arg(arguments, found.append)
    return bool(found)
