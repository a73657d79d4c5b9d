"""Any description of a network → its sequence of layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pyassemble.errors import NetworkSpecError, UnknownOptionError, UnsupportedNetworkError
from pyassemble.network.blocks import blocks_and_modules
from pyassemble.network.graph import standardize_graph
from pyassemble.network.state import is_definition_order, standardize_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.network.layers import LayerSequence
    from pyassemble.network.state import Shapes

#: A module, its state_dict, or the path of a weights file.
NetworkLike = nn.Module | Mapping[str, torch.Tensor] | str | os.PathLike[str]

STANDARDIZATIONS = ("blocks", "graph")


def standardize(network: NetworkLike, standardization: str = "blocks", example_input: Any = None) -> LayerSequence:
    """Sequence of a network's layers and blocks.

    Args:
        network: A module; a state_dict; or the path of a ``.safetensors`` (only its header is read) or torch file.
            Beside a safetensors file, a ``config.json`` in the Hub's layout that names a timm architecture makes the
            sequence exact; without one it is approximate.
        standardization: ``"blocks"`` (as published) or ``"graph"`` (execution order, every tensor that has weights).
        example_input: For ``"graph"``, input on which a network that cannot be traced symbolically is run.

    Raises:
        UnknownOptionError: Another standardization.
        UnsupportedNetworkError: Not a network that can be read.
        WeightsFileError: A file that is missing, truncated or of another format.
    """
    return standardize_with_modules(network, standardization, example_input)[0]


def standardize_with_modules(
    network: NetworkLike, standardization: str = "blocks", example_input: Any = None
) -> tuple[LayerSequence, Sequence[nn.Module] | None]:
    """The sequence of :func:`standardize`, and the module of each of its layers.

    The modules are None where layers are not whole modules (``"graph"``), or no module was given.
    """
    if standardization not in STANDARDIZATIONS:
        raise UnknownOptionError("standardization", standardization, STANDARDIZATIONS)
    if isinstance(network, nn.Module):
        if standardization == "blocks":
            return blocks_and_modules(network)
        return standardize_graph(network, example_input), None
    if isinstance(network, Mapping):
        shapes = _shapes_of(network)
        return standardize_state(shapes, standardization, in_order=is_definition_order(shapes)), None
    if isinstance(network, str | os.PathLike):
        return _standardize_file(Path(network), standardization), None
    raise UnsupportedNetworkError(
        f"expected a torch.nn.Module, a state_dict or the path of a weights file, got {type(network).__name__}"
    )


def _shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise UnsupportedNetworkError(
                f"a state_dict maps names to tensors, but entry {name!r} is {type(tensor).__name__}"
            )
        if is_lazy(tensor):
            raise UnsupportedNetworkError(f"tensor {name!r} is lazy and has no shape yet; run one forward pass first")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _standardize_file(path: Path, standardization: str) -> LayerSequence:
    from pyassemble.network.weights import read_header, read_weights

    if path.suffix != ".safetensors":
        return standardize(read_weights(path), standardization)
    shapes = {name: shape for name, (_, shape) in read_header(path).items()}
    network = network_of_folder(path.parent, shapes)
    if network is not None:
        return standardize(network, standardization)
    return standardize_state(shapes, standardization, in_order=False)


def network_of_folder(folder: Path, shapes: Shapes) -> nn.Module | None:
    """The architecture that a folder's Hub config names, on the meta device, if its tensors have these shapes.

    None where there is no such config, or the architecture or its arguments mean nothing to the installed timm.
    """
    from pyassemble.network.sources import FOLDER_CONFIG, NetworkSpec, SpecKind, load_network

    if not (folder / FOLDER_CONFIG).is_file():
        return None
    try:
        network = load_network(NetworkSpec(str(folder), SpecKind.FOLDER, "", folder), meta=True)
    except NetworkSpecError:
        return None
    same = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == dict(shapes)
    return network if same else None
