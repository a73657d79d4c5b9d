"""What a zoo keeps of a network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyassemble.errors import EmptyNetworkError
from pyassemble.network.sources import stated_license
from pyassemble.network.standardize import NetworkLike, network_of_folder, standardize
from pyassemble.network.state import standardize_state
from pyassemble.network.weights import SAFETENSORS_SUFFIX, read_header, read_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyassemble.network.layers import LayerSequence
    from pyassemble.network.weights import TensorHeader

# A state_dict does not say which of its tensors are trained. Statistics of normalizations go by these names in torch,
# whatever the architecture.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Entry:
    """A network in a zoo.

    Attributes:
        name: What the zoo calls it.
        layers: Its layers and blocks, standardized as published (``"blocks"``).
        parameters: Number of its parameters; those that several layers share count once.
        license: License of its weights, as their publisher names it; None where unknown.
        weights: Where its pretrained weights come from: ``hf-hub:ORG/NAME``, an address, a file or folder; None where
            there are none, or none are known.
    """

    name: str
    layers: LayerSequence
    parameters: int
    license: str | None = None
    weights: str | None = None

    @property
    def approximate(self) -> bool:
        """Whether names and shapes were all that was known of the network (SPEC 1.7)."""
        return self.layers.approximate

    @classmethod
    def of(cls, name: str, network: NetworkLike, *, license: str | None = None, weights: str | None = None) -> Entry:
        """The entry of a module, a state_dict, or a weights file.

        Args:
            name: What the zoo calls it.
            network: A module, its state_dict, or the path of a weights file (of a ``.safetensors`` only the header is
                read).
            license: License of its weights.
            weights: Where its weights come from; for a file, by default that file.

        Raises:
            EmptyNetworkError: It has no layer that could be scored.
            UnsupportedNetworkError: Not a network that can be read.
            WeightsFileError: A file that is missing, damaged or of another format.
        """
        if isinstance(network, str | os.PathLike):
            path = Path(network)
            weights = str(path) if weights is None else weights
            if path.suffix == SAFETENSORS_SUFFIX:
                header = read_header(path)
                return cls.of_header(name, header, folder=path.parent, license=license, weights=weights)
            network = read_weights(path)
        layers = _scored(name, standardize(network, "blocks"))
        count = count_parameters(network) if isinstance(network, nn.Module) else _count_state(network)
        return cls(name, layers, count, license, weights)

    @classmethod
    def of_header(
        cls,
        name: str,
        header: Mapping[str, TensorHeader],
        *,
        folder: Path | None = None,
        license: str | None = None,
        weights: str | None = None,
    ) -> Entry:
        """The entry of a network of which a safetensors header is known.

        Args:
            name: What the zoo calls it.
            header: Its tensors.
            folder: Where to look for a ``config.json`` that names the architecture; without one, or if its tensors are
                others, the entry is approximate.
            license: License of its weights.
            weights: Where its weights come from.

        Raises:
            EmptyNetworkError: It has no layer that could be scored.
            UnsupportedNetworkError: Its tensors include the originals of a parametrized weight.
        """
        shapes = {tensor: shape for tensor, (_, shape) in header.items()}
        network = None if folder is None else network_of_folder(folder, shapes)
        if network is not None:
            return cls.of(name, network, license=license or stated_license(network), weights=weights)
        layers = _scored(name, standardize_state(shapes, "blocks", in_order=False))
        return cls(name, layers, _count_shapes(shapes.items()), license, weights)


def count_parameters(network: nn.Module) -> int:
    """Elements of all parameters; a parameter that several modules share counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def _scored(name: str, layers: LayerSequence) -> LayerSequence:
    if not layers.scored:
        raise EmptyNetworkError(
            f"the network {name!r} has no layer that could be scored (convolution, linear layer or batch norm)"
        )
    return layers


def _count_state(state: Mapping[str, torch.Tensor]) -> int:
    # Tied parameters are views of one memory; tensors on the meta device have none, and each counts.
    distinct = {_identity(name, tensor): (name, tuple(tensor.shape)) for name, tensor in state.items()}
    return _count_shapes(distinct.values())


def _identity(name: str, tensor: torch.Tensor) -> object:
    if tensor.is_meta or not tensor.numel():
        return name
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _count_shapes(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> int:
    return sum(prod(shape) for name, shape in shapes if name.rpartition(".")[2] not in _STATISTICS)
