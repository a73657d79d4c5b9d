"""Reading the tensors of a source's layers and writing those of a target's, whatever holds them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from pyassemble.errors import TensorError, UnsupportedNetworkError
from pyassemble.network.modules import computed, modules_once, unwrap
from pyassemble.transfer.checks import is_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.network.layers import LayerSequence
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


class TensorNames(NamedTuple):
    """Names of tensors by layer and role, made when they are asked for; keeps no tensor alive.

    Attributes:
        layers: Name of each layer.
        others: Names by role in those layers where they do not follow from the layer's.
    """

    layers: Sequence[str]
    others: Mapping[int, Mapping[str, str]]

    def of(self, layer: int, role: str) -> str:
        """Full name of a tensor."""
        if layer in self.others:
            return self.others[layer][role]
        prefix = self.layers[layer]
        return f"{prefix}.{role}" if prefix else role


class Tensors(Protocol):
    """The tensors of a network by layer (its position in the sequence) and role; the scored one is ``"weight"``."""

    def roles(self, layer: int, buffers: bool) -> Mapping[str, torch.Tensor | None]:
        """Tensors of a layer by role; None counts as absent."""
        ...

    def slot(self, layer: int, role: str, tensor: torch.Tensor) -> Slot:
        """The slot of a tensor that :meth:`roles` gave."""
        ...

    def names(self) -> TensorNames:
        """Names of all tensors given so far."""
        ...


class ModuleTensors:
    """Tensors of a module.

    Most layers are plain modules, whose own dictionaries are read as they are; slots are made for the others only.

    Args:
        network: The module.
        layers: Its layers.
        modules: The module of each layer, where layers are whole modules; otherwise they are found by name.
    """

    def __init__(self, network: nn.Module, layers: LayerSequence, modules: Sequence[nn.Module] | None) -> None:
        self.network = unwrap(network)
        self._names = layers.names
        self._modules = modules
        self._by_name = {} if modules is not None else dict(self.network.named_modules(remove_duplicate=False))
        self._others: dict[int, dict[str, Slot]] = {}  # of layers that are no plain modules

    @property
    def has_parametrized(self) -> bool:
        """Whether a tensor given so far is computed by a parametrization."""
        slots = (slot for layer in self._others.values() for slot in layer.values())
        return any(slot.parametrization is not None for slot in slots)

    def roles(self, layer: int, buffers: bool) -> Mapping[str, torch.Tensor | None]:
        """Tensors of a layer by role: a whole module's, or one tensor of it and its bias."""
        if self._modules is not None:
            module = self._modules[layer]
            parameters = module._parameters
            if parameters.get("weight") is not None and "parametrizations" not in module._modules:
                return {**parameters, **_statistics(module)} if buffers and module._buffers else parameters
        found = self._others[layer] = self._slots(layer, buffers)
        return {role: slot.value for role, slot in found.items()}

    def slot(self, layer: int, role: str, tensor: torch.Tensor) -> Slot:
        """The slot of a tensor that :meth:`roles` gave."""
        if layer in self._others:
            return self._others[layer][role]
        assert self._modules is not None
        return Slot(self.names().of(layer, role), tensor, self._modules[layer])

    def names(self) -> TensorNames:
        """Names of all tensors given so far."""
        others = {i: {role: slot.name for role, slot in slots.items()} for i, slots in self._others.items()}
        return TensorNames(self._names, others)

    def _slots(self, layer: int, buffers: bool) -> dict[str, Slot]:
        name = self._names[layer]
        module = self._by_name.get(name) if self._modules is None else self._modules[layer]
        if module is not None:
            return self._whole(module, name, buffers)
        path, _, attribute = name.rpartition(".")
        module = self._by_name[path]
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
                if statistic is not None:
                    slots[role] = Slot(prefix + role, statistic, module)
        return slots

    def carriers(self, written: set[int]) -> tuple[list[str], int]:
        """What the network learned: every parameter and normalization statistic once, tied ones under their first name.

        A parametrized tensor counts as itself, not as its originals. Other buffers (index tables, coordinate grids)
        follow from the architecture and carry nothing learned.

        Args:
            written: ``id`` of every tensor that was written; of a parametrized one, of the first of its originals.

        Returns:
            Names of all others, and the number of elements of all.
        """
        known: set[int] = set()
        tensors: list[torch.Tensor] = []
        names: list[str] = []
        for prefix, module in modules_once(self.network):
            held: Mapping[str, torch.Tensor | None] = module._parameters
            has_buffers, has_parametrized = bool(module._buffers), "parametrizations" in module._modules
            if not (held or has_buffers or has_parametrized) or isinstance(module, parametrize.ParametrizationList):
                continue
            if has_buffers:
                held = {**held, **_statistics(module)}
            for role, tensor in held.items():
                if tensor is None:
                    continue
                key = id(tensor)
                if key not in known:
                    known.add(key)
                    tensors.append(tensor)
                    if key not in written:
                        names.append(prefix + role)
            if has_parametrized and parametrize.is_parametrized(module):
                parametrizations = module.parametrizations
                assert isinstance(parametrizations, nn.ModuleDict)
                for role in parametrizations:
                    slot = _parametrized(module, prefix, role)
                    tensors.append(slot.value)
                    if id(slot.stored[0].tensor) not in written:
                        names.append(slot.name)
        return names, sum(map(torch.Tensor.numel, tensors))


