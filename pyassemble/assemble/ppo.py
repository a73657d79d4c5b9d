"""Proximal policy optimization of the partition network (PA-DNN, eq. 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyassemble.errors import OutOfRangeError, TensorError, UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FORMS = ("min", "printed")


def clipped_objective(ratio: Tensor, advantage: Tensor, *, clip: float = 0.2, form: str = "min") -> Tensor:
    """What PPO maximizes, one value per draw.

    ``min``: min(rho A, clip(rho, 1 - xi, 1 + xi) A), a lower bound of the gain whatever A's sign. ``printed``:
    A min(rho, clip(rho, 1 - xi, 1 + xi)), as eq. 3 is printed; for A < 0 its ratio is bounded above by 1 + xi and not
    below, so a draw that did badly is pushed away from without limit.

    Args:
        ratio: rho, the new probability of each draw over the old one.
        advantage: A, of the same shape.
        clip: xi.
        form: One of :data:`FORMS`.

    Returns:
        Tensor of the ratio's shape.

    Raises:
        UnknownOptionError: Another form.
    """
    clipped = ratio.clamp(1 - clip, 1 + clip)
    if form == "min":
        return torch.minimum(ratio * advantage, clipped * advantage)
    if form == "printed":
        return advantage * torch.minimum(ratio, clipped)
    raise UnknownOptionError("form", form, FORMS)


class RunningAdvantage(nn.Module):
    """Reward minus the mean of all rewards so far, divided by their standard deviation.

    The statistics are buffers: they travel with ``state_dict``, so a resumed search goes on with the same ones. Nothing
    is known of the very first reward; its advantage is 0.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "mean", "squares"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def std(self) -> float:
        """Standard deviation of the rewards so far; nan before the second."""
        return math.sqrt(float(self.squares) / (float(self.count) - 1)) if self.count > 1 else math.nan

    @torch.no_grad()
    def forward(self, rewards: Tensor) -> Tensor:
        """Takes rewards into the statistics and gives their advantages.

        Args:
            rewards: (K,), finite.

        Returns:
            (K,) float32.

        Raises:
            TensorError: A reward that is not finite: one such would spoil the mean for good.
        """
        if rewards.ndim != 1 or not rewards.isfinite().all():
            raise TensorError(f"rewards {rewards.tolist()}; accepted: finite numbers, (K,)")
        for reward in rewards.double():  # Welford's update, exact to rounding whatever the mean
            self.count += 1
            difference = reward.to(self.mean.device) - self.mean
            self.mean += difference / self.count
            self.squares += difference * (reward.to(self.mean.device) - self.mean)
        std = self.std
        if math.isnan(std) or std < 1e-12 * max(1.0, abs(float(self.mean))):
            return torch.zeros_like(rewards, dtype=torch.float32)
        return ((rewards.double() - self.mean.to(rewards.device)) / std).float()


@dataclass(frozen=True)
class PPOStep:
    """What one step did.

    Attributes:
        advantages: Of each draw.
        objective: Before the first inner step and after each.
        ratio: Largest departure of a draw's new probability from its old one, as |rho - 1|, after the last inner step.
    """

    advantages: tuple[float, ...]
    objective: tuple[float, ...]
    ratio: float


class PPO:
    """Optimizer of a policy of which only log-probabilities of draws are known.

    Args:
        parameters: Of the policy.
        learning_rate: Adam's.
        clip: xi.
        inner_steps: T, gradient steps on the same draws.
        form: Of :func:`clipped_objective`.

    Raises:
        OutOfRangeError: A number that makes no sense.
        UnknownOptionError: Another form.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float = 5e-5,
        clip: float = 0.2,
        inner_steps: int = 4,
        form: str = "min",
    ) -> None:
        if not (learning_rate > 0 and 0 < clip < 1 and inner_steps >= 1):
            raise OutOfRangeError(
                f"learning_rate {learning_rate}, clip {clip}, inner_steps {inner_steps}; accepted: a positive rate, "
                "clip in (0, 1), at least one inner step"
            )
        if form not in FORMS:
            raise UnknownOptionError("form", form, FORMS)
        self.clip, self.inner_steps, self.form = clip, inner_steps, form
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        self.advantage = RunningAdvantage()

    def step(self, log_probabilities: Callable[[], Tensor], rewards: Tensor) -> PPOStep:
        """T gradient steps that make well-rewarded draws likelier.

        Args:
            log_probabilities: (K,) of the same K draws each time it is called, under the policy as it then is.
            rewards: (K,), higher is better.

        Returns:
            What was done.

        Raises:
            TensorError: Rewards that are not finite, or another number of log-probabilities.
        """
        with torch.no_grad():
            before = log_probabilities()
        if before.shape != rewards.shape:
            raise TensorError(
                f"{tuple(before.shape)} log-probabilities and {tuple(rewards.shape)} rewards; accepted: (K,)"
            )
        advantages = self.advantage(rewards).to(before.device)
        objectives: list[float] = []
        for _ in range(self.inner_steps):
            self.optimizer.zero_grad(set_to_none=True)
            ratio = (log_probabilities() - before).exp()
            objective = clipped_objective(ratio, advantages, clip=self.clip, form=self.form).mean()
            (-objective).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            objectives.append(float(objective.detach()))
        with torch.no_grad():
            ratio = (log_probabilities() - before).exp()
            objectives.append(float(clipped_objective(ratio, advantages, clip=self.clip, form=self.form).mean()))
        self.optimizer.zero_grad(set_to_none=True)
        return PPOStep(tuple(advantages.tolist()), tuple(objectives), float((ratio - 1).abs().max()))

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer and of the advantage's statistics."""
        return {"optimizer": self.optimizer.state_dict(), "advantage": self.advantage.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.advantage.load_state_dict(state["advantage"])
