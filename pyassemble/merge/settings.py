"""How a wide student is trained; the defaults are the publication's where it names a number."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pyassemble.errors import OutOfRangeError, UnknownOptionError
from pyassemble.merge.schedule import GROWTH

DECAYS = ("step", "cosine")


@dataclass(frozen=True)
class MergeSettings:
    """Numbers and named options of :func:`pyassemble.train_merged` (Merging, section 4).

    Attributes:
        importance_share: Of all epochs, the share in which importance is learned; the rest fine-tunes. At least one
            epoch is left for each.
        learning_rate: SGD's for the weights while importance is learned; constant.
        finetune_rate: SGD's at the first step of fine-tuning.
        decay: How it falls: "step" divides it by ten after ``drop`` of the fine-tuning, "cosine" takes it to 0.
        drop: Share of the fine-tuning before the step.
        gate_rate: SGD's for the gates, which have no weight decay. 0.1 (sine) or 0.2 in the publication.
        momentum: Of weights and gates.
        weight_decay: Of the weights.
        first_lambda: lambda before the first epoch: 0.01 (sine, Imagewoof) or 0.05 (CIFAR-100) in the publication.
        growth: lambda <- lambda + growth * sqrt(lambda) before each epoch.
        smoothing: Of the labels.
    """

    importance_share: float = 0.5
    learning_rate: float = 0.01
    finetune_rate: float = 0.01
    decay: str = "step"
    drop: float = 2 / 3
    gate_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    first_lambda: float = 0.05
    growth: float = GROWTH
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise UnknownOptionError("decay", self.decay, DECAYS)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "decay":
                continue
            below_one = field.name in ("importance_share", "drop", "momentum", "smoothing")
            if not 0 <= value < math.inf or (below_one and value >= 1):
                accepted = "[0, 1)" if below_one else "a finite number >= 0"
                raise OutOfRangeError(f"{field.name} {value}; accepted: {accepted}")

    def importance_epochs(self, epochs: int) -> int:
        """Of so many epochs in all, those in which importance is learned."""
        return min(max(1, round(self.importance_share * epochs)), epochs - 1)

    def finetuning_rate(self, done: float) -> float:
        """SGD's learning rate after a share ``done`` of the fine-tuning."""
        if self.decay == "cosine":
            return self.finetune_rate * (1 + math.cos(math.pi * done)) / 2
        return self.finetune_rate / (10 if done >= self.drop else 1)
