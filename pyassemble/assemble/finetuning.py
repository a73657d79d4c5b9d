"""Training an assembly further: its stitches and head (PA-DNN), or all of it (PA-DNN_full-train)."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyassemble.errors import OutOfRangeError, TensorError, UnknownOptionError
from pyassemble.training.accelerated import average_gradients, make_accelerator, mean_over_processes
from pyassemble.training.data import Data, LabelledImages
from pyassemble.training.metrics import measure_quality
from pyassemble.training.mixing import Mixing
from pyassemble.training.progress import progress_bar
from pyassemble.training.seeding import derived_generator, derived_seed, global_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

    from pyassemble.assemble.assembly import Assembly

MODES = ("stitches", "full")
LEARNING_RATES = {"stitches": 1e-3, "full": 1e-4}


def finetune(
    assembly: Assembly,
    train: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    epochs: int,
    mode: str = "stitches",
    learning_rate: float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
    mixed_precision: str | None = None,
    progress: bool | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains an assembly in place: AdamW, a learning rate falling on a cosine to 0, Mixup and CutMix.

    Args:
        assembly: On any device. With "full" its blocks get memory of their own, so the repository stays as it is. It is
            left in eval mode, its blocks frozen or not as before, also by Ctrl-C; what was learned until then stays.
        train: As :func:`pyassemble.assemble` takes it.
        validation: Measured after every epoch, if given.
        epochs: Passes over ``train``.
        mode: "stitches" trains stitches and head, "full" the blocks too.
        learning_rate: At the first step; 1e-3 for stitches, 1e-4 for everything, by default.
        batch_size: Images in a step; the DataLoader's own, or 64, by default.
        seed: Of order, mixing, and dropout.
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        smoothing: Of the labels.
        mixed_precision: "no", "bf16" or "fp16"; accelerate's own setting by default.
        progress: Whether to show a bar on standard error; by default where that is a terminal.
        after_epoch: Called with each epoch's entry.

    Returns:
        One entry an epoch, as added to the assembly's history: mode, epoch, mean loss, seconds of training, and
        accuracy, AUROC and loss on ``validation``.

    Raises:
        UnknownOptionError: Another mode.
        OutOfRangeError: A number outside its range.
        TensorError: Data that does not belong together, images of another shape, a label that is no class, or NaN in a
            block's output, named with its source.
    """
    if mode not in MODES:
        raise UnknownOptionError("mode", mode, MODES)
    rate = LEARNING_RATES[mode] if learning_rate is None else learning_rate
    if epochs < 1 or not rate > 0:
        raise OutOfRangeError(f"epochs {epochs}, learning_rate {rate}; accepted: at least 1 epoch, a positive rate")
    device = next(assembly.parameters()).device
    accelerator = make_accelerator(device, mixed_precision=mixed_precision)
    data = Data.of(train, "train", batch_size=batch_size)
    held_out = None if validation is None else Data.of(validation, "validation", batch_size=batch_size)
    if held_out is not None:
        data.check_classes(held_out)
    classes = assembly.recipe.num_classes
    entries: list[dict[str, Any]] = []
    with _training(assembly, mode), progress_bar(epochs * data.steps(accelerator), progress) as advance:
        parameters = [parameter for parameter in assembly.parameters() if parameter.requires_grad]
        optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(parameters, lr=rate), device_placement=False)
        schedule = CosineAnnealingLR(optimizer.optimizer, T_max=epochs * data.steps(accelerator))
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            mixing_seed = derived_seed(seed, "mixing", epoch, accelerator.process_index)
            mixing = Mixing(classes, mixing_seed, mixup=mixup, cutmix=cutmix, smoothing=smoothing)
            order = derived_generator(seed, "order", epoch)
            losses: list[float] = []
            with global_seeds(derived_seed(seed, "epoch", epoch, accelerator.process_index)):
                for batch in data.batches(classes, device, shuffle=order, accelerator=accelerator):
                    losses.append(_step(assembly, *mixing(*batch), optimizer, parameters, accelerator))
                    schedule.step()
                    advance(f"epoch {epoch} of {epochs}, loss {losses[-1]:.3f}")
            _agree_on_buffers(assembly, accelerator)
            entry: dict[str, Any] = {
                "kind": "finetune",
                "mode": mode,
                "epoch": epoch,
                "loss": sum(losses) / len(losses),
                "seconds": time.perf_counter() - start,
            }
            if held_out is not None:
                entry["validation"] = _measured(assembly, held_out, accelerator)
            entries.append(entry)
            assembly.history.append(entry)
            if after_epoch is not None:
                after_epoch(entry)
    return entries


def _step(
    assembly: Assembly,
    images: Tensor,
    targets: Tensor,
    optimizer: Any,
    parameters: list[nn.Parameter],
    accelerator: Accelerator,
) -> float:
    with accelerator.autocast():
        logits = assembly(images)
    loss = nn.functional.cross_entropy(logits.float(), targets)
    value = float(loss.detach())
    if not math.isfinite(value):
        _refuse(assembly, images, value)
    optimizer.zero_grad()
    accelerator.backward(loss)
    average_gradients(accelerator, parameters)
    optimizer.step()
    return value


@torch.no_grad()
def _refuse(assembly: Assembly, images: Tensor, loss: float) -> None:
    before = assembly.check_finite
    assembly.check_finite = True
    try:
        assembly(images)
    finally:
        assembly.check_finite = before
    raise TensorError(f"the loss is {loss} though all blocks return finite numbers; a smaller learning rate may help")


@torch.no_grad()
def _agree_on_buffers(assembly: Assembly, accelerator: Accelerator) -> None:
    """Each process's batch norms saw other images."""
    if accelerator.num_processes > 1 and assembly.blocks_trained:
        for buffer in assembly.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean_over_processes(accelerator, buffer))


def _measured(assembly: Assembly, data: Data, accelerator: Accelerator) -> dict[str, Any]:
    def predict(images: Tensor) -> Tensor:
        with accelerator.autocast():
            logits: Tensor = assembly(images)
        return logits

    classes, device = assembly.recipe.num_classes, next(assembly.parameters()).device
    training = assembly.training
    assembly.eval()
    try:
        batches = data.batches(classes, device, accelerator=accelerator)
        return asdict(measure_quality(predict, batches, classes, accelerator=accelerator))
    finally:
        assembly.train(training)


@contextmanager
def _training(assembly: Assembly, mode: str) -> Iterator[None]:
    before = assembly.blocks_trained
    assembly.train_blocks(mode == "full")
    assembly.train()
    try:
        yield
    finally:
        assembly.train_blocks(before)
        assembly.eval()
