"""The Frobenius score of any module, read off one of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyassemble.errors import OutOfRangeError, TensorError
from pyassemble.kernels.frobenius import frobenius_score
from pyassemble.kernels.perturbation import perturb


class LayerScorer:
    """Scores modules by how far noise on the input moves the output of a layer (PA-DNN, eq. 4).

    Args:
        module: Any module that takes a batch of tensors (B, ...).
        layer: Name of the layer, as in ``module.named_modules()``. If it runs several times, its last output counts.
        alpha: Amplitude of the noise.
        seed: Seed of the noise, int in [0, 2**63).

    Raises:
        OutOfRangeError: The module has no layer of that name.
    """

    def __init__(self, module: nn.Module, layer: str, *, alpha: float = 0.01, seed: int = 0) -> None:
        layers = dict(module.named_modules())
        if layer not in layers:
            raise OutOfRangeError(f"{type(module).__name__} has no layer {layer!r}; known: {', '.join(layers)}")
        self._module, self._layer, self._name = module, layers[layer], layer
        self._alpha, self._seed = alpha, seed

    def __call__(self, x: torch.Tensor) -> float:
        """The score on a batch, in evaluation mode and without gradients; the module's modes are as before after it.

        Args:
            x: (B, ...). Clean and perturbed inputs go through the module as one batch of 2 B.

        Returns:
            Logarithm of the mean distance; -inf if the noise moves nothing.

        Raises:
            TensorError: The layer did not run, or its output is not a tensor of 2 B samples.
        """
        outputs: list[Any] = []
        modes = [(module, module.training) for module in self._module.modules()]
        handle = self._layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            self._module.eval()
            with torch.no_grad():
                self._module(torch.cat([x, perturb(x, self._alpha, seed=self._seed)]))
        finally:
            handle.remove()
            for module, mode in modes:
                module.training = mode
        output = outputs[-1] if outputs else None
        if not isinstance(output, torch.Tensor) or not output.ndim or output.shape[0] != 2 * x.shape[0]:
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise TensorError(
                f"layer {self._name} gave {found}; accepted: a tensor with the {2 * x.shape[0]} samples on dimension 0"
            )
        return frobenius_score([output[: x.shape[0]]], [output[x.shape[0] :]]).item()
