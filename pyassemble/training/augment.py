"""Random flips and crops of whole batches of images, drawn from a generator of the caller's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Takes a batch of images (B, C, H, W) and a generator on the CPU, gives a batch of the same shape."""


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrors each image left to right with probability one half.

    Args:
        images: Batch (B, C, H, W) of any dtype, on any device.
        generator: A generator on the CPU: the draws are then the same whatever device the images lie on.

    Returns:
        A new tensor like ``images``.
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shifts each image by up to ``padding`` pixels along both axes; what comes in from outside is zero.

    Args:
        images: Batch (B, C, H, W). Zero should be an ordinary value, so crop after normalization.
        generator: A generator on the CPU.
        padding: The largest shift.

    Returns:
        A new tensor like ``images``.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    top, left = torch.randint(2 * padding + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    sample = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def in_order(*steps: Augmentation) -> Augmentation:
    """Applies several augmentations one after the other.

    Args:
        *steps: What to apply, first to last.

    Returns:
        One augmentation.
    """

    def apply(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return apply
