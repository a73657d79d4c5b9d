"""Reading the tensors of a source's layers and writing those of a target's, whatever holds them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from pyassemble.errors import TensorError, UnsupportedNetworkError
from pyassemble.network.modules import computed, unwrap
from pyassemble.transfer.checks import is_weight

if TYPE_CHECKING:
    from pyassemble.network.standardize import NetworkLike


class Held(NamedTuple):
    """A parameter or buffer, and the module that holds it.

    Moving a module to another device or dtype replaces its buffers, so a tensor is looked up again when it is put back.
    """

    tensor: torch.Tensor
    owner: nn.Module
    role: str

    def current(self) -> torch.Tensor:
        """The tensor that the module holds now."""
        parameter = self.owner._parameters.get(self.role)
        found = parameter if parameter is not None else self.owner._buffers.get(self.role)
        return found if found is not None else self.tensor


class Slot(NamedTuple):
    """One tensor of a network.

    Attributes:
        name: Its full name.
        value: Its value; computed, where a parametrization computes it.
        owner: The module that holds it; None for a tensor of a state_dict.
        parametrization: The chain of parametrizations, if any.
    """

    name: str
    value: torch.Tensor
    owner: nn.Module | None = None
    parametrization: parametrize.ParametrizationList | None = None

    @property
    def stored(self) -> tuple[Held, ...]:
        """What a module holds for it: itself, or the tensors a parametrization computes it from."""
        if self.parametrization is not None:
            return originals(self.parametrization)
        return () if self.owner is None else (Held(self.value, self.owner, self.name.rpartition(".")[2]),)


class Tensors(Protocol):
    """The tensors of a network by layer and role."""

    def layer(self, layer: str, buffers: bool) -> dict[str, Slot]:
        """Slots of the layer of that name by role; the scored tensor has role ``"weight"``."""
        ...


class ModuleTensors:
    """Tensors of a module."""

    def __init__(self, network: nn.Module) -> None:
        self.network = unwrap(network)
        self._modules = dict(self.network.named_modules(remove_duplicate=False))

    def layer(self, layer: str, buffers: bool) -> dict[str, Slot]:
        """Slots of a layer by role: a whole module's, or one tensor of it and its bias."""
        module = self._modules.get(layer)
        if module is not None:
            return self._whole(module, layer, buffers)
        path, _, attribute = layer.rpartition(".")
        module = self._modules[path]
        if attribute == "running_mean":
            # A norm without affine parameters is led by its statistics.
            return self._whole(module, path, buffers)
        slots = {"weight": _slot(module, path, attribute)}
        bias = attribute.replace("weight", "bias")
        if bias != attribute and module._parameters.get(bias) is not None:
            slots["bias"] = _slot(module, path, bias)
        return slots

    def _whole(self, module: nn.Module, name: str, buffers: bool) -> dict[str, Slot]:
        prefix = f"{name}." if name else ""
        slots = {
            role: Slot(prefix + role, parameter, module)
            for role, parameter in module._parameters.items()
            if parameter is not None
        }
        if "parametrizations" in module._modules and parametrize.is_parametrized(module):
            parametrizations = module.parametrizations
            assert isinstance(parametrizations, nn.ModuleDict)
            slots.update((role, _parametrized(module, prefix, role)) for role in parametrizations)
        if "weight" not in slots and "weight" not in module._buffers and _has_tensor(module, "weight"):
            raise TensorError(
                f"{prefix}weight is computed by a hook from {', '.join(slots)} (old-style weight_norm, spectral_norm "
                "or pruning); use torch.nn.utils.parametrizations, or remove the hook, to make it a tensor of its own"
            )
        if buffers:
            for role, statistic in _statistics(module).items():
                slots[role] = Slot(prefix + role, statistic, module)
        return slots

    def carriers(self, touched: set[str]) -> tuple[list[str], int]:
        """What the network learned: every parameter and normalization statistic once, tied ones under their first name.

        A parametrized tensor counts as itself, not as its originals. Other buffers (index tables, coordinate grids)
        follow from the architecture and carry nothing learned.

        Args:
            touched: Full names of tensors; of tied ones, any of theirs.

        Returns:
            Names of all others, and the number of elements of all.
        """
        found: dict[int, str | None] = {}  # first name by identity; None where touched
        elements = 0
        for path, module in self._modules.items():
            parameters, buffers = module._parameters, module._buffers
            if not (parameters or buffers or module._modules) or isinstance(module, parametrize.ParametrizationList):
                continue
            prefix = f"{path}." if path else ""
            for role, tensor in ({**parameters, **_statistics(module)} if buffers else parameters).items():
                if tensor is None:
                    continue
                name = prefix + role
                if id(tensor) not in found:
                    found[id(tensor)] = name
                    elements += tensor.numel()
                if name in touched:
                    found[id(tensor)] = None
            if "parametrizations" in module._modules and parametrize.is_parametrized(module):
                parametrizations = module.parametrizations
                assert isinstance(parametrizations, nn.ModuleDict)
                for role in parametrizations:
                    slot = _parametrized(module, prefix, role)
                    elements += slot.value.numel()
                    found[id(slot.stored[0].tensor)] = None if slot.name in touched else slot.name
        return [name for name in found.values() if name is not None], elements


