"""Which networks can be merged, checked before anything is built."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pyassemble.errors import ArgumentTypeError, MismatchError, OutOfRangeError, TensorError, UnsupportedNetworkError
from pyassemble.network.modules import refuse, traits, unwrap
from pyassemble.network.traced import LAYERS, example_arguments

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pyassemble.network.groups import Groups

_ACCEPTED = (torch.float32, torch.float64)


def check_teachers(networks: Sequence[nn.Module]) -> list[nn.Module]:
    """The networks without wrappers, if each of them can be merged with others of its kind.

    Raises:
        ArgumentTypeError: No sequence of networks, or fewer than two.
        UnsupportedNetworkError: A network that cannot be read, is in train mode, or shares modules or weights.
        MismatchError: One network is given twice.
        TensorError: Parameters in another precision than float32 or float64, or not finite.
    """
    if isinstance(networks, nn.Module) or not isinstance(networks, list | tuple) or len(networks) < 2:
        raise ArgumentTypeError("networks must be a list of at least two networks of one architecture")
    teachers = [unwrap(network) for network in networks]
    for number, teacher in enumerate(teachers):
        _check_alone(teacher, f"network {number}")
    if len({id(teacher) for teacher in teachers}) < len(teachers):
        raise MismatchError("one network is given twice; load it twice if that is meant")
    return teachers


def _check_alone(teacher: nn.Module, which: str) -> None:
    for name, module in teacher.named_modules():
        if traits(type(module)).refusal:
            refuse(module, name)
        if module.training:
            raise UnsupportedNetworkError(
                f"{which}: module {name!r} ({type(module).__name__}) is in train mode; call .eval() first: the wide "
                "student starts as the mean of the networks in eval mode"
            )
        _check_weights(name, module, which)
    _check_shared_modules(teacher, which)
    owners: dict[tuple[Any, ...], str] = {}
    for name, parameter in teacher.named_parameters(remove_duplicate=False):
        shape = tuple(parameter.shape)
        if parameter.is_meta:
            raise TensorError(f"{which}: {name} {shape} is on the meta device and has no values")
        if parameter.dtype not in _ACCEPTED:
            raise TensorError(
                f"{which}: {name} {shape} is {str(parameter.dtype).removeprefix('torch.')}; accepted: float32, float64 "
                "(call .float() first; training in mixed precision is autocast's work)"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise TensorError(f"{which}: {name} {shape} has values that are not finite")
        if parameter.numel():
            key = (parameter.untyped_storage().data_ptr(), parameter.storage_offset(), shape, parameter.stride())
            if owners.setdefault(key, name) != name:
                raise UnsupportedNetworkError(
                    f"{which}: {name} {shape} and {owners[key]} are one tensor; weights tied across layers cannot be "
                    "merged"
                )


def _check_weights(name: str, layer: nn.Module, which: str) -> None:
    """A layer must compute from its weight and bias: what else it holds would not be merged with them."""
    if not isinstance(layer, LAYERS):
        return
    if parametrize.is_parametrized(layer):
        raise UnsupportedNetworkError(
            f"{which}: module {name!r} ({type(layer).__name__}) is parametrized; call "
            "torch.nn.utils.parametrize.remove_parametrizations first, which keeps its present weight"
        )
    own = {key: tensor for key, tensor in layer.named_parameters(recurse=False) if key not in ("weight", "bias")}
    if own:
        key, tensor = next(iter(own.items()))
        raise UnsupportedNetworkError(
            f"{which}: module {name!r} ({type(layer).__name__}) holds the parameter {key!r} {tuple(tensor.shape)}; "
            "accepted are layers with weight and bias alone (remove weight or spectral norm and pruning first)"
        )


def _check_shared_modules(teacher: nn.Module, which: str) -> None:
    names: dict[int, str] = {}
    for name, module in teacher.named_modules(remove_duplicate=False):
        if next(module.parameters(), None) is None:
            continue
        if names.setdefault(id(module), name) != name:
            raise UnsupportedNetworkError(
                f"{which}: {name!r} and {names[id(module)]!r} are one {type(module).__name__}; shared modules cannot "
                "be merged"
            )


def check_alike(teachers: Sequence[nn.Module], heads: Collection[str], *, union: bool) -> None:
    """Refuses networks that are not of one architecture.

    Args:
        teachers: From :func:`check_teachers`.
        heads: Names of the tensors of the output layers.
        union: Whether these may differ in their number of outputs.

    Raises:
        MismatchError: They differ; the message names the first difference.
    """
    for number, teacher in enumerate(teachers[1:], 1):
        _check_pair(teachers[0], teacher, f"network {number}", heads, union)


def _check_pair(first: nn.Module, other: nn.Module, which: str, heads: Collection[str], union: bool) -> None:
    if type(first) is not type(other):
        raise MismatchError(f"{which} is a {type(other).__name__}, network 0 a {type(first).__name__}")
    mine, theirs = _state(first), _state(other)
    for name in (*mine, *theirs):
        if name not in theirs or name not in mine:
            has = "network 0" if name in mine else which
            lacks = which if name in mine else "network 0"
            raise MismatchError(f"{lacks} has no {name!r}, which {has} has with shape {_shape(mine, theirs, name)}")
        a, b = mine[name], theirs[name]
        if a.shape != b.shape and not (union and name in heads and a.shape[1:] == b.shape[1:]):
            hint = ' (head="union" keeps all outputs side by side)' if name in heads else ""
            raise MismatchError(f"{name!r} has shape {tuple(b.shape)} in {which}, {tuple(a.shape)} in network 0{hint}")
        if a.dtype != b.dtype:
            raise MismatchError(f"{name!r} is {b.dtype} in {which}, {a.dtype} in network 0")
        if a.device != b.device:
            raise MismatchError(f"{name!r} is on {b.device} in {which}, on {a.device} in network 0")


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _shape(mine: dict[str, Tensor], theirs: dict[str, Tensor], name: str) -> tuple[int, ...]:
    return tuple((mine.get(name) if name in mine else theirs[name]).shape)  # type: ignore[union-attr]


def check_example(example_input: Any, network: nn.Module) -> None:
    """The example input must be a batch on the networks' device.

    Raises:
        ArgumentTypeError: No tensor, or no tuple of positional arguments.
        MismatchError: It is on another device.
    """
    arguments = example_arguments(example_input)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if not tensors:
        raise ArgumentTypeError(
            f"example_input must be a tensor or a tuple of positional arguments, not {type(example_input).__name__}"
        )
    device = next((parameter.device for parameter in network.parameters()), tensors[0].device)
    for tensor in tensors:
        if tensor.device != device:
            raise MismatchError(f"example_input {tuple(tensor.shape)} is on {tensor.device}, the networks on {device}")


def kept_counts(groups: Groups, teachers: int, keep: float) -> list[int]:
    """How many units of each group a ratio keeps.

    Where a layer's channels are several groups, as after a shuffle, the ratio need not divide each of them: what it
    leaves of all of them is shared out by largest remainders, one unit to each at least.

    Raises:
        OutOfRangeError: The ratio is outside (0, 1], or leaves no whole number of a layer's units, or fewer than its
            groups.
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1 or not math.isfinite(keep):
        raise OutOfRangeError(f"keep must be in (0, 1], not {keep!r}")
    counts = [0] * len(groups.groups)
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, group in enumerate(groups.groups):
        members[group.layer, group.unit].append(number)
    for (layer, unit), numbers in members.items():
        available = [teachers * groups.groups[number].size for number in numbers]
        units, least = sum(available), len(numbers)
        count = round(keep * units)
        if count < least or abs(count - keep * units) > 1e-6 * units:
            several = f"s {', '.join(groups.groups[number].name for number in numbers)}" if least > 1 else f" {layer!r}"
            raise OutOfRangeError(
                f"group{several}: {units} {unit}s, of which a share of {keep:g} is {keep * units:g}; accepted are "
                f"shares that leave a whole number{f' of at least {least}' if least > 1 else ''}, such as "
                f"{max(least, count)}/{units}"
            )
        for number, share in zip(numbers, _shared_out(count, [keep * units for units in available]), strict=True):
            counts[number] = share
    return counts


def _shared_out(count: int, exact: Sequence[float]) -> list[int]:
    """Whole numbers >= 1 of a given sum, near given ones of the same sum; ties go to the first."""
    shares = [max(1, math.floor(value + 1e-6)) for value in exact]
    while sum(shares) < count:
        remainders = [value - share for value, share in zip(exact, shares, strict=True)]
        shares[remainders.index(max(remainders))] += 1
    while sum(shares) > count:  # where one was more than its part, the largest give
        shares[shares.index(max(shares))] -= 1
    return shares