def _has_tensor(module: nn.Module, role: str) -> bool:
    return isinstance(getattr(module, role, None), torch.Tensor)


def _statistics(module: nn.Module) -> Mapping[str, torch.Tensor | None]:
    """The persistent buffers in which a normalization layer keeps what it learned; None counts as absent.

    All those of a batch norm, and of any other layer with a one-dimensional weight those of the weight's shape; not the
    masks and index tables that layers keep in buffers too.
    """
    buffers = module._buffers
    skipped = module._non_persistent_buffers_set
    if not buffers or (not skipped and isinstance(module, _NormBase)):
        return buffers
    persistent = {role: buffer for role, buffer in buffers.items() if buffer is not None and role not in skipped}
    if not persistent or isinstance(module, _NormBase):
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
    """Tensors of a state_dict.

    Args:
        state: The state_dict.
        layers: Its layers.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], layers: LayerSequence) -> None:
        self._names = layers.names
        self._by_layer: dict[str, dict[str, Slot]] = defaultdict(dict)
        self._by_name: dict[str, Slot] = {}
        self._given: dict[int, dict[str, Slot]] = {}
        for name, tensor in state.items():
            path, _, role = name.rpartition(".")
            self._by_name[name] = self._by_layer[path][role] = Slot(name, tensor)

    def roles(self, layer: int, buffers: bool) -> Mapping[str, torch.Tensor | None]:
        """Tensors of a layer by role."""
        found = self._given[layer] = self._slots(self._names[layer], buffers)
        return {role: slot.value for role, slot in found.items()}

    def slot(self, layer: int, role: str, tensor: torch.Tensor) -> Slot:
        """The slot of a tensor that :meth:`roles` gave."""
        return self._given[layer][role]

    def names(self) -> TensorNames:
        """Names of all tensors given so far."""
        given = {i: {role: slot.name for role, slot in slots.items()} for i, slots in self._given.items()}
        return TensorNames(self._names, given)

    def _slots(self, layer: str, buffers: bool) -> dict[str, Slot]:
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


def source_tensors(source: NetworkLike, layers: LayerSequence, modules: Sequence[nn.Module] | None) -> Tensors:
    """Tensors of a source: a module's, a state_dict's, or those of a weights file.

    Args:
        source: The source.
        layers: Its layers.
        modules: The module of each, as in :class:`ModuleTensors`.
    """
    if isinstance(source, nn.Module):
        return ModuleTensors(source, layers, modules)
    if isinstance(source, Mapping):
        return StateTensors(source, layers)
    if isinstance(source, str | os.PathLike):
        from pyassemble.network.weights import read_weights

        return StateTensors(read_weights(Path(source)), layers)
    raise UnsupportedNetworkError(f"a source is a module, a state_dict or a path, not {type(source).__name__}")
