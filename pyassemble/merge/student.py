"""The wide student: several teachers in one network, with a gate on every unit (Merging, section 3)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyassemble.errors import UnknownOptionError
from pyassemble.merge.compress import (
    check_kept,
    chosen_units,
    largest,
    original_state,
    plain_copy,
    resized_state,
    with_outputs,
)
from pyassemble.merge.gates import GateBank, GateGroup, GateSite
from pyassemble.merge.layout import Kept
from pyassemble.merge.widen import widen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from pyassemble.merge.layout import Places
    from pyassemble.network.coupling import Coupling


class WideStudent(nn.Module):
    """Several networks of one architecture as one network, to be trained and then compressed.

    With all gates open it computes the mean of its teachers' outputs. Train it with any loop, with
    :meth:`sparsity_loss` times a growing weight added to the loss; then :meth:`compress`.

    Args:
        coupling: Of the architecture.
        kept: Its groups, with every unit of every teacher.
        teachers: The networks; copied.
        counts: How many units of each group :meth:`compress` keeps.
        seed: Of the gates' initial values and draws.
        union: Whether the student gives all teachers' outputs side by side, not their mean.

    Attributes:
        gate_groups: Gates by the name of their group.
        graph: The wide network.
    """

    def __init__(
        self,
        coupling: Coupling,
        kept: Kept,
        teachers: Sequence[nn.Module],
        counts: Sequence[int],
        seed: int,
        *,
        union: bool = False,
    ) -> None:
        super().__init__()
        first = next(teachers[0].parameters())
        groups = kept.groups
        sizes = [kept.teachers * group.size for group in groups.groups]
        self.gates = GateBank(sizes, seed, first.device, first.dtype)
        self._kept, self._coupling, self._counts = kept, coupling, list(counts)
        # Held without becoming a child: a network of the original class, to be filled by compress().
        self._template = [copy.deepcopy(teachers[0])]
        self.union = union
        self._widened = widen(coupling, teachers, kept, self._site, union=union)
        self.graph = self._widened.graph

    def _site(self, labels: Tensor, places: Places) -> GateSite:
        groups, units = self._kept.groups.group_of[labels], self._kept.groups.unit_of[labels]
        sizes = torch.tensor([group.size for group in self._kept.groups.groups])
        return GateSite(self.gates, groups, places.teacher * sizes[groups] + units, places.dim)

    def forward(self, *inputs: Any) -> Any:
        """What the architecture's forward gives; in training with gates drawn anew for every sample."""
        if self.training:
            self.gates.advance()
        return self.graph(*inputs)

    @property
    def gate_groups(self) -> dict[str, GateGroup]:
        """The gates of each group, by its name, in the network's order."""
        teachers = self._kept.teachers
        result = {}
        for group, loc, count in zip(self._kept.groups.groups, self.gates.locs, self._counts, strict=True):
            teacher = torch.arange(teachers).repeat_interleave(group.size)
            result[group.name] = GateGroup(group.name, loc, group.unit, teacher, count / (teachers * group.size))
        return result

    def gate_parameters(self) -> list[nn.Parameter]:
        """The gates' parameters, for an optimizer of their own (Merging: SGD, lr 0.1 or 0.2, momentum 0.9)."""
        return list(self.gates.locs)

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but the gates'."""
        return list(self.graph.parameters())

    def sparsity_loss(self) -> Tensor:
        """Sum over groups of (r - mean P[g > 0])^2 (Merging, L_half); lambda times it is added to the loss."""
        return torch.stack([group.sparsity_loss() for group in self.gate_groups.values()]).sum()

    def opened(self) -> AbstractContextManager[None]:
        """All gates are 1 inside: the network is the mean of its teachers, before any training."""
        return self.gates.opened()

    @torch.no_grad()
    def open_gates(self) -> dict[str, list[int]]:
        """For each group, how many gates of each teacher are more likely open than closed."""
        table = {}
        for name, group in self.gate_groups.items():
            open_ = (group.open_probability() > 0.5).cpu()
            table[name] = [int(open_[group.teacher == t].sum()) for t in range(self._kept.teachers)]
        return table

    def selection(self) -> dict[str, Tensor]:
        """Numbers of the units of each group that :meth:`compress` keeps by default: the largest ``loc``."""
        locs = zip(self.gate_groups, self.gates.locs, self._counts, strict=True)
        return {name: largest(loc, count) for name, loc, count in locs}

    @torch.no_grad()
    def compress(self, keep: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The network of the kept units, without gates (Merging; SPEC 2.3).

        Weights, biases and buffers of the kept units are sliced out, and the value that a kept gate has in evaluation
        is multiplied into the layer after it.

        Args:
            keep: Numbers of the units to keep, by group; groups that are not named keep those with the largest ``loc``.
                Numbers count through the first teacher's units, then the second's, and so on.

        Returns:
            A network on the student's device and in its precision, in eval mode. Where every group keeps as
            many units as the architecture has, it is of the original class; otherwise it is a graph with the widths
            that result.

        Raises:
            UnknownOptionError: No group of that name.
            OutOfRangeError: Units that do not exist or are named twice, or none.
        """
        chosen = self.selection()
        for name, numbers in (keep or {}).items():
            if name not in chosen:
                raise UnknownOptionError("group", name, chosen)
            chosen[name] = check_kept(name, numbers, len(self.gate_groups[name].loc))
        kept_units = list(chosen.values())
        groups, template = self._kept.groups, self._typed_template()
        state = self._folded_state()
        if self.union:
            template = with_outputs(template, {str(node.target) for node in self._coupling.outputs}, state)
        if all(len(units) == group.size for units, group in zip(kept_units, groups.groups, strict=True)):
            network = plain_copy(template, original_state(state, template, self._widened.places, groups, kept_units))
        else:
            teachers = self._kept.teachers
            kept = Kept(groups, teachers, chosen_units(groups, teachers, kept_units), self._kept.borders)
            small = widen(self._coupling, [template] * teachers, kept, None, joint_norms=True)
            network = small.graph
            network.load_state_dict(resized_state(state, small, self._widened.places), strict=True)
        return network.to(self.gates.step.device).eval()

    def _typed_template(self) -> nn.Module:
        """The network to be filled, in the student's precision."""
        template, dtype = self._template[0], next(self.graph.parameters()).dtype
        if next(template.parameters()).dtype == dtype:
            return template
        return copy.deepcopy(template).to(dtype)

    def _folded_state(self) -> dict[str, Tensor]:
        """The wide network's tensors, each gate's value in evaluation multiplied into the layer after it."""
        state = self._widened.state()
        gates = [group.importance() for group in self.gate_groups.values()]
        sizes = [group.size for group in self._kept.groups.groups]
        for fold in self._widened.folds:
            group = self._kept.groups.group_of[fold.labels].tolist()
            unit = self._kept.groups.unit_of[fold.labels].tolist()
            factor = torch.stack(
                [gates[g][t * sizes[g] + u] for g, t, u in zip(group, fold.teacher.tolist(), unit, strict=True)]
            )
            weight = state[fold.tensor]
            shape = [-1 if dim == fold.dim else 1 for dim in range(weight.ndim)]
            state[fold.tensor] = weight * factor.reshape(shape).to(weight.dtype)
        return state
