"""One run of a transfer experiment: a target is measured, trained, and measured after every epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import timm
import torch
from provenance import commit, device_name
from small_networks import parameter_count, precision_for
from transfer_runs import Row, Run

from pyassemble.training import EpochResult, evaluate, fit, random_flip

if TYPE_CHECKING:
    from cifar10 import Images, Normalize
    from torch import nn

LEARNING_RATE = 1e-3
NAN = float("nan")


@dataclass(frozen=True)
class Circumstances:
    """What a run is trained under and its rows say; it changes nothing between the runs of one experiment."""

    batch_size: int
    tuning_images: int
    device: torch.device
    threads: int
    workers: int
    budget_minutes: float


def untrained_row(run: Run, target: nn.Module, images: int, test_images: int, epochs: int, at: Circumstances) -> Row:
    """The row of epoch 0 of a random initialization, its accuracy not yet known."""
    precision = precision_for(target, at.device)
    return Row(
        section=run.section,
        target=run.target,
        source=run.source,
        scenario=run.scenario,
        seed=run.seed,
        epoch=0,
        accuracy=NAN,
        loss=NAN,
        seconds=0.0,
        transfer_seconds=0.0,
        similarity=NAN,
        directed=NAN,
        coverage=0.0,
        source_accuracy=NAN,
        source_parameters=0,
        target_parameters=parameter_count(target),
        images=images,
        test_images=test_images,
        epochs=epochs,
        batch_size=at.batch_size,
        tuning_images=at.tuning_images,
        precision="float32" if precision is None else str(precision).removeprefix("torch."),
        device=device_name(at.device),
        threads=at.threads,
        workers=at.workers,
        budget_minutes=at.budget_minutes,
        torch=torch.__version__,
        timm=timm.__version__,
        commit=commit(),
    )


def accuracy(network: nn.Module, test: Images, normalize: Normalize) -> float:
    precision = precision_for(network, test.labels.device)
    return evaluate(network, test.pixels, test.labels, autocast=precision, prepare=normalize)


def train_and_measure(target: nn.Module, train: Images, test: Images, before: Row, normalize: Normalize) -> list[Row]:
    """Trains a target in place as ``before`` says; its row before training and one after each epoch."""
    rows = [replace(before, accuracy=accuracy(target, test, normalize))]

    def measure(result: EpochResult) -> None:
        rows.append(
            replace(
                before,
                epoch=result.epoch,
                accuracy=accuracy(target, test, normalize),
                loss=result.loss,
                seconds=rows[-1].seconds + result.seconds,
            )
        )

    fit(
        target,
        train.pixels,
        train.labels,
        epochs=before.epochs,
        batch_size=before.batch_size,
        learning_rate=LEARNING_RATE,
        seed=before.seed,
        autocast=precision_for(target, train.labels.device),
        prepare=normalize,
        augment=random_flip,
        after_epoch=measure,
    )
    return rows
