"""What a module is to alignment: its kind, its wrapping, and whether it can be read at all."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyassemble.errors import UnsupportedNetworkError

#: Layers that carry a weight matrix or kernel; DPIAT counts them to decide what is a block.
WEIGHT_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)

#: Layers that DPIAT scores, its section on standardization.
SCORED_LAYERS: tuple[type[nn.Module], ...] = (*WEIGHT_LAYERS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@cache
def scored_base(kind: type[nn.Module]) -> str | None:
    """Name of the DPIAT layer class that ``kind`` is or derives from; None for any other module."""
    # Quantized layers pack their weights and offer them through a method: they would silently count as weightless.
    if any(base.__module__.startswith("torch.ao.nn.") for base in kind.__mro__) and callable(
        getattr(kind, "weight", None)
    ):
        raise UnsupportedNetworkError(
            f"{kind.__module__}.{kind.__qualname__} is a quantized module: its weights are packed; "
            "use the float network it was quantized from"
        )
    return next((base.__name__ for base in SCORED_LAYERS if issubclass(kind, base)), None)


@cache
def has_weight_matrix(kind: type[nn.Module]) -> bool:
    """Whether DPIAT counts ``kind`` among the convolution and linear layers."""
    return issubclass(kind, WEIGHT_LAYERS)


@cache
def _is_lazy_class(kind: type[nn.Module]) -> bool:
    return issubclass(kind, nn.modules.lazy.LazyModuleMixin)


def refuse_lazy(module: nn.Module, name: str) -> None:
    """Refuse a layer that has no shape yet: on its first forward pass it becomes one of an ordinary class.

    Raises:
        UnsupportedNetworkError: The module is lazy.
    """
    if _is_lazy_class(type(module)):
        raise UnsupportedNetworkError(
            f"layer {name!r} ({type(module).__name__}) is lazy and has no shape yet; run one forward pass first"
        )


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of ``module.weight``; None where there is none (a batch norm without affine parameters)."""
    weight = module._parameters.get("weight")
    if weight is None:
        # Parametrized layers compute the attribute; a batch norm without affine parameters has None.
        weight = computed(module, "weight") if parametrize.is_parametrized(module, "weight") else module.weight
        if not isinstance(weight, torch.Tensor):
            return None
    return tuple(weight.shape)


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
        UnsupportedNetworkError: Not a module, a TorchScript module, or one whose parameters are sharded by FSDP.
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
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in network.modules()):
        raise UnsupportedNetworkError("the network's parameters are sharded by FSDP; transfer before wrapping it")
    return network


def _wrapped(network: nn.Module) -> nn.Module | None:
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return network.module
    # torch.compile's wrapper is recognized only if torch._dynamo was ever loaded: importing it takes a second.
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    if dynamo is not None and isinstance(network, dynamo.OptimizedModule):
        inner = network._orig_mod
        assert isinstance(inner, nn.Module)
        return inner
    return None
