"""What lowering a node to several teachers is written with: the new graph, and where channels lie in its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import map_arg

from pyassemble.errors import UnsupportedOperationError
from pyassemble.network.traced import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from pyassemble.merge.layout import Kept, Places
    from pyassemble.merge.parts import Part
    from pyassemble.network.coupling import Coupling

#: Places of a node's value: one for a tensor, None where no dimension is wide, or a tuple of these.
Wide = Any


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


class Lowering:
    """The state of a widening, and the steps that all of its rules are made of.

    Args:
        coupling: Of the teachers' architecture.
        teachers: N networks of it.
        kept: The units.
        gate: Makes the gates of what enters a layer that mixes channels, from the labels and their places; or None.
        device: Where the network's tensors lie; the teachers' parameters may be on the meta device.
        compressed: Groups whose units are one network's, to be normalized at once.
        blocks: Layers held as one block for each teacher.
        union: Whether an output layer gives all teachers' outputs side by side, not their mean.
    """

    def __init__(
        self,
        coupling: Coupling,
        teachers: Sequence[nn.Module],
        kept: Kept,
        gate: Callable[[Tensor, Places], nn.Module | None] | None,
        device: torch.device,
        compressed: frozenset[int],
        blocks: frozenset[str],
        union: bool,
    ) -> None:
        self.coupling = coupling
        self.teachers = teachers
        self.kept = kept
        self.gate = gate
        self.device = device
        self.compressed = compressed
        self.blocks = blocks
        self.union = union
        self.root = coupling.graph
        self.graph = fx.Graph()
        self.modules: dict[str, Any] = {}
        self.buffers: dict[str, Tensor] = {}
        self.made: dict[fx.Node, Any] = {}
        self.wide: dict[fx.Node, Wide] = {}
        self.passed: dict[fx.Node, tuple[Any, Wide]] = {}  # steps that were dealt with together with one before them
        self.products: dict[Any, Any] = {}  # what gates have made of a tensor
        self.places: dict[str, dict[int, Places]] = {}
        self.parts: dict[str, list[Part]] = {}
        self.folds: list[Fold] = []

    def refuse(self, node: fx.Node, why: str) -> NoReturn:
        """The error that names a node."""
        raise UnsupportedOperationError(f"{describe(node, self.root)} of {type(self.root).__name__} {why}")

    def fact(self, node: fx.Node) -> Any:
        """What a node gives in the teachers, on the example input."""
        return self.coupling.facts[node]

    def label(self, argument: Any) -> Any:
        """Labels of an argument, None for what is no node."""
        return self.coupling.labels.get(argument) if isinstance(argument, fx.Node) else None

    def placed(self, argument: Any) -> Wide:
        """Places of an argument, None for what is no node."""
        return self.wide.get(argument) if isinstance(argument, fx.Node) else None

    def map(self, arguments: Any) -> Any:
        """Arguments with nodes of the new graph in place of the teachers'."""
        return map_arg(arguments, self.made.__getitem__)

    def copied(self, node: fx.Node, args: Any = None, kwargs: Any = None) -> fx.Node:
        """The same step in the new graph."""
        args = self.map(node.args) if args is None else args
        kwargs = self.map(node.kwargs) if kwargs is None else kwargs
        made = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        made.meta = {key: value for key, value in node.meta.items() if key == "nn_module_stack"}
        return made

    def call(self, node: fx.Node, name: str, module: nn.Module, x: Any) -> fx.Node:
        """A step that calls a new module."""
        self.modules[name] = module
        return self.graph.create_node("call_module", name, (x,), {}, name.replace(".", "_"))

    def tensor(self, name: str, value: Tensor) -> fx.Node:
        """A step that reads a tensor which is no part of the state."""
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

    def teachers_modules(self, name: str) -> list[Any]:
        """One module of each teacher."""
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

    def at_once(self, node: fx.Node) -> bool:
        """Whether all channels of a node's value are one network's."""
        labels = self.label(node)
        groups = set(self.kept.groups.group_of[labels[labels >= 0]].tolist())
        return groups <= self.compressed

    def note(self, tensor: str, dim: int, places: Places) -> None:
        """Records where the channels lie in a tensor of the state."""
        self.places.setdefault(tensor, {})[dim] = places
