"""Cutting tensors of images and labels into batches, in a seeded order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyassemble.errors import TensorError

if TYPE_CHECKING:
    from pyassemble.training.augment import Augmentation

Preparation = Callable[[Tensor], Tensor]
"""What every batch goes through before the network, in training and evaluation: images may stay uint8 until then."""


def check_images_and_labels(images: Tensor, labels: Tensor) -> None:
    """Refuses what no loop can use, before anything is trained.

    Args:
        images: (N, ...).
        labels: (N,) class numbers.

    Raises:
        TensorError: They are empty, of different lengths, or the labels are no class numbers.
    """
    shapes = f"images {tuple(images.shape)}, labels {tuple(labels.shape)} of {labels.dtype}"
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise TensorError(f"{shapes}: labels must be one int64 class number an image")
    if images.ndim == 0 or len(images) != len(labels) or len(labels) == 0:
        raise TensorError(f"{shapes}: as many labels as images are needed, and at least one")


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The number of batches that :func:`shuffled_batches` yields.

    Args:
        images: How many images there are.
        batch_size: How many go into one batch.

    Returns:
        The number of batches. A last batch of one image is not counted: it has no variance for a batch norm.
    """
    whole, rest = divmod(images, batch_size)
    return max(1, whole + (rest > 1))


def shuffled_batches(
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    prepare: Preparation | None = None,
    augment: Augmentation | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Goes once through the images in a random order.

    Args:
        images: (N, ...), on any device.
        labels: (N,) class numbers, where the images are.
        batch_size: Images in a batch; the last one may be smaller.
        generator: On the CPU; order and augmentation are drawn from it, the same ones on every device.
        device: Where the batches go.
        prepare: Applied to each batch, for instance normalization.
        augment: Applied after ``prepare``.

    Yields:
        Pairs of images and labels on ``device``.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    for step in range(steps_per_epoch(len(images), batch_size)):
        chosen = order[step * batch_size : (step + 1) * batch_size]
        batch = images[chosen].to(device, non_blocking=True)
        if prepare is not None:
            batch = prepare(batch)
        if augment is not None:
            batch = augment(batch, generator)
        yield batch, labels[chosen].to(device, non_blocking=True)
