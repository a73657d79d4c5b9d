"""A start for heads from a few hundred labelled images: logistic regression on the pooled features.

The problem is convex, so that what the head was before does not matter; L-BFGS solves it in float64 on the CPU. With
stitches of least squares (:mod:`pyassemble.assemble.initialization`) an assembly of networks that know the task then
classifies before any training, and training starts where its gradients say something about the stitches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from pyassemble.assemble.head import Head
from pyassemble.assemble.score import evaluating
from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.assemble.assembly import Assembly

ITERATIONS = 200
PENALTY = 1e-2
BATCH = 64


@torch.no_grad()
def fit_head(
    head: Head,
    features: Sequence[Tensor],
    labels: Tensor,
    *,
    penalty: float = PENALTY,
    iterations: int = ITERATIONS,
) -> float:
    """Gives a head the weights of a logistic regression from features to labels.

    Args:
        head: Changed in place.
        features: Batches of what comes into the head, each (B, *head.shape.size), N images in all.
        labels: (N,) class numbers, int64. A class without an image is one that the head does not predict.
        penalty: Of the sum of squared weights of standardized features, beside the mean cross-entropy. Channels that
            hardly vary over the images, by a hundredth of what others do, are not blown up to the others' deviation.
        iterations: Of L-BFGS, at most so many.

    Returns:
        The mean cross-entropy on these images, without the penalty.

    Raises:
        OutOfRangeError: The penalty is not positive (classes that can be told apart would have no finite solution), or
            less than one iteration.
        TensorError: No images, features and labels that do not go together, a label that is no class, or features
            that are not finite.
    """
    if not penalty > 0 or iterations < 1:
        raise OutOfRangeError(f"penalty {penalty}, iterations {iterations}; accepted: above 0, at least 1 iteration")
    pooled = _pooled(head, features)
    classes = head.classifier.out_features
    labels = labels.cpu()
    if labels.shape != (len(pooled),) or labels.dtype != torch.int64:
        raise TensorError(f"labels {tuple(labels.shape)} of {labels.dtype}; accepted: ({len(pooled)},) of torch.int64")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise TensorError(f"labels from {int(labels.min())} to {int(labels.max())}; accepted: 0 to {classes - 1}")
    mean, deviation = pooled.mean(0), pooled.std(0, correction=0)
    typical = deviation.square().mean().sqrt()
    scale = 1 / deviation.clamp_min(1e-2 * float(typical)).clamp_min(1e-300)
    weight, bias = _regression((pooled - mean) * scale, labels, classes, penalty, iterations)
    weight = weight * scale
    bias = bias - weight @ mean
    head.classifier.weight.copy_(weight)
    head.classifier.bias.copy_(bias)
    return float(F.cross_entropy(pooled @ weight.T + bias, labels))


def initialize_head(
    assembly: Assembly,
    images: Tensor,
    labels: Tensor,
    *,
    penalty: float = PENALTY,
    iterations: int = ITERATIONS,
    batch_size: int = BATCH,
) -> float:
    """Gives an assembly's head a start from labelled images; after ``initialize_stitches``, whose features it reads.

    Args:
        assembly: Changed in place, run in eval mode; blocks and stitches stay as they are.
        images: (N, C, H, W), a few hundred; on any device.
        labels: (N,) class numbers, int64.
        penalty: As in :func:`fit_head`.
        iterations: As in :func:`fit_head`.
        batch_size: Images at a time.

    Returns:
        The mean cross-entropy on these images.

    Raises:
        ArgumentTypeError: The assembly's head was replaced by another module.
        OutOfRangeError: A number outside its range.
        TensorError: As :func:`fit_head` raises, or images of another size.
    """
    if not isinstance(assembly.head, Head):
        raise ArgumentTypeError(f"the assembly's head is a {type(assembly.head).__name__}; accepted: a Head")
    if batch_size < 1:
        raise OutOfRangeError(f"batch_size {batch_size}; accepted: at least 1")
    device = next(assembly.parameters()).device
    batches = torch.split(images, batch_size) if len(images) else ()
    with torch.no_grad(), evaluating([assembly]):
        features = [assembly.features(batch.to(device)) for batch in batches]
    return fit_head(assembly.head, features, labels, penalty=penalty, iterations=iterations)


def _pooled(head: Head, features: Sequence[Tensor]) -> Tensor:
    """(N, C) float64 on the CPU."""
    if not any(len(batch) for batch in features):
        raise TensorError("no images to fit a head on; accepted: batches of at least one image")
    for batch in features:
        if tuple(batch.shape[1:]) != head.shape.size:
            raise TensorError(f"features {tuple(batch.shape)}; accepted: {('B', *head.shape.size)}, as the head takes")
    pooled = torch.cat([head.pool(batch).double().cpu() for batch in features])
    if not pooled.isfinite().all():
        raise TensorError(f"pooled features {tuple(pooled.shape)} hold NaN or infinity; accepted: numbers")
    return pooled


def _regression(x: Tensor, labels: Tensor, classes: int, penalty: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Weights (classes, C) and bias (classes,) of the penalized logistic regression."""
    weight = x.new_zeros(classes, x.shape[1], requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, labels) + penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
