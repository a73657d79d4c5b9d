"""How the weight of the sparsity loss grows over the epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyassemble.errors import OutOfRangeError

GROWTH = 0.05  # Merging


@dataclass
class SparsitySchedule:
    """lambda <- lambda + growth * sqrt(lambda) before each epoch (Merging, section 3).

    Attributes:
        value: lambda now. Merging starts from 0.01 (sine, Imagewoof) and 0.05 (CIFAR-100).
        growth: 0.05 in the publication.

    Raises:
        OutOfRangeError: A negative or non-finite number.
    """

    value: float = 0.01
    growth: float = GROWTH

    def __post_init__(self) -> None:
        for name, number in (("value", self.value), ("growth", self.growth)):
            if not 0 <= number < math.inf:
                raise OutOfRangeError(f"{name} must be a finite number >= 0, not {number}")

    def step(self) -> float:
        """To be called before each epoch; lambda for it."""
        self.value += self.growth * math.sqrt(self.value)
        return self.value

    def state_dict(self) -> dict[str, float]:
        """What :meth:`load_state_dict` takes."""
        return {"value": self.value, "growth": self.growth}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a saved state."""
        self.value, self.growth = float(state["value"]), float(state["growth"])
