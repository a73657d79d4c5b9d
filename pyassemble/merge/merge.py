"""``pa.merge``: from trained networks of one architecture to the wide student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyassemble.errors import UnknownOptionError, UnsupportedOperationError
from pyassemble.merge.checks import check_alike, check_example, check_teachers, kept_counts
from pyassemble.merge.layout import Kept
from pyassemble.merge.stages import plan_stages
from pyassemble.merge.student import WideStudent
from pyassemble.network.coupling import couple
from pyassemble.network.groups import find_groups
from pyassemble.network.outputs import output_layers
from pyassemble.network.traced import example_arguments, trace

if TYPE_CHECKING:
    from collections.abc import Sequence

# What rounding does to a deep network in float32; a wrong graph misses by orders of magnitude more.
_TOLERANCE = 1e-2

HEADS = ("mean", "union")


def merge(
    networks: Sequence[nn.Module],
    example_input: Any,
    *,
    keep: float | None = None,
    seed: int = 0,
    head: str = "mean",
    memory: float | None = None,
) -> WideStudent:
    """Joins trained networks of one architecture into a wide student (Merging, section 3).

    Which channels belong together is read from the traced graph. The student computes the mean of the networks'
    outputs as long as its gates are open; training it with :meth:`WideStudent.sparsity_loss` closes the gates of what
    is not needed, and :meth:`WideStudent.compress` gives a network of the original size.

    Args:
        networks: N >= 2 trained networks of one architecture, in eval mode, in float32 or float64, on one device. They
            stay as they are.
        example_input: A batch that they take, or a tuple of positional arguments.
        keep: Share of all units that compression keeps, in (0, 1]; None for 1/N, the original size.
        seed: Of the gates' initial values and draws.
        head: "mean": the student gives the mean of the networks' outputs (Merging). "union": it gives all of them side
            by side, for networks with other classes each.
        memory: Bound on the student's parameters while it learns which units matter, in multiples of all networks'
            together; an optimizer's state grows with them. None for the full student, which has up to N times as many.
            With a bound, groups are widened and chosen a few at a time (:attr:`WideStudent.stages`); 1.3 leaves room
            for most layers' weights between the networks.

    Returns:
        The wide student, in eval mode.

    Raises:
        ArgumentTypeError: Fewer than two networks, no example input, or an option that is no number.
        MismatchError: The networks are not of one architecture, or lie on different devices.
        UnsupportedNetworkError: A network in train mode, with shared modules, with weights tied across layers, or with
            layers that hold more than weight and bias (parametrizations, pruning masks).
        UntraceableError: The forward pass cannot be traced, or does not take the example input.
        UnsupportedOperationError: An operation cannot be merged; the message names it.
        OutOfRangeError: A ratio that leaves no whole number of units in a group, or a bound of memory that not even
            the networks' own weights fit.
        TensorError: Half precision, or weights that are not finite.
        UnknownOptionError: Another ``head``.
    """
    if head not in HEADS:
        raise UnknownOptionError("head", head, HEADS)
    union = head == "union"
    teachers = check_teachers(networks)
    check_example(example_input, teachers[0])
    traced = trace(teachers[0], example_input)
    owned = [name for name, _ in teachers[0].named_parameters()]
    outputs = output_layers(traced)
    tensors = {f"{node.target}.{tensor}" for node in outputs for tensor in ("weight", "bias")}
    check_alike(teachers, tensors, union=union)
    coupling = couple(traced, outputs, owned)
    groups = find_groups(coupling)
    counts = kept_counts(groups, len(teachers), 1 / len(teachers) if keep is None else keep)
    stages = None if memory is None else plan_stages(coupling, groups, counts, teachers[0], len(teachers), memory)
    kept = Kept.all(groups, len(teachers))
    student = WideStudent(coupling, kept, teachers, counts, seed, example_input, union=union, stages=stages)
    student.eval()
    _check_mean(student, teachers, example_input)
    if memory is not None:
        student.rehearse()
    return student


@torch.no_grad()
def _check_mean(student: WideStudent, teachers: list[nn.Module], example_input: Any) -> None:
    """No silent mistake: the student must give the mean of the teachers' outputs on the example."""
    arguments = example_arguments(example_input)
    outputs = [_tensors(teacher(*arguments)) for teacher in teachers]
    try:
        with student.opened():
            wide = _tensors(student(*arguments))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UnsupportedOperationError(
            f"{type(teachers[0]).__name__} computes with sizes in a way that is not known: {_first_line(error)}"
        ) from error
    for parts, value in zip(zip(*outputs, strict=True), wide, strict=True):
        mean = _joined(parts, value) if student.union else torch.stack(parts).mean(0)
        missed = float((value - mean).abs().max()) if mean.numel() else 0.0
        scale = max(float(part.abs().max()) for part in parts) if mean.numel() else 0.0
        if not missed <= _TOLERANCE * scale + 1e-6:
            raise UnsupportedOperationError(
                f"{type(teachers[0]).__name__} computes something that the traced graph does not show: the wide "
                f"student misses the mean of the outputs by {missed:.3g} (they reach {scale:.3g})"
            )


def _joined(parts: Sequence[Tensor], value: Tensor) -> Tensor:
    """Outputs side by side, along the dimension in which the student's is larger."""
    dim = next((d for d in range(value.ndim) if value.shape[d] != parts[0].shape[d]), None)
    if dim is None:
        raise UnsupportedOperationError(f"an output of shape {tuple(value.shape)} cannot be laid side by side")
    return torch.cat(list(parts), dim)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
