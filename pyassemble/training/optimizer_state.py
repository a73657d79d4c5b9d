"""An optimizer's state as named tensors, for safetensors files: nothing is pickled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyassemble.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Mapping


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state an optimizer keeps for each parameter.

    Args:
        optimizer: Whose state is only tensors, as SGD's, Adam's and AdamW's is.
        names: Its parameters by name.

    Returns:
        ``name/key`` -> tensor, for the parameters that have been stepped.
    """
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Puts back what :func:`optimizer_tensors` gave; the optimizer must have the same parameters.

    Args:
        optimizer: A fresh one.
        names: Its parameters by name.
        tensors: What was saved.

    Raises:
        TensorError: A tensor of a parameter that there is not.
    """
    for place, tensor in tensors.items():
        name, _, key = place.rpartition("/")
        if name not in names:
            raise TensorError(f"optimizer state {place!r} {tuple(tensor.shape)}: no parameter {name!r}")
        parameter = names[name]
        # Adam keeps its count of steps on the CPU, the rest beside the parameter.
        device = "cpu" if tensor.ndim == 0 else parameter.device
        optimizer.state[parameter][key] = tensor.to(device).clone()