def _has_tensor(module: nn.Module, role: str) -> bool:
    return isinstance(getattr(module, role, None), torch.Tensor)


def _statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    """The persistent buffers in which a normalization layer keeps what it learned.

    All those of a batch norm, and of any other layer with a one-dimensional weight those of the weight's shape; not the
    masks and index tables that layers keep in buffers too.
    """
    buffers = module._buffers
    if not buffers:
        return {}
    skipped = module._non_persistent_buffers_set
    persistent = {role: buffer for role, buffer in buffers.items() if buffer is not None and role not in skipped}
    if not persistent or isinstance(module, nn.modules.batchnorm._NormBase):
        return persistent
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1:
        return {}
    return {role: b for role, b in persistent.items() if b.shape == weight.shape and is_weight(b)}


def _slot(module: nn.Module, path: str, role: str) -> Slot:
    prefix = f"{path}." if path else ""
    if parametrize.is_parametrized(module, role):
        return _parametrized(module, prefix, role)
    held: torch.Tensor | None = module._parameters.get(role)
    if held is None:
        held = module._buffers[role]
    assert held is not None
    return Slot(prefix + role, held, module)


def _parametrized(module: nn.Module, prefix: str, role: str) -> Slot:
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    steps = parametrizations[role]
    assert isinstance(steps, parametrize.ParametrizationList)
    return Slot(prefix + role, computed(module, role), module, steps)


def originals(steps: parametrize.ParametrizationList) -> tuple[Held, ...]:
    """The tensors from which a parametrization computes its value."""
    names = ["original"] if steps.is_tensor else [f"original{i}" for i in range(steps.ntensors)]
    return tuple(Held(getattr(steps, name), steps, name) for name in names)


class StateTensors:
    """Tensors of a state_dict."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._by_layer: dict[str, dict[str, Slot]] = defaultdict(dict)
        self._by_name: dict[str, Slot] = {}
        for name, tensor in state.items():
            path, _, role = name.rpartition(".")
            self._by_name[name] = self._by_layer[path][role] = Slot(name, tensor)

    def layer(self, layer: str, buffers: bool) -> dict[str, Slot]:
        """Slots of a layer by role."""
        slots = self._by_layer.get(layer)
        if slots is not None and "weight" in slots:
            return {role: slot for role, slot in slots.items() if buffers or not _is_statistic(role)}
        path, _, attribute = layer.rpartition(".")
        found = {"weight": self._by_name[layer]}
        bias = attribute.replace("weight", "bias")
        if bias != attribute and bias in self._by_layer[path]:
            found["bias"] = self._by_layer[path][bias]
        return found


def _is_statistic(role: str) -> bool:
    # In a state_dict nothing else tells buffers from parameters.
    return role.startswith("running_") or role == "num_batches_tracked"


def source_tensors(source: NetworkLike) -> Tensors:
    """Tensors of a source: a module's, a state_dict's, or those of a weights file."""
    if isinstance(source, nn.Module):
        return ModuleTensors(source)
    if isinstance(source, Mapping):
        return StateTensors(source)
    if isinstance(source, str | os.PathLike):
        from pyassemble.network.weights import read_weights

        return StateTensors(read_weights(Path(source)))
    raise UnsupportedNetworkError(f"a source is a module, a state_dict or a path, not {type(source).__name__}")
