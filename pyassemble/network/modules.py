"""What a module is to alignment: its kind, its wrapping, and whether it can be read at all."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyassemble.errors import UnsupportedNetworkError

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterable

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

#: Layers that carry a weight matrix or kernel; DPIAT counts them to decide what is a block.
WEIGHT_LAYERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear)

#: Layers that DPIAT scores, its section on standardization.
SCORED_LAYERS: tuple[type[nn.Module], ...] = (*WEIGHT_LAYERS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Traits(NamedTuple):
    """What alignment needs to know of a class of modules.

    Attributes:
        base: Name of the DPIAT layer class that it is or derives from; None for any other module.
        counts: Whether DPIAT counts it among the convolution and linear layers.
        refusal: Why its weights cannot be read, if so.
    """

    base: str | None
    counts: bool
    refusal: str | None


_known: dict[type[nn.Module], Traits] = {}


def traits(kind: type[nn.Module]) -> Traits:
    """Traits of a class of modules, found once per class."""
    found = _known.get(kind)
    if found is None:
        found = _known[kind] = Traits(
            base=next((base.__name__ for base in SCORED_LAYERS if issubclass(kind, base)), None),
            counts=issubclass(kind, WEIGHT_LAYERS),
            refusal=_refusal(kind),
        )
    return found


def _refusal(kind: type[nn.Module]) -> str | None:
    origins = [(base.__module__, base.__name__) for base in kind.__mro__]
    if issubclass(kind, nn.modules.lazy.LazyModuleMixin):
        return "is lazy and has no shape yet; run one forward pass first"
    # Quantized layers pack their weights and offer them through a method: they would silently count as weightless.
    if any(module.startswith("torch.ao.nn.") for module, _ in origins) and callable(getattr(kind, "weight", None)):
        return "is quantized and packs its weights; use the float network it was quantized from"
    if any(
        module.startswith("torch.distributed.fsdp") and name == "FullyShardedDataParallel" for module, name in origins
    ):
        return "shards its parameters; transfer before wrapping the network in FSDP"
    return None


def refuse(module: nn.Module, name: str) -> NoReturn:
    """Raise for a module whose traits hold a refusal.

    Raises:
        UnsupportedNetworkError: Always.
    """
    kind = type(module)
    raise UnsupportedNetworkError(f"module {name!r} ({kind.__module__}.{kind.__qualname__}) {traits(kind).refusal}")


def children(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """``module.named_children()``, each child once under its first name, without a generator's cost per child."""
    held = module._modules
    values = held.values()
    if None in values or len(set(map(id, values))) < len(held):
        return list(module.named_children())
    return cast("ItemsView[str, nn.Module]", held.items())


def modules_once(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under its first name, in definition order, as (prefix of its tensors' names, module).

    As ``named_modules()``, without the cost of a generator per level for each module.
    """
    found = [("", network)]
    _descend(network, "", {network}, found)
    return found


def _descend(module: nn.Module, prefix: str, known: set[nn.Module], found: list[tuple[str, nn.Module]]) -> None:
    for name, child in module._modules.items():
        if child is not None and child not in known:
            known.add(child)
            below = f"{prefix}{name}."
            found.append((below, child))
            if child._modules:
                _descend(child, below, known, found)


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of ``module.weight``; None where there is none (a batch norm without affine parameters)."""
    weight: object = module._parameters.get("weight")
    if weight is None:
        # Parametrized layers compute the attribute; a batch norm without affine parameters has None.
        weight = computed(module, "weight") if parametrize.is_parametrized(module, "weight") else module.weight
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else None


def computed(module: nn.Module, role: str) -> torch.Tensor:
    """Value of a parametrized tensor, leaving the parametrization's own state (a power iteration, say) as it is."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    steps = [step for step in parametrizations[role].modules() if step.training]
    for step in steps:
        step.training = False
    try:
        with torch.no_grad():
            value = getattr(module, role)
    finally:
        for step in steps:
            step.training = True
    assert isinstance(value, torch.Tensor)
    return value


def unwrap(network: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DataParallel and DistributedDataParallel wrappers.

    Raises:
        UnsupportedNetworkError: Not a module, or a TorchScript module.
    """
    if not isinstance(network, nn.Module):
        raise UnsupportedNetworkError(
            f"expected a torch.nn.Module, a state_dict or the path of a weights file, got {type(network).__name__}"
        )
    while True:
        inner = _wrapped(network)
        if inner is None:
            break
        network = inner
    if isinstance(network, torch.jit.ScriptModule):
        raise UnsupportedNetworkError(
            f"{network.original_name} is a TorchScript module: its layer types are erased; pass the original module"
        )
    return network


def _wrapped(network: nn.Module) -> nn.Module | None:
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return cast("nn.Module", network.module)
    # torch.compile's wrapper is recognized only if torch._dynamo was ever loaded: importing it takes a second.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None and isinstance(network, dynamo.OptimizedModule):
        return cast("nn.Module", network._orig_mod)
    return None
