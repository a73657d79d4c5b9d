"""The gates in plain PyTorch: from given draws, and from those of a seed where no kernel runs."""

from __future__ import annotations

import math

import torch

from pyassemble.kernels import philox

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # L0, section 4; Merging


def hard_concrete_gate_reference(
    x: torch.Tensor,
    loc: torch.Tensor,
    u: torch.Tensor,
    *,
    dim: int = 1,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
    low: float = -math.inf,
    high: float = math.inf,
) -> torch.Tensor:
    """The same gate in plain PyTorch from given draws, differentiable to any order.

    Args:
        x: (B, ...) with C channels on ``dim``.
        loc: (C,).
        u: (B, C), in (0, 1).
        dim: Dimension of the channels.
        beta: Temperature.
        gamma: Lower end of the stretched interval.
        zeta: Upper end of the stretched interval.
        low: Bound at which x is clamped first.
        high: The other.

    Returns:
        x times the gates, in the type that PyTorch promotes the three to.
    """
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + loc) / beta) * (zeta - gamma) + gamma
    return clamp(x, low, high) * over_channels(s.clamp(0, 1), x.ndim, dim)


def clamp(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """X within the bounds, with the derivative of ReLU and its like: zero at them, too."""
    if low > -math.inf:
        x = torch.where(x <= low, low, x)
    return torch.where(x >= high, high, x) if high < math.inf else x


def clamp_backward(dy: torch.Tensor, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Gradient by x of what ``clamp`` gives, from that of its result."""
    if low > -math.inf:
        dy = torch.where(x <= low, 0.0, dy)
    return torch.where(x >= high, 0.0, dy) if high < math.inf else dy


def over_channels(gate: torch.Tensor, ndim: int, dim: int) -> torch.Tensor:
    """(C,) or (B, C) with as many dimensions as x, channels on ``dim``."""
    shape = [1] * ndim
    shape[dim] = gate.shape[-1]
    if gate.ndim == 2:
        shape[0] = gate.shape[0]
    return gate.view(shape)


class Draw:
    """What decides the gates beside loc, and the bounds of what they multiply."""

    def __init__(
        self, seed_tensor: torch.Tensor | None, seed: int, sample_offset: int, beta: float, gamma: float, zeta: float,
        low: float, high: float,
    ) -> None:  # fmt: skip
        self.seed_tensor, self.seed, self.sample_offset = seed_tensor, seed, sample_offset
        self.beta, self.gamma, self.zeta = beta, gamma, zeta
        self.low, self.high = low, high

    def gates(self, samples: int, loc: torch.Tensor) -> torch.Tensor:
        """Gates (samples, C) by the eager reference, for devices without a kernel."""
        numbers = torch.arange(samples, device=loc.device) + self.sample_offset
        seed = self.seed if self.seed_tensor is None else self.seed_tensor
        u = philox.gate_draws(seed, numbers, loc.shape[0]).to(loc.dtype)
        ones = torch.ones_like(u)
        return hard_concrete_gate_reference(ones, loc, u, beta=self.beta, gamma=self.gamma, zeta=self.zeta)
