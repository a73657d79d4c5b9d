"""What an equal budget of training can be spent on: one long run, the best of three, and what two teachers become."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import pyassemble as pa
from pyassemble.training import evaluate, in_order, random_crop, random_flip, shuffled_batches, steps_per_epoch
from pyassemble.training.seeding import derived_generator, derived_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
AUGMENT = in_order(random_flip, random_crop)
# lambda's growth of the publication is for this many epochs of learning importance: its way is gone in fewer, larger
# steps where there are fewer.
PUBLISHED_IMPORTANCE = 150
FIRST_LAMBDA, GROWTH = 0.05, 0.05


@dataclass(frozen=True)
class Budget:
    """How much every strategy may train.

    Attributes:
        epochs: Of one long run; a multiple of 6, as the publication spends 2/3 on two teachers, 1/6 on learning
            importance, 1/6 on fine-tuning.
        batch_size: Images in a step.
        rate: SGD's first learning rate from random weights; it falls on a cosine to 0.
        importance_rate: The same for the wide student, constant.
        finetune_rate: The same for the compressed network.
        gate_rate: SGD's for the gates, constant.
        precision: Of the forward pass, "no" or "bf16".
    """

    epochs: int
    batch_size: int = 64
    rate: float = 0.1
    importance_rate: float = 0.02
    finetune_rate: float = 0.05
    gate_rate: float = 0.2
    precision: str = "no"

    @property
    def autocast(self) -> torch.dtype | None:
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def third(self) -> int:
        return self.epochs // 3

    @property
    def sixth(self) -> int:
        return self.epochs // 6


@dataclass(frozen=True)
class Data:
    """Normalized images and their classes."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def accuracy(self, network: nn.Module) -> float:
        return evaluate(network, self.test_images, self.test_labels, batch_size=500)


@dataclass(frozen=True)
class Outcome:
    """What a strategy ended with.

    Attributes:
        accuracy: On the test images.
        on_the_way: Accuracies before the end, by name.
        epochs: Over the images, of all its networks together.
        compute: The same in epochs of one network, an epoch of a wide network counted by its operations.
    """

    accuracy: float
    on_the_way: dict[str, float]
    epochs: int
    compute: float


def train(
    network: nn.Module,
    data: Data,
    epochs: int,
    budget: Budget,
    seed: int,
    *,
    rate: float | None = None,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """SGD with momentum, a learning rate falling on a cosine, random crops and flips.

    Args:
        network: Trained in place, left in eval mode.
        data: Images.
        epochs: How long.
        budget: Batch size and learning rate.
        seed: Of order and augmentation.
        rate: In place of the budget's.
        loss: Of images, logits and labels; cross entropy by default.
        after_epoch: Called after each.
    """
    steps = epochs * steps_per_epoch(len(data.images), budget.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=rate or budget.rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    network.train()
    for epoch in range(epochs):
        batches = shuffled_batches(
            data.images,
            data.labels,
            batch_size=budget.batch_size,
            generator=derived_generator(seed, "order", epoch),
            device=data.images.device,
            augment=AUGMENT,
        )
        for images, labels in batches:
            with torch.autocast(images.device.type, dtype=budget.autocast, enabled=budget.autocast is not None):
                logits = network(images)
            logits = logits.float()
            value = F.cross_entropy(logits, labels) if loss is None else loss(images, logits, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
        after_epoch()
    network.eval()


def merged(
    teachers: Sequence[nn.Module], data: Data, budget: Budget, seed: int, checkpoint: Path, progress: Callable[[], None]
) -> Outcome:
    """Learns importance for a sixth of the epochs, compresses, fine-tunes for a sixth."""
    student = pa.merge(list(teachers), data.images[:2], seed=seed)
    settings = merge_settings(budget)
    wide_cost = relative_cost(student, teachers[0], data.images[:1])
    result = pa.train_merged(
        student,
        (data.images, data.labels),
        validation=(data.test_images, data.test_labels),
        epochs=2 * budget.sixth,
        settings=settings,
        batch_size=budget.batch_size,
        augment=AUGMENT,
        seed=seed,
        checkpoint=checkpoint,
        mixed_precision=budget.precision,
        progress=False,
        after_epoch=lambda entry: progress() if "loss" in entry else None,
    )
    stages: dict[str, Any] = {entry["stage"]: entry["validation"]["accuracy"] for entry in result.history}
    way = {"mean of outputs": stages["start"], "wide": stages["importance"], "compressed": stages["compressed"]}
    compute = 2 * budget.third + budget.sixth * (1 + wide_cost)
    return Outcome(data.accuracy(result.network), way, 2 * budget.third + 2 * budget.sixth, compute)


def merge_settings(budget: Budget) -> pa.MergeSettings:
    """What a merge of that budget is trained with."""
    return pa.MergeSettings(
        learning_rate=budget.importance_rate,
        finetune_rate=budget.finetune_rate,
        decay="cosine",
        gate_rate=budget.gate_rate,
        weight_decay=WEIGHT_DECAY,
        first_lambda=FIRST_LAMBDA,
        growth=GROWTH * PUBLISHED_IMPORTANCE / budget.sixth,
    )


def averaged(
    teachers: Sequence[nn.Module], data: Data, budget: Budget, seed: int, progress: Callable[[], None]
) -> Outcome:
    """The mean of the teachers' weights and buffers, trained for the remaining third."""
    network = copy.deepcopy(teachers[0])
    states = [teacher.state_dict() for teacher in teachers]
    network.load_state_dict(
        {
            name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
            for name, value in states[0].items()
        }
    )
    before = data.accuracy(network)
    train(network, data, budget.third, budget, seed, rate=budget.finetune_rate, after_epoch=progress)
    return Outcome(data.accuracy(network), {"averaged": before}, 3 * budget.third, 3 * budget.third)


def distilled(
    teachers: Sequence[nn.Module],
    data: Data,
    budget: Budget,
    seed: int,
    fresh: nn.Module,
    wide_cost: float,
    progress: Callable[[], None],
) -> Outcome:
    """A new network learns from the mean of the teachers' outputs, at the computation of merging them.

    A step costs a network's own and the teachers' forward passes, a third of a step each.
    """
    step = 1 + len(teachers) / 3
    epochs = max(1, round(budget.sixth * (1 + wide_cost) / step))
    reduced = budget.autocast is not None

    def loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(images.device.type, dtype=budget.autocast, enabled=reduced):
            mean = torch.stack([teacher(images) for teacher in teachers]).float().mean(0)
        imitation = F.kl_div(logits.log_softmax(1), mean.log_softmax(1), reduction="batchmean", log_target=True)
        return (imitation + F.cross_entropy(logits, labels)) / 2

    train(fresh, data, epochs, budget, seed, loss=loss, after_epoch=progress)
    return Outcome(data.accuracy(fresh), {}, 2 * budget.third + epochs, 2 * budget.third + epochs * step)


def relative_cost(student: nn.Module, network: nn.Module, images: Tensor) -> float:
    """Operations of the wide network in multiples of one network's."""
    return _operations(student, images) / _operations(network, images)


@torch.no_grad()
def _operations(network: nn.Module, images: Tensor) -> int:
    network.eval()
    with FlopCounterMode(display=False) as counter:
        network(images)
    return int(counter.get_total_flops())


def seed_of(seed: int, *purpose: int | str) -> int:
    """Neighbouring seeds give unrelated runs."""
    return derived_seed(seed, *purpose)
