"""In which order groups of channels are widened, so that a wide student stays within a bound of memory (SPEC 2.4).

A layer between two groups of the full wide student has N x N blocks of weights, of which the teachers have N. Here a
layer starts as the teachers' own N blocks and gets the others, the weights *between* teachers, when the units that
enter it are being chosen. Once they are chosen, 1/N of them is left, and all weights of the layer together are as many
as the teachers' were: what was learned between teachers stays, and room is free for the next groups.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyassemble.errors import ArgumentTypeError, OutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import nn

    from pyassemble.network.coupling import Coupling
    from pyassemble.network.groups import Groups


@dataclass(frozen=True)
class Stage:
    """Groups whose units are chosen together.

    Attributes:
        groups: Their numbers.
        blocks: Layers that are held without weights between teachers meanwhile.
        parameters: How many parameters the student has at most, gates included.
    """

    groups: frozenset[int]
    blocks: frozenset[str]
    parameters: int


def single_stage(groups: Groups) -> list[Stage]:
    """All groups at once, with all weights: the full wide student."""
    return [Stage(frozenset(range(len(groups.groups))), frozenset(), 0)]


def plan_stages(
    coupling: Coupling, groups: Groups, counts: Sequence[int], teacher: nn.Module, teachers: int, memory: float
) -> list[Stage]:
    """Stages within a bound: as many groups in each as there is room for, the cheapest to widen first.

    A layer for which there is never room is learned without weights between teachers until one of its sides is chosen.

    Args:
        coupling: Of the architecture.
        groups: Its groups.
        counts: How many units of each are kept.
        teacher: A network of the architecture.
        teachers: N.
        memory: Bound on the student's parameters, in multiples of all teachers' together; an optimizer's state grows
            with them.

    Raises:
        ArgumentTypeError: ``memory`` is no number.
        OutOfRangeError: It is not finite, or less than the student takes without any weights between teachers.
    """
    if isinstance(memory, bool) or not isinstance(memory, int | float):
        raise ArgumentTypeError(f"memory must be a number, not {type(memory).__name__}")
    own = sum(parameter.numel() for parameter in teacher.parameters()) * teachers
    cost = _Cost(coupling, groups, counts, teacher, teachers)
    least = cost.total(frozenset(), frozenset())
    if not math.isfinite(memory) or memory * own < least:
        raise OutOfRangeError(
            f"memory {memory} times the teachers' {own:,} parameters; accepted: a finite number, at least "
            f"{math.ceil(1000 * least / own) / 1000} for this architecture, gates included"
        )
    return _planned(cost, int(memory * own), len(groups.groups))


def _planned(cost: _Cost, budget: int, count: int) -> list[Stage]:
    stages: list[Stage] = []
    chosen: set[int] = set()
    dense: set[str] = set()
    while len(chosen) < count:
        dense |= {layer for layer in cost.layers if cost.full(layer, chosen) <= cost.layers[layer].own}
        active: set[int] = set()
        room: float = budget - cost.total(chosen, dense)
        waiting = sorted(set(range(count)) - chosen, key=lambda group: (cost.widening(group, chosen, dense), group))
        for group in waiting:
            extra = cost.widening(group, chosen, dense)
            if extra <= room:
                active.add(group)
                dense |= cost.entered(group)
                room -= extra
        if not active:
            active.add(waiting[0])
            for layer in sorted(cost.entered(waiting[0]) - dense, key=lambda name: cost.extra(name, chosen)):
                if cost.extra(layer, chosen) <= room:
                    dense.add(layer)
                    room -= cost.extra(layer, chosen)
        stages.append(Stage(frozenset(active), frozenset(cost.layers.keys() - dense), math.ceil(budget - room)))
        chosen |= active
    return stages


@dataclass(frozen=True)
class _Layer:
    """A layer that can be held in blocks.

    Attributes:
        entering: How many of a teacher's channels that enter are of each group.
        leaving: The same of those that leave.
        kernel: Weights for each pair of a channel that enters and one that leaves.
        own: Weights of all teachers' layers together.
    """

    entering: Counter[int]
    leaving: Counter[int]
    kernel: int
    own: int


class _Cost:
    """Parameters of the student, by which groups are chosen and which layers have weights between teachers."""

    def __init__(
        self, coupling: Coupling, groups: Groups, counts: Sequence[int], teacher: nn.Module, teachers: int
    ) -> None:
        self.teachers = teachers
        self.shares = [count / group.size for count, group in zip(counts, groups.groups, strict=True)]
        self.gates = sum(teachers * group.size for group in groups.groups)
        self.layers: dict[str, _Layer] = {}
        for node, labels in coupling.mixing.items():
            module: Any = coupling.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
            if module is None or getattr(module, "groups", 1) > 1 or node in coupling.outputs:
                continue
            entering = Counter(groups.group_of[labels].tolist())
            leaving = Counter(groups.group_of[coupling.produced[str(node.target)]].tolist())
            kernel = module.weight.numel() // (entering.total() * leaving.total())
            self.layers[str(node.target)] = _Layer(entering, leaving, kernel, teachers * module.weight.numel())
        lines: dict[str, list[Counter[int]]] = {}
        for site in groups.sites:
            lines.setdefault(site.tensor, []).append(Counter(groups.group_of[site.labels].tolist()))
        self.others = [
            (parameter.numel(), lines.get(name, []))
            for name, parameter in teacher.named_parameters()
            if name.removesuffix(".weight") not in self.layers
        ]

    def width(self, line: Counter[int], chosen: Collection[int]) -> float:
        """How many channels the student has where each teacher has these."""
        return sum(
            channels * (self.shares[group] if group in chosen else self.teachers) for group, channels in line.items()
        )

    def full(self, name: str, chosen: Collection[int]) -> float:
        """Weights of a layer with those between teachers."""
        layer = self.layers[name]
        return layer.kernel * self.width(layer.entering, chosen) * self.width(layer.leaving, chosen)

    def block(self, name: str, chosen: Collection[int]) -> float:
        """Weights of a layer without those between teachers, however the chosen units are divided among them."""
        layer = self.layers[name]
        entering, leaving = self.width(layer.entering, chosen), self.width(layer.leaving, chosen)
        most = min(entering * layer.leaving.total(), leaving * layer.entering.total())
        # A teacher none of whose units enter has one input of zeros.
        spare = leaving if layer.entering.keys() & chosen else 0
        return min(layer.kernel * (most + spare), self.full(name, chosen))

    def extra(self, name: str, chosen: Collection[int]) -> float:
        """What the weights between teachers take in a layer."""
        return self.full(name, chosen) - self.block(name, chosen)

    def entered(self, group: int) -> set[str]:
        """Layers that a group enters."""
        return {name for name, layer in self.layers.items() if group in layer.entering}

    def widening(self, group: int, chosen: Collection[int], dense: Collection[str]) -> float:
        """What it takes to give all layers that a group enters their weights between teachers."""
        return sum(self.extra(name, chosen) for name in self.entered(group) if name not in dense)

    def total(self, chosen: Collection[int], dense: Collection[str]) -> int:
        """Parameters of the student, gates included."""
        total: float = self.gates
        for name in self.layers:
            total += self.full(name, chosen) if name in dense else self.block(name, chosen)
        for numel, lines in self.others:
            share: float = 1 if lines else self.teachers
            for line in lines:
                share *= self.width(line, chosen) / line.total()
            total += numel * share
        return math.ceil(total)
