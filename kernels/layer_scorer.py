"""The Frobenius score of any module, read off one of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError
from pyassemble.kernels.checks import check_integer, check_tensor, describe
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
        ArgumentTypeError: Not a module, or a seed that is no int.
        OutOfRangeError: The module has no layer of that name, or the seed is outside its range.
    """

    def __init__(self, module: nn.Module, layer: str, *, alpha: float = 0.01, seed: int = 0) -> None:
        if not isinstance(module, nn.Module):
            raise ArgumentTypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
        check_integer("seed", seed, 2**63)
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
            ArgumentTypeError: x is no tensor.
            TensorError: x has no dimension of samples, the layer did not run, or its output is not a tensor of 2 B
                samples.
        """
        check_tensor("x", x)
        if not x.ndim:
            raise TensorError(f"{describe('x', x)}; accepted: (B, ...)")
        last: list[Any] = []

        def score(module: nn.Module, inputs: Any, output: Any) -> None:
            # At once: what follows the layer may overwrite its output, as activations in place do.
            last[:] = [output]
            if _holds(output, 2 * x.shape[0]):
                last[:] = [output, frobenius_score([output[: x.shape[0]]], [output[x.shape[0] :]])]

        modes = [(module, module.training) for module in self._module.modules()]
        handle = self._layer.register_forward_hook(score)
        try:
            self._module.eval()
            with torch.no_grad():
                self._module(torch.cat([x, perturb(x, self._alpha, seed=self._seed)]))
        finally:
            handle.remove()
            for module, mode in modes:
                module.training = mode
        if len(last) < 2:
            output = last[0] if last else None
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise TensorError(
                f"layer {self._name} gave {found}; accepted: a tensor with the {2 * x.shape[0]} samples on dimension 0"
            )
        result: float = last[1].item()
        return result


def _holds(output: Any, samples: int) -> bool:
    return isinstance(output, torch.Tensor) and output.ndim > 0 and output.shape[0] == samples
