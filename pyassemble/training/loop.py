"""Training a classifier in place, and measuring it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from pyassemble.training.batches import Preparation, check_images_and_labels, shuffled_batches, steps_per_epoch

if TYPE_CHECKING:
    from pyassemble.training.augment import Augmentation

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of :func:`fit` did.

    Attributes:
        epoch: Counted from 1.
        loss: Mean training loss over its steps.
        seconds: Time spent training in this epoch; callbacks are not counted.
    """

    epoch: int
    loss: float
    seconds: float


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    prepare: Preparation | None = None,
) -> float:
    """The share of images whose class the network ranks first, in eval mode.

    Args:
        network: A classifier. Every module's training flag is put back afterwards.
        images: (N, ...).
        labels: (N,) int64 class numbers.
        batch_size: Images in one forward pass; it does not change the result beyond rounding.
        device: Where to compute; where the network is, by default. The network is moved there.
        autocast: A lower precision to compute in, for instance ``torch.bfloat16``.
        prepare: Applied to each batch before the network.

    Returns:
        Top-1 accuracy in [0, 1].

    Raises:
        TensorError: Images and labels do not belong together.
    """
    check_images_and_labels(images, labels)
    where = _placed(network, device)
    right = torch.zeros((), dtype=torch.int64, device=where)
    with _mode(network, training=False), _precision(where, autocast):
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(where)
            scores = network(batch if prepare is None else prepare(batch))
            right += (scores.argmax(1) == labels[start : start + batch_size].to(where)).sum()
    return int(right) / len(images)


def fit_epoch(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    scheduler: LRScheduler | None = None,
    loss: Loss = F.cross_entropy,
    autocast: torch.dtype | None = None,
    after_step: Callable[[int], None] | None = None,
) -> float:
    """One pass over the batches, a step of the optimizer for each.

    The network is trained in place and its training flags are put back at the end, also when the loop is left by an
    exception or Ctrl-C; what the steps before that did stays.

    Args:
        network: Where the batches are.
        batches: Inputs and what the loss compares the outputs with.
        optimizer: Over whichever parameters are to change.
        scheduler: Stepped after every optimizer step.
        loss: Of outputs (in float32) and targets.
        autocast: A lower precision for the forward pass.
        after_step: Called with the number of steps done, from 1.

    Returns:
        Mean loss over the steps; nan if there was no batch.
    """
    # The sum stays on the device: reading a number after every step would make a GPU wait for it.
    total: Tensor | None = None
    steps = 0
    with _mode(network, training=True):
        for inputs, targets in batches:
            optimizer.zero_grad(set_to_none=True)
            with _precision(inputs.device, autocast):
                outputs = network(inputs)
            value = loss(outputs.float(), targets)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total = value.detach() if total is None else total + value.detach()
            steps += 1
            if after_step is not None:
                after_step(steps)
    return float("nan") if total is None else float(total) / steps


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    device: torch.device | str | None = None,
    autocast: torch.dtype | None = None,
    prepare: Preparation | None = None,
    augment: Augmentation | None = None,
    after_epoch: Callable[[EpochResult], None] | None = None,
    after_step: Callable[[int, int], None] | None = None,
) -> list[EpochResult]:
    """Trains a classifier in place: Adam, cross entropy, a learning rate falling on a cosine to 0 over the whole run.

    The same network, data and seed give the same weights on the same machine: order and augmentation come from a
    generator of their own, the global one is not read here (a network with dropout reads it).

    Args:
        network: Changed in place; its training flags are put back.
        images: (N, ...).
        labels: (N,) int64 class numbers.
        epochs: Passes over the images; 0 is allowed and does nothing.
        batch_size: Images in a step.
        learning_rate: At the first step.
        seed: Of order and augmentation.
        device: Where to train; where the network is, by default. The network is moved there.
        autocast: A lower precision for the forward pass, for instance ``torch.bfloat16``; weights stay as they are.
        prepare: Applied to every batch, for instance normalization of uint8 images.
        augment: Applied to every training batch after ``prepare``.
        after_epoch: Called after each epoch, its time not counted; the place to evaluate or save.
        after_step: Called with the steps done and the steps in all.

    Returns:
        One result an epoch.

    Raises:
        TensorError: Images and labels do not belong together.
    """
    check_images_and_labels(images, labels)
    where = _placed(network, device)
    generator = torch.Generator().manual_seed(seed)
    steps = steps_per_epoch(len(images), batch_size)
    # One fused kernel a step: a small network has hundreds of tensors, each of them several tiny kernels otherwise.
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    scheduler = CosineAnnealingLR(optimizer, T_max=max(1, epochs * steps))
    results: list[EpochResult] = []
    for epoch in range(1, epochs + 1):
        batches = shuffled_batches(
            images,
            labels,
            batch_size=batch_size,
            generator=generator,
            device=where,
            prepare=prepare,
            augment=augment,
        )
        done = (epoch - 1) * steps
        start = time.perf_counter()
        loss = fit_epoch(
            network,
            batches,
            optimizer,
            scheduler=scheduler,
            autocast=autocast,
            after_step=None if after_step is None else _counted(after_step, done, epochs * steps),
        )
        results.append(EpochResult(epoch, loss, time.perf_counter() - start))
        if after_epoch is not None:
            after_epoch(results[-1])
    return results


def _counted(after_step: Callable[[int, int], None], done: int, steps: int) -> Callable[[int], None]:
    return lambda step: after_step(done + step, steps)


def _placed(network: nn.Module, device: torch.device | str | None) -> torch.device:
    """Moves the network to the device, if one is named, and says where it is."""
    if device is not None:
        network.to(device)
    first = next(network.parameters(), None)
    return torch.device(device or "cpu") if first is None else first.device


@contextmanager
def _mode(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Sets the training flag and puts back every module's own one: a caller may keep some batch norms in eval mode.

    When entering training mode, a network whose root is already training is left as it is for the same reason.
    """
    before = [(module, module.training) for module in network.modules()]
    if not (training and network.training):
        network.train(training)
    try:
        yield
    finally:
        for module, flag in before:
            module.training = flag


def _precision(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
