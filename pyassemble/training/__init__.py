"""The loops that transfer experiments, merging and assembling share."""

from pyassemble.training.augment import Augmentation, in_order, random_crop, random_flip
from pyassemble.training.batches import Preparation, shuffled_batches, steps_per_epoch
from pyassemble.training.loop import EpochResult, evaluate, fit, fit_epoch

__all__ = [
    "Augmentation",
    "EpochResult",
    "Preparation",
    "evaluate",
    "fit",
    "fit_epoch",
    "in_order",
    "random_crop",
    "random_flip",
    "shuffled_batches",
    "steps_per_epoch",
]
