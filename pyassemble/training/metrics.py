"""How good a classifier is, by torchmetrics, and what it costs."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyassemble.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from accelerate import Accelerator


@dataclass(frozen=True)
class Quality:
    """A classifier on some images.

    Attributes:
        accuracy: Share of images whose class it ranks first, in [0, 1].
        auroc: Area under the ROC curve of each class against the rest, averaged over the classes that occur; nan if
            fewer than two occur.
        loss: Mean cross entropy.
        images: How many images.
    """

    accuracy: float
    auroc: float
    loss: float
    images: int


@dataclass(frozen=True)
class Cost:
    """What a network takes.

    Attributes:
        trainable: Parameters with ``requires_grad``.
        total: All parameters, each counted once.
        flops: Floating-point operations of one image's forward pass; a multiply-add is two. Convolutions, matrix
            products and attention are counted, as :mod:`torch.utils.flop_counter` does.
    """

    trainable: int
    total: int
    flops: int


@torch.no_grad()
def measure_quality(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    accelerator: Accelerator | None = None,
) -> Quality:
    """Accuracy, AUROC and loss over some batches, of all processes together.

    Args:
        predict: Logits (B, num_classes) of images; whatever it needs of modes and precision it sees to itself.
        batches: Images and int64 labels in 0..num_classes-1, on the device of ``predict``.
        num_classes: At least 2.
        accelerator: Where several processes each have a part of the batches.

    Returns:
        The numbers; all nan without a batch.

    Raises:
        TensorError: Logits of another shape.
    """
    from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

    accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
    auroc = MulticlassAUROC(num_classes, average="none", validate_args=False)
    loss = torch.zeros((), dtype=torch.float64)
    seen = torch.zeros(num_classes, dtype=torch.int64)
    for images, labels in batches:
        logits = predict(images).float()
        if logits.shape != (len(labels), num_classes):
            raise TensorError(
                f"logits of shape {tuple(logits.shape)} for {len(labels)} images; accepted: one number for each of "
                f"{num_classes} classes"
            )
        if accelerator is not None and accelerator.num_processes > 1:
            logits, labels = accelerator.gather_for_metrics((logits, labels))
        logits, labels = logits.cpu(), labels.cpu()
        accuracy.update(logits, labels)
        auroc.update(logits.softmax(1), labels)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        seen += labels.bincount(minlength=num_classes)
    images_seen = int(seen.sum())
    if not images_seen:
        return Quality(math.nan, math.nan, math.nan, 0)
    return Quality(float(accuracy.compute()), _mean_auroc(auroc, seen), float(loss) / images_seen, images_seen)


def _mean_auroc(auroc: Any, seen: Tensor) -> float:
    """Over the classes that occur: torchmetrics counts 0 for one that does not."""
    present = seen > 0
    if int(present.sum()) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No positive samples in targets")
        values: Tensor = auroc.compute()
    return float(values[present].mean())


def measure_cost(network: nn.Module, images: Tensor) -> Cost:
    """Parameters and operations of a network; it is run once in eval mode and left as it was.

    Args:
        network: Any module.
        images: A batch of at least one, on the network's device.

    Returns:
        The numbers.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    parameters = list(network.parameters())
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    counter = FlopCounterMode(display=False)
    try:
        # As matrix products: the counter of torch 2.14 does not know the fused attention of the CPU.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            network(images[:1])
    finally:
        for module, flag in flags:
            module.training = flag
    return Cost(
        sum(p.numel() for p in parameters if p.requires_grad),
        sum(p.numel() for p in parameters),
        int(counter.get_total_flops()),
    )
