"""The wide student: several teachers in one network, with a gate on every unit (Merging, section 3)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyassemble.errors import OutOfRangeError, UnknownOptionError
from pyassemble.merge.compress import (
    check_kept,
    chosen_units,
    largest,
    original_state,
    plain_copy,
    resized_state,
    with_outputs,
)
from pyassemble.merge.fused_activations import fuse_activations
from pyassemble.merge.gates import GateBank, GateGroup, GateSite
from pyassemble.merge.layout import Kept
from pyassemble.merge.stages import single_stage
from pyassemble.merge.widen import widen
from pyassemble.network.coupling import couple
from pyassemble.network.groups import find_groups
from pyassemble.network.outputs import output_layers
from pyassemble.network.traced import trace

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence
    from contextlib import AbstractContextManager

    from pyassemble.merge.layout import Places
    from pyassemble.merge.parts import WideState
    from pyassemble.merge.stages import Stage
    from pyassemble.merge.widen import Widened
    from pyassemble.network.coupling import Coupling


class WideStudent(nn.Module):
    """Several networks of one architecture as one network, to be trained and then compressed.

    With all gates open it computes the mean of its teachers' outputs. Train it with any loop, with
    :meth:`sparsity_loss` times a growing weight added to the loss; then :meth:`compress`.

    A student with a bound of memory learns which units matter in several :attr:`stages`: train, :meth:`next_stage`,
    train on with a new optimizer, and so on.

    Args:
        coupling: Of the architecture; its network gives its parameters up.
        kept: Its groups, with every unit of every teacher.
        teachers: The networks; copied.
        counts: How many units of each group :meth:`compress` keeps.
        seed: Of the gates' initial values and draws.
        example_input: That the coupling was read off with; a student that is unpickled reads it off again.
        union: Whether the student gives all teachers' outputs side by side, not their mean.
        stages: Which groups are chosen together; all of them at once by default.

    Attributes:
        gate_groups: Gates by the name of their group.
        graph: The wide network.
        stages: Names of the groups that are learned together, one list for each stage.
        stage: Number of the present one, from 0; ``len(stages)`` once all units are chosen.
        bounded: Whether it was built with a bound of memory.
    """

    def __init__(
        self,
        coupling: Coupling,
        kept: Kept,
        teachers: Sequence[nn.Module],
        counts: Sequence[int],
        seed: int,
        example_input: Any,
        *,
        union: bool = False,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        super().__init__()
        self._example = tree_map_only(Tensor, lambda part: part.detach().clone(), example_input)
        first = next(teachers[0].parameters())
        groups = kept.groups
        sizes = [kept.teachers * group.size for group in groups.groups]
        self.gates = GateBank(sizes, seed, first.device, first.dtype)
        self._coupling, self._counts = coupling, list(counts)
        self._stages = list(stages or single_stage(groups))
        self.union = union
        self.bounded = stages is not None
        if self.bounded:
            # What a state_dict must say before the rest of it can be loaded: which units are there, and the stage.
            self.register_buffer("present", torch.ones(sum(sizes), dtype=torch.bool, device=first.device))
            self.register_buffer("stage_number", torch.zeros((), dtype=torch.int64, device=first.device))
        _give_up_parameters(coupling.graph)
        self._enter_stage(0, kept, self._built(0, kept, teachers))
        # Held without becoming children: networks of the original class, to be filled. Where outputs lie side by side,
        # each teacher has as many as it likes.
        held = set(self._widened.state())
        self._template = [_without_parameters(teacher, held) for teacher in teachers[: None if union else 1]]

    def _built(self, stage: int, kept: Kept, teachers: Sequence[nn.Module]) -> Widened:
        """The network of a stage."""
        chosen, learned, blocks = self._chosen(stage), self._learned(stage), frozenset[str]()
        if stage < len(self._stages):
            blocks = self._stages[stage].blocks

        def site(labels: Tensor, places: Places) -> GateSite | None:
            groups, units = kept.groups.group_of[labels], kept.groups.unit_of[labels]
            if not learned & set(groups.tolist()):
                return None
            sizes = torch.tensor([group.size for group in kept.groups.groups])
            return GateSite(self.gates, groups, places.teacher * sizes[groups] + units, places.dim)

        device = self.gates.step.device
        widened = widen(
            self._coupling, teachers, kept, site, device, compressed=chosen, blocks=blocks, union=self.union
        )
        fuse_activations(widened.graph)
        return widened

    def _enter_stage(self, stage: int, kept: Kept, widened: Widened) -> None:
        self._stage, self._kept, self._widened = stage, kept, widened
        self.gates.learned = self._learned(stage)
        self.graph = widened.graph
        self.graph.train(self.training)

    def _learned(self, stage: int) -> frozenset[int]:
        return self._stages[stage].groups if stage < len(self._stages) else frozenset()

    def _chosen(self, stage: int) -> frozenset[int]:
        """Groups whose units are chosen before a stage."""
        return frozenset[int]().union(*(passed.groups for passed in self._stages[:stage]))

    def forward(self, *inputs: Any) -> Any:
        """What the architecture's forward gives; in training with gates drawn anew for every sample."""
        if self.training:
            self.gates.advance()
        with self.gates.one_pass():
            return self.graph(*inputs)

    @property
    def gate_groups(self) -> dict[str, GateGroup]:
        """The gates of each group, by its name, in the network's order."""
        teachers = self._kept.teachers
        result = {}
        for group, loc, share in zip(self._kept.groups.groups, self.gates.locs, self._shares(), strict=True):
            teacher = torch.arange(teachers).repeat_interleave(group.size)
            result[group.name] = GateGroup(group.name, loc, group.unit, teacher, share)
        return result

    def _shares(self) -> list[float]:
        """The share of each group's units that compression keeps."""
        return [
            count / (self._kept.teachers * group.size)
            for group, count in zip(self._kept.groups.groups, self._counts, strict=True)
        ]

    @property
    def stages(self) -> list[list[str]]:
        """Names of the groups that are learned together, one list for each stage."""
        groups = self._kept.groups.groups
        return [[groups[number].name for number in sorted(stage.groups)] for stage in self._stages]

    @property
    def stage(self) -> int:
        """Number of the present stage, from 0; ``len(stages)`` once all units are chosen."""
        return self._stage

    def gate_parameters(self) -> list[nn.Parameter]:
        """Parameters of the gates at work, for an optimizer of their own (Merging: SGD, lr 0.1 or 0.2, momentum 0.9).

        Those of the present stage.
        """
        return [self.gates.locs[group] for group in sorted(self.gates.learned)]

    def weight_parameters(self) -> list[nn.Parameter]:
        """All parameters but the gates'; others in each stage."""
        return list(self.graph.parameters())

    def sparsity_loss(self) -> Tensor:
        """Sum over groups of (r - mean P[g > 0])^2 (Merging, L_half); lambda times it is added to the loss.

        Over the groups of the present stage.
        """
        return self.gates.sparsity_loss(self._shares())

    def opened(self) -> AbstractContextManager[None]:
        """All gates are 1 inside: the network is the mean of its teachers, before any training."""
        return self.gates.opened()

    @torch.no_grad()
    def open_gates(self) -> dict[str, list[int]]:
        """For each group, how many gates of each teacher are more likely open than closed.

        Of a group whose units are chosen already, how many those are.
        """
        table, chosen = {}, self._chosen(self._stage)
        for number, (name, group) in enumerate(self.gate_groups.items()):
            open_ = (group.open_probability() > 0.5).cpu()
            if number in chosen:
                open_ = self._kept.units[number].flatten()
            table[name] = [int(open_[group.teacher == t].sum()) for t in range(self._kept.teachers)]
        return table

    def selection(self) -> dict[str, Tensor]:
        """Numbers of the units of each group that :meth:`compress` keeps by default: the largest ``loc``.

        Of a group whose units are chosen already, those.
        """
        chosen = self._chosen(self._stage)
        return {
            group.name: torch.nonzero(units.flatten())[:, 0] if number in chosen else largest(loc, count)
            for number, (group, units, loc, count) in enumerate(
                zip(self._kept.groups.groups, self._kept.units, self.gates.locs, self._counts, strict=True)
            )
        }

    @torch.no_grad()
    def next_stage(self, keep: Mapping[str, Tensor] | None = None) -> None:
        """Chooses the units of the present stage's groups, drops the others, and widens the next groups.

        The student's parameters are others afterwards: an optimizer must be made anew.

        Args:
            keep: As for :meth:`compress`, of the present stage's groups.

        Raises:
            OutOfRangeError: All units are chosen, or as :meth:`compress`.
            UnknownOptionError: A group that is not of this stage.
        """
        if self._stage == len(self._stages):
            raise OutOfRangeError(f"stage {self._stage}: all units are chosen; accepted: compress()")
        present = self.stages[self._stage]
        chosen = self._selected(keep, present)
        numbers = {self._number(name): chosen[name] for name in present}
        state = self._folded_state(self.gates.learned)
        kept = self._reduced(numbers)
        widened = self._built(self._stage + 1, kept, self._templates())
        filled = resized_state(state, widened, self._widened.places)
        widened.graph.load_state_dict(filled, strict=True, assign=True)
        self._enter_stage(self._stage + 1, kept, widened)
        self._note_stage()

    def __deepcopy__(self, memo: dict[int, Any]) -> WideStudent:
        """A student of its own; what is known of the architecture is not copied, as its graph's nodes are names."""
        memo[id(self._coupling)] = self._coupling
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and torch.save: what the student is built from again, and its state."""
        self._templates()  # in the student's precision
        built = {
            "templates": self._template,
            "teachers": self._kept.teachers,
            "counts": self._counts,
            "example_input": self._example,
            "union": self.union,
            "stages": self._stages if self.bounded else None,
        }
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        return _built_again, (built, self.state_dict(), self.training, frozen)

    def rehearse(self) -> None:
        """Builds the networks of all later stages without their weights, so that what fails does so before training.

        Raises:
            UnsupportedOperationError: An operation cannot be done where only some groups' units are chosen.
        """
        selection, numbers = self.selection(), dict[int, Tensor]()
        for stage, names in enumerate(self.stages[self._stage :], self._stage + 1):
            numbers |= {self._number(name): selection[name] for name in names}
            self._built(stage, self._reduced(numbers), self._templates())

    def _reduced(self, numbers: Mapping[int, Tensor]) -> Kept:
        """The units that remain where some groups keep only these numbers."""
        units = list(self._kept.units)
        for group, chosen in numbers.items():
            mask = torch.zeros(units[group].numel(), dtype=torch.bool)
            mask[chosen] = True
            units[group] = mask.reshape(units[group].shape)
        return replace(self._kept, units=units)

    def _note_stage(self) -> None:
        if self.bounded:
            self.get_buffer("present").copy_(torch.cat([units.flatten() for units in self._kept.units]))
            self.get_buffer("stage_number").fill_(self._stage)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Takes the form that the state to be loaded has; its tensors are loaded into it afterwards."""
        present, stage = (state_dict.get(f"{prefix}{name}") for name in ("present", "stage_number"))
        fits = self.bounded and present is not None and present.shape == self.get_buffer("present").shape
        if fits and stage is not None:
            number, sizes = int(stage), [units.numel() for units in self._kept.units]
            masks = torch.split(present.cpu(), sizes)
            units = [mask.reshape(units.shape) for mask, units in zip(masks, self._kept.units, strict=True)]
            same = all(torch.equal(a, b) for a, b in zip(units, self._kept.units, strict=True))
            if 0 <= number <= len(self._stages) and not (number == self._stage and same):
                kept = replace(self._kept, units=units)
                widened = self._built(number, kept, self._templates())
                _materialize(widened.graph, self.gates.step.device)
                self._enter_stage(number, kept, widened)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _templates(self) -> list[nn.Module]:
        """A network for each teacher, in the student's precision, without most of its parameters' numbers."""
        dtype = next(self.graph.parameters()).dtype
        if any(next(template.parameters()).dtype != dtype for template in self._template):
            self._template = [template.to(dtype) for template in self._template]
        return self._template * (self._kept.teachers // len(self._template))

    def _number(self, name: str) -> int:
        return [group.name for group in self._kept.groups.groups].index(name)

    def _selected(self, keep: Mapping[str, Tensor] | None, known: Container[str]) -> dict[str, Tensor]:
        """The selection, with the caller's choice for some groups."""
        selected = self.selection()
        for name, numbers in (keep or {}).items():
            if name not in selected or name not in known:
                raise UnknownOptionError("group", name, [group for group in selected if group in known])
            units = check_kept(name, numbers, len(self.gate_groups[name].loc))
            if self._number(name) in self._chosen(self._stage) and not torch.equal(units, selected[name]):
                raise OutOfRangeError(
                    f"group {name!r}: its units are chosen since an earlier stage; accepted: {selected[name].tolist()}"
                )
            selected[name] = units
        return selected

    @torch.no_grad()
    def compress(self, keep: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The network of the kept units, without gates (Merging; SPEC 2.3).

        Weights, biases and buffers of the kept units are sliced out, and the value that a kept gate has in evaluation
        is multiplied into the layer after it. In a student of several stages, gates of later ones are open.

        Args:
            keep: Numbers of the units to keep, by group; groups that are not named keep those with the largest ``loc``.
                Numbers count through the first teacher's units, then the second's, and so on.

        Returns:
            A network on the student's device and in its precision, in eval mode. Where every group keeps as
            many units as the architecture has, it is of the original class; otherwise it is a graph with the widths
            that result.

        Raises:
            UnknownOptionError: No group of that name.
            OutOfRangeError: Units that do not exist or are named twice, or none; other units than an earlier stage
                chose.
        """
        chosen = self._selected(keep, self.gate_groups)
        kept_units = list(chosen.values())
        groups, template = self._kept.groups, self._templates()[0]
        state = self._folded_state(self.gates.learned)
        if self.union:
            template = with_outputs(template, {str(node.target) for node in self._coupling.outputs}, state)
        if all(len(units) == group.size for units, group in zip(kept_units, groups.groups, strict=True)):
            network = plain_copy(template, original_state(state, template, self._widened.places, groups, kept_units))
        else:
            teachers = self._kept.teachers
            kept = Kept(groups, teachers, chosen_units(groups, teachers, kept_units))
            everything = frozenset(range(len(groups.groups)))
            device = self.gates.step.device
            small = widen(self._coupling, [template] * teachers, kept, None, device, compressed=everything)
            network = small.graph
            filled = resized_state(state, small, self._widened.places)
            network.load_state_dict(filled, strict=True, assign=True)
        return network.to(self.gates.step.device).eval()

    def _folded_state(self, learned: frozenset[int]) -> WideState:
        """The wide network's tensors, each gate's value in evaluation multiplied into the layer after it."""
        groups = self._kept.groups
        gates = [
            group.importance() if number in learned else torch.ones_like(group.loc)
            for number, group in enumerate(self.gate_groups.values())
        ]
        sizes = torch.tensor([group.size for group in groups.groups])
        starts = torch.cumsum(torch.tensor([0, *map(len, gates)]), 0)
        values = torch.cat(gates)
        factors: dict[str, tuple[int, Tensor]] = {}
        for fold in self._widened.folds:
            group, unit = groups.group_of[fold.labels], groups.unit_of[fold.labels]
            if learned & set(group.tolist()):
                place = starts[group] + fold.teacher * sizes[group] + unit
                factors[fold.tensor] = fold.dim, values[place.to(values.device)]
        return self._widened.state(factors)


def _give_up_parameters(network: nn.Module) -> None:
    """Puts parameters without numbers in place of all: only their shapes are wanted."""
    for name, parameter in list(network.named_parameters()):
        _replace(network, name, _empty(parameter))


def _built_again(built: dict[str, Any], state: dict[str, Tensor], training: bool, frozen: list[str]) -> WideStudent:
    """A student like the one that was pickled."""
    step = state["gates.step"]
    networks = [copy.deepcopy(template) for template in built["templates"]]
    for network in networks:
        _materialize(network, step.device)
    example = tree_map_only(Tensor, lambda part: part.to(step.device), built["example_input"])
    traced = trace(networks[0], example)
    owned = [name for name, _ in networks[0].named_parameters()]
    coupling = couple(traced, output_layers(traced), owned)
    kept = Kept.all(find_groups(coupling), built["teachers"])
    teachers = networks * (built["teachers"] // len(networks))
    union, stages = built["union"], built["stages"]
    student = WideStudent(coupling, kept, teachers, built["counts"], 0, example, union=union, stages=stages)
    student.load_state_dict(state)
    for name in frozen:
        student.get_parameter(name).requires_grad_(False)
    return student.train(training)


def _without_parameters(network: nn.Module, names: Container[str]) -> nn.Module:
    """A copy, of some of whose parameters there are only the shapes."""
    memo = {id(parameter): _empty(parameter) for name, parameter in network.named_parameters() if name in names}
    return copy.deepcopy(network, memo)


def _materialize(network: nn.Module, device: torch.device) -> None:
    """Gives parameters without numbers room for them."""
    for name, parameter in list(network.named_parameters()):
        if parameter.is_meta:
            _replace(network, name, nn.Parameter(torch.zeros_like(parameter, device=device)))


def _empty(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def _replace(network: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    setattr(network.get_submodule(path), last, parameter)
