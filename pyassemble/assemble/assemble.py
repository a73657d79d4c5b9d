"""``pa.assemble``: a repository and labelled images → one network (PA-DNN, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pyassemble.assemble.assembly import Assembly
from pyassemble.assemble.candidates import SELECTIONS, Candidate
from pyassemble.assemble.head import Head
from pyassemble.assemble.search import Search, described
from pyassemble.assemble.settings import SearchSettings
from pyassemble.assemble.stitches import Continuation, Stitch
from pyassemble.errors import ArgumentTypeError, OutOfRangeError, PyAssembleError, UnknownOptionError
from pyassemble.training.accelerated import make_accelerator
from pyassemble.training.checkpoint import Checkpoint
from pyassemble.training.data import Data, LabelledImages
from pyassemble.training.metrics import measure_cost, measure_quality
from pyassemble.training.progress import progress_bar
from pyassemble.training.seeding import derived_generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyassemble.assemble.epoch_record import EpochRecord
    from pyassemble.assemble.repository import Repository


def assemble(
    repository: Repository,
    train: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    num_classes: int,
    blocks: int = 4,
    epochs: int,
    select: str = "validation",
    seed: int = 0,
    checkpoint: str | Path | None = None,
    settings: SearchSettings | None = None,
    mixed_precision: str | None = None,
    progress: bool | None = None,
    after_epoch: Callable[[EpochRecord], None] | None = None,
) -> Assembly:
    """Finds a network made of blocks of the repository's networks (PA-DNN, Algorithm 1).

    A partition network decides where the networks are cut, routers which network's block comes next; stitches between
    blocks and a head are learned on the way. Blocks stay as they are. The same arguments and seed give the same bits on
    a CPU, in one go or resumed.

    Args:
        repository: Networks of one image shape, cut into segments.
        train: A tuple (images, labels) of tensors, a Dataset or a DataLoader of (image, label); images float
            (C, H, W) of the repository's shape, labels class numbers. Batch size and order are the search's own.
        validation: The same; without it, a random half of ``train`` is taken.
        num_classes: Of the result.
        blocks: c + 1, how many blocks the result has; 2 to 7.
        epochs: Passes over the training half.
        select: What the best assembly is picked by: accuracy on the validation half ("validation"), or the
            training-free "score", as published. Both are in the result's history.
        seed: Of every random choice, in [0, 2**63).
        checkpoint: A folder. The state is kept there at every epoch's end; a search that finds its own state goes on
            from it, also for more epochs than it was started with, and trains no more if they are already done.
        settings: Everything else.
        mixed_precision: "no", "bf16" or "fp16"; accelerate's own setting by default.
        progress: Whether to show a bar on standard error; by default where that is a terminal.
        after_epoch: Called with what each epoch did, after its checkpoint.

    Returns:
        The best assembly, in eval mode, routers' factors folded into its stitches and head. Its ``history`` has an
        entry for each epoch, and one for the result: both selections, quality on the validation half, trainable and
        total parameters, FLOPs.

    Raises:
        ArgumentTypeError: An argument of a type that is not accepted.
        OutOfRangeError: A number outside its range, or a network that cannot be cut into that many blocks.
        UnknownOptionError: Another selection.
        TensorError: Data that is empty or does not belong together, images of another shape, a label that is no class,
            or NaN in a block's output.
        CheckpointError: The checkpoint is damaged or of another search.
    """
    _check(num_classes, blocks, epochs, select, seed)
    settings = settings or SearchSettings()
    accelerator = make_accelerator(repository.device, mixed_precision=mixed_precision)
    train_half, validation_half = halves(train, validation, seed, settings.batch_size)
    search = Search(
        repository,
        train_half,
        validation_half,
        num_classes,
        blocks=blocks,
        seed=seed,
        settings=settings,
        accelerator=accelerator,
    )
    kept = None
    if checkpoint is not None:
        identity = {
            "num_classes": num_classes,
            "blocks": blocks,
            "seed": seed,
            "train images": len(train_half),
            "validation images": len(validation_half),
            "settings": asdict(settings),
            "networks": _fingerprint(repository),
        }
        kept = Checkpoint(Path(checkpoint), "search", identity)
        found = kept.load()
        if found is not None:
            search.restore(*found)
    steps = search.steps()
    with progress_bar(epochs * steps, progress, done=search.epoch * steps) as advance:
        while search.epoch < epochs:
            record = search.run_epoch(lambda words: advance(f"epoch {search.epoch + 1} of {epochs}, {words}"))
            if kept is not None and accelerator.is_main_process:
                kept.save(search.epoch, search.document(), search.tensors())
            accelerator.wait_for_everyone()
            if after_epoch is not None:
                after_epoch(record)
    return _result(search, select)


def halves(
    train: LabelledImages, validation: LabelledImages | None, seed: int, batch_size: int | None = None
) -> tuple[Data, Data]:
    """Training and validation data; two random halves of the first where there is no second.

    Args:
        train: As callers have it.
        validation: The same, or None.
        seed: Of the halves.
        batch_size: Of both.

    Returns:
        Training half, validation half.

    Raises:
        PyAssembleError: As :meth:`Data.of` and :meth:`Data.check_classes` raise.
    """
    data = Data.of(train, "train", batch_size=batch_size)
    if validation is None:
        return data.halves(derived_generator(seed, "halves"))
    held_out = Data.of(validation, "validation", batch_size=batch_size)
    data.check_classes(held_out)
    return data, held_out


def _check(num_classes: int, blocks: int, epochs: int, select: str, seed: int) -> None:
    if select not in SELECTIONS:
        raise UnknownOptionError("select", select, SELECTIONS)
    for name, value, low, high in (
        ("num_classes", num_classes, 2, None),
        ("blocks", blocks, 2, 7),
        ("epochs", epochs, 1, None),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(f"{name} must be an int, not {type(value).__name__}")
        if value < low or (high is not None and value > high):
            accepted = f"at least {low}" if high is None else f"{low} to {high}"
            raise OutOfRangeError(f"{name} {value}; accepted: {accepted}")


def _result(search: Search, select: str) -> Assembly:
    """The best candidate as a network of its own."""
    candidate = search.best.get(select)
    if candidate is None:
        raise PyAssembleError(f"no assembly with a finite {select} was found in {search.epoch} epochs")
    assembly = composed(search, candidate)
    device = search.repository.device
    quality = measure_quality(assembly, search.validation.batches(search.num_classes, device), search.num_classes)
    cost = measure_cost(assembly, search.repository.example_input[:1].to(device))
    assembly.history[:] = [{"kind": "epoch", **record.document()} for record in search.history]
    assembly.history.append(
        {
            "kind": "result",
            "select": select,
            "best": {name: found.document() for name, found in search.best.items()},
            "assembly": described(candidate.path),
            "validation": asdict(quality),
            "cost": asdict(cost),
            "score_against_size": _agreement(search.history),
            "blocks_requested": search.executions.requested,
            "blocks_executed": search.executions.executed,
            "blocks_saved": search.executions.saved,
        }
    )
    return assembly


def composed(search: Search, candidate: Candidate) -> Assembly:
    """A candidate as a network, the routers' factors folded into its stitches and head.

    Args:
        search: Where it was found.
        candidate: The candidate.

    Returns:
        The assembly, in eval mode.
    """
    assembly = Assembly.compose(search.repository, candidate.path, search.num_classes, seed=search.seed)
    # Before the first block, which takes images, there is nothing to learn.
    modules = [*assembly.stitches[1:], assembly.head]
    names = [*(str(i) for i in range(len(modules) - 1)), "head"]
    for name, module, factor in zip(names, modules, candidate.factors, strict=True):
        prefix = f"{name}."
        weights = {k.removeprefix(prefix): v for k, v in candidate.weights.items() if k.startswith(prefix)}
        module.load_state_dict(weights)
        assert isinstance(module, (Stitch, Continuation, Head))
        module.scale_(factor)
    return assembly


def _fingerprint(repository: Repository) -> dict[str, str]:
    """What tells that a network has changed: one digest for each of its segments, shortened."""
    return {
        name: " ".join(digest[:12] for digest in repository.segment_hashes(name, 0, len(repository[name]) - 1))
        for name in repository.names
    }


def _agreement(history: list[EpochRecord]) -> float | None:
    """Kendall's tau of the scores with the sizes of all candidates: near 1, a ranking by size would have said the same.

    None where it is not defined.
    """
    from scipy.stats import kendalltau

    pairs = [
        (score, size)
        for record in history
        for score, size in zip(record.scores, record.parameters, strict=True)
        if math.isfinite(score)
    ]
    if len(pairs) < 2:
        return None
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return None if math.isnan(tau) else tau
