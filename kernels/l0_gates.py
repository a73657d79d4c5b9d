"""Hard-concrete gates as modules, to be put between the layers of any network."""

from __future__ import annotations

import math

import torch
from torch import nn

from pyassemble.errors import OutOfRangeError
from pyassemble.kernels.checks import check_integer, check_number_type
from pyassemble.kernels.hard_concrete import (
    BETA,
    GAMMA,
    ZETA,
    gate_open_probability,
    hard_concrete_eval,
    hard_concrete_gate,
    hard_concrete_values,
)


class _L0Gate(nn.Module):
    """A gate per channel: drawn per sample in training, fixed in evaluation (Merging, section 3; L0, section 4).

    ``L0Gate1d`` is for features (B, C) and tokens (B, N, C), ``L0Gate2d`` for images (B, C, H, W).

    Args:
        n_channels: C, at least 1.
        loc_mean: Mean of the initial ``loc``.
        loc_sd: Its standard deviation, >= 0.
        beta: Temperature, > 0.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.
        fix_temp: True. A learned temperature, which some L0 code offers, is not implemented.
        seed: Seed of the first draw and of the initial ``loc``, int in [0, 2**63). Gates that are not meant
            to draw alike need seeds that lie further apart than there will be training steps.

    Raises:
        ArgumentTypeError: An argument of the wrong type.
        OutOfRangeError: ``fix_temp`` is False, or a number is outside its range.

    Attributes:
        loc: (C,), learned.
        seed: 0-d int64, the next draw's seed, one higher after each forward pass in training. It lies on the module's
            device, so that a captured CUDA graph draws anew at each replay.
    """

    _dim: int

    def __init__(
        self,
        n_channels: int,
        loc_mean: float = 1.0,
        loc_sd: float = 0.01,
        beta: float = BETA,
        gamma: float = GAMMA,
        zeta: float = ZETA,
        fix_temp: bool = True,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not fix_temp:
            raise OutOfRangeError("fix_temp False: a learned temperature is not implemented; accepted: True")
        check_integer("n_channels", n_channels, 2**31)
        check_integer("seed", seed, 2**63)
        check_number_type("loc_mean", loc_mean, int, float)
        check_number_type("loc_sd", loc_sd, int, float)
        if n_channels == 0 or not math.isfinite(loc_mean) or not 0 <= loc_sd < math.inf:
            raise OutOfRangeError(
                f"n_channels {n_channels}, loc_mean {loc_mean}, loc_sd {loc_sd}; accepted: at least one channel, a "
                "finite mean, a finite standard deviation that is not negative"
            )
        generator = torch.Generator().manual_seed(seed)
        self.loc = nn.Parameter(loc_mean + loc_sd * torch.randn(n_channels, generator=generator))
        self.register_buffer("seed", torch.tensor(seed))
        self.seed: torch.Tensor
        self.beta, self.gamma, self.zeta = beta, gamma, zeta
        gate_open_probability(self.loc.detach(), beta=beta, gamma=gamma, zeta=zeta)  # refuses what is out of range

    def draw(self) -> torch.Tensor:
        """The next seed, to be handed to several calls that are to share one draw."""
        seed = self.seed.clone()
        self.seed += 1
        return seed

    def forward(self, x: torch.Tensor, seed: torch.Tensor | None = None) -> torch.Tensor:
        """Gated x; in training with the draw of ``seed``, by default the next one.

        Under torch.distributed each rank draws gates of its own, although all hold the same seed.
        Under activation checkpointing, hand over a seed drawn outside: the recomputation would draw the next one, and
        the gradient would belong to other gates than the output.

        Args:
            x: Channels on the last dimension (1d) or on dimension 1 (2d).
            seed: From ``draw``.

        Returns:
            Tensor like x.

        Raises:
            TensorError: x has another number of channels, type or device than ``loc`` asks for.
        """
        if not self.training:
            return hard_concrete_eval(x, self.loc, dim=self._dim, beta=self.beta, gamma=self.gamma, zeta=self.zeta)
        return hard_concrete_gate(
            x, self.loc, seed=self.draw() if seed is None else seed, dim=self._dim, sample_offset=_first_sample(),
            beta=self.beta, gamma=self.gamma, zeta=self.zeta,
        )  # fmt: skip

    def values(self, batch: int, seed: torch.Tensor) -> torch.Tensor:
        """(B, C): what ``forward`` multiplies by in training with that seed."""
        return hard_concrete_values(
            self.loc, batch, seed=seed, sample_offset=_first_sample(),
            beta=self.beta, gamma=self.gamma, zeta=self.zeta,
        )  # fmt: skip

    def open_probability(self) -> torch.Tensor:
        """(C,): P[g > 0] of each gate."""
        return gate_open_probability(self.loc, beta=self.beta, gamma=self.gamma, zeta=self.zeta)

    def l0_loss(self, keep: float = 0.5) -> torch.Tensor:
        """(keep - mean P[g > 0])^2, the loss that asks for a share of open gates (Merging).

        Raises:
            ArgumentTypeError: ``keep`` is no number.
            OutOfRangeError: It is not in [0, 1].
        """
        check_number_type("keep", keep, int, float)
        if not 0 <= keep <= 1:
            raise OutOfRangeError(f"keep must be in [0, 1], not {keep}")
        return (keep - self.open_probability().mean()).square()

    def importance(self) -> torch.Tensor:
        """(C,): the gates of evaluation, in [0, 1]. Equal ones are told apart by ``loc``."""
        ones = torch.ones(1, self.loc.shape[0], dtype=self.loc.dtype, device=self.loc.device)
        return hard_concrete_eval(ones, self.loc, beta=self.beta, gamma=self.gamma, zeta=self.zeta)[0]

    def extra_repr(self) -> str:
        """Number of channels and the distribution's constants."""
        return f"{self.loc.shape[0]}, beta={self.beta:.4g}, gamma={self.gamma}, zeta={self.zeta}"


class L0Gate1d(_L0Gate):
    """Gates for features (B, C) and tokens (B, N, C); arguments and attributes as of ``L0Gate2d``."""

    _dim = -1


class L0Gate2d(_L0Gate):  # noqa: D101
    __doc__ = _L0Gate.__doc__
    _dim = 1


def _first_sample() -> int:
    """Number of this rank's first sample, so far apart that no two ranks' samples share one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() << 32
    return 0
