"""Routers: which repository network's block comes next, decided from what the last block gave (PA-DNN, eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyassemble.errors import OutOfRangeError, TensorError

WIDTH = 128
HEADS = 4
NOISE = 0.01


class Router(nn.Module):
    """Probabilities over the n blocks that may come next.

    In the order of eq. 2: flatten to a fixed width, noise, norm, self-attention across the batch, mean over the batch,
    linear, softmax. Flattening averages runs of neighbouring elements of the flattened output (adaptive average
    pooling), so one router takes blocks of any shape, maps as well as tokens.

    Args:
        choices: n.
        width: Of the flattened output.
        heads: Of the attention; divides ``width``.
        noise: a of the factors U(1 - a, 1 + a) in training mode, one per element; in eval mode there are none.

    Raises:
        OutOfRangeError: A number that makes no router.
    """

    def __init__(self, choices: int, *, width: int = WIDTH, heads: int = HEADS, noise: float = NOISE) -> None:
        super().__init__()
        if choices < 1 or width < 1 or heads < 1 or width % heads or not 0 <= noise < 1:
            raise OutOfRangeError(
                f"{choices} choices, width {width}, {heads} heads, noise {noise}; accepted: at least one choice, heads "
                "that divide the width, noise in [0, 1)"
            )
        self.choices = choices
        self.width = width
        self.noise = noise
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear = nn.Linear(width, choices)

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Probabilities for the whole batch.

        Args:
            x: (B, ...), any shape with at least one element a sample.
            generator: Of the noise, on the CPU whatever x's device; the global one without.

        Returns:
            (n,), summing to 1, float32.

        Raises:
            TensorError: x has no samples or no elements.
        """
        if x.ndim < 2 or x.numel() == 0:
            raise TensorError(f"router input of shape {tuple(x.shape)}; accepted: (B, ...) with B at least 1")
        flat = F.adaptive_avg_pool1d(x.flatten(1).float(), self.width)
        if self.training and self.noise:
            uniform = torch.rand(flat.shape, generator=generator).to(flat.device)
            flat = flat * (1 + self.noise * (2 * uniform - 1))
        samples = self.norm(flat)[None]
        attended, _ = self.attention(samples, samples, samples, need_weights=False)
        probabilities: Tensor = self.linear(attended[0].mean(0)).float().softmax(-1)
        return probabilities
