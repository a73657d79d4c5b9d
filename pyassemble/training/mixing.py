"""Mixup and CutMix, timm's, drawn from a seed of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F

from pyassemble.training.seeding import derived_seed, numpy_seed

if TYPE_CHECKING:
    from torch import Tensor


class Mixing:
    """Mixes pairs of images of a batch and their labels: Mixup or CutMix, one or the other for each batch.

    timm draws from numpy's global generator; its state is put back after every batch.

    Args:
        num_classes: Width of the mixed targets.
        seed: Of the draws, in [0, 2**63).
        mixup: alpha of Mixup's Beta(alpha, alpha); 0 for none.
        cutmix: The same for CutMix. Both 0: images stay as they are.
        smoothing: Of the targets.
    """

    def __init__(
        self, num_classes: int, seed: int, *, mixup: float = 0.8, cutmix: float = 1.0, smoothing: float = 0.1
    ) -> None:
        self._num_classes, self._smoothing = num_classes, smoothing
        self._seed, self._batches = seed, 0
        self._mix = None
        if mixup > 0 or cutmix > 0:
            from timm.data.mixup import Mixup

            self._mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes)  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes a batch.

        Args:
            images: (B, C, H, W), left as they are.
            labels: (B,) int64.

        Returns:
            Images (B, C, H, W) and targets (B, num_classes) whose rows sum to 1. A batch of odd size, which timm cannot
            pair up, keeps its last image unmixed.
        """
        targets = F.one_hot(labels, self._num_classes).to(images.dtype)
        targets = targets * (1 - self._smoothing) + self._smoothing / self._num_classes
        even = len(images) // 2 * 2
        if self._mix is None or not even:
            return images, targets
        mixed = images.clone()
        with numpy_seed(derived_seed(self._seed, self._batches)):
            _, targets[:even] = self._mix(mixed[:even], labels[:even])
        self._batches += 1
        return mixed, targets
