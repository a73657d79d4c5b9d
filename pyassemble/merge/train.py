"""``pa.train_merged``: from a wide student and labelled images to the merged network, in one call.

Three stages: the wide student learns which units matter, its gates and weights trained together; compression; the small
network is fine-tuned. A student with a bound of memory learns that for some groups after the others. The same arguments
and seed give the same bits on a CPU, in one go or resumed.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError
from pyassemble.merge.schedule import SparsitySchedule
from pyassemble.merge.settings import MergeSettings
from pyassemble.merge.student import WideStudent
from pyassemble.training.accelerated import average_gradients, make_accelerator, mean_over_processes
from pyassemble.training.checkpoint import Checkpoint
from pyassemble.training.data import Data, LabelledImages
from pyassemble.training.metrics import measure_quality
from pyassemble.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from pyassemble.training.progress import progress_bar
from pyassemble.training.seeding import derived_generator, derived_seed, global_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from accelerate import Accelerator

    from pyassemble.training.augment import Augmentation

IMPORTANCE, FINETUNING = "importance", "fine-tuning"


@dataclass(frozen=True)
class MergeResult:
    """What :func:`train_merged` gives.

    Attributes:
        network: The merged network, in eval mode; of the teachers' class where it has their size.
        history: An entry for the student as it was given, all gates open ("start"), each epoch of learning importance
            ("importance"), the network right after compression ("compressed"), and each epoch of fine-tuning
            ("fine-tuning"). Where it applies an entry has epoch, loss, sparsity, lambda, learning_rate, seconds, open
            (gates more likely open than closed: group to one number for each teacher), groups (those whose gates are
            learned, for a student with a bound of memory), and validation (accuracy, auroc, loss, images).
        selection: The units that were kept, by group; see :meth:`WideStudent.compress`.
        kept: How many of them are each teacher's, by group.
    """

    network: nn.Module
    history: list[dict[str, Any]]
    selection: dict[str, Tensor]
    kept: dict[str, list[int]]


def train_merged(
    student: WideStudent,
    train: LabelledImages,
    *,
    validation: LabelledImages | None = None,
    epochs: int,
    settings: MergeSettings | None = None,
    batch_size: int | None = None,
    augment: Augmentation | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    mixed_precision: str | None = None,
    progress: bool | None = None,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> MergeResult:
    """Learns which of a wide student's units matter, compresses it, and fine-tunes what remains (Merging, section 3).

    Args:
        student: From :func:`pyassemble.merge`; trained in place.
        train: A tuple (images, labels) of tensors, a Dataset or a DataLoader of (image, label); images float
            (C, H, W), labels class numbers.
        validation: The same; measured before training, after every epoch, and after compression.
        epochs: In all, at least 2, and enough for each of the student's stages to have one of those in which importance
            is learned. The publication gives as many to learning importance as to fine-tuning.
        settings: Everything else.
        batch_size: Images in a step; the DataLoader's own, or 64, by default.
        augment: Applied to each batch of training images, with a generator of its own.
        seed: Of order and augmentation; the gates' draws have the student's seed.
        checkpoint: A folder. The state is kept there at every epoch's end; a run that finds its own state goes on from
            it, given a student built from the same networks. Going on in fine-tuning leaves that student untrained.
        mixed_precision: "no", "bf16" or "fp16"; accelerate's own setting by default.
        progress: Whether to show a bar on standard error; by default where that is a terminal.
        after_epoch: Called with each entry of the history, after its checkpoint.

    Returns:
        The merged network, and what was learned on the way.

    Raises:
        ArgumentTypeError: An argument of a type that is not accepted.
        OutOfRangeError: A number outside its range.
        TensorError: Data that does not belong together, outputs that are no class scores, a label that is no class, or
            a loss that is not finite.
        CheckpointError: The checkpoint is damaged or of another run.
    """
    if not isinstance(student, WideStudent):
        raise ArgumentTypeError(f"student is a {type(student).__name__}; accepted: what pyassemble.merge returns")
    for name, value, least in (("epochs", epochs, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(f"{name} must be an int, not {type(value).__name__}")
        if not least <= value < 2**63:
            raise OutOfRangeError(f"{name} {value}; accepted: at least {least}")
    settings = settings or MergeSettings()
    accelerator = make_accelerator(student.gates.step.device, mixed_precision=mixed_precision)
    data = Data.of(train, "train", batch_size=batch_size)
    held_out = None if validation is None else Data.of(validation, "validation", batch_size=batch_size)
    run = _Run(student, data, held_out, epochs, settings, seed, augment, accelerator)
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(Path(checkpoint), "merge", run.identity())
        found = kept.load()
        if found is not None:
            run.restore(*found)

    def entered(entry: dict[str, Any]) -> None:
        if kept is not None and accelerator.is_main_process:
            kept.save(run.epoch, run.document(), run.tensors())
        accelerator.wait_for_everyone()
        if after_epoch is not None:
            after_epoch(entry)

    with progress_bar(epochs * data.steps(accelerator), progress, done=run.epoch * data.steps(accelerator)) as advance:
        run.go_on(advance, entered)
    return MergeResult(run.network, run.history, run.selection, run.kept_of_teachers())


class _Run:
    """The state of one call, from which a checkpoint is made."""

    def __init__(
        self,
        student: WideStudent,
        data: Data,
        validation: Data | None,
        epochs: int,
        settings: MergeSettings,
        seed: int,
        augment: Augmentation | None,
        accelerator: Accelerator,
    ) -> None:
        self.student, self.data, self.validation = student, data, validation
        self.epochs, self.settings, self.seed = epochs, settings, seed
        self.augment, self.accelerator = augment, accelerator
        self.device = student.gates.step.device
        self.classes = _class_count(student, data, self.device)
        self.importance_epochs = settings.importance_epochs(epochs)
        stages = len(student.stages)
        if stages > self.importance_epochs:
            raise OutOfRangeError(
                f"epochs {epochs}, of which {self.importance_epochs} for importance; accepted: at least {stages} of "
                f"these, as the student's groups are widened in {stages} stages"
            )
        self.schedule = self._schedule(0)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.selection: dict[str, Tensor] = {}
        self.network: nn.Module = student
        self.first_draw = int(student.gates.step)
        self.optimizer = self._optimizer()

    # -- The stages ----------------------------------------------------------------------------------------------------

    def go_on(self, advance: Callable[[str], None], entered: Callable[[dict[str, Any]], None]) -> None:
        """From where the run stands to its end."""
        if not self.history:
            with self.student.opened():
                self._enter({"stage": "start", "epoch": 0, "open": self.student.open_gates()}, entered)
        while self.epoch < self.epochs:
            if self.epoch == self.importance_epochs and not self.selection:
                self._compress(self.student.selection())
                self._enter({"stage": "compressed", "epoch": self.epoch, "kept": self.kept_of_teachers()}, entered)
            self._enter(self._train_epoch(advance), entered)
        self.network.eval()

    def _enter(self, entry: dict[str, Any], entered: Callable[[dict[str, Any]], None]) -> None:
        if self.validation is not None:
            entry["validation"] = self._measured()
        self.history.append(entry)
        entered(entry)

    def _compress(self, selection: Mapping[str, Tensor]) -> None:
        self.selection = dict(selection)
        self.student.eval()
        self.network = self.student.compress(selection)
        self.optimizer = self._optimizer()

    def _starts(self, stage: int) -> int:
        """First of the epochs in which a stage's groups are learned."""
        return round(stage * self.importance_epochs / len(self.student.stages))

    def _schedule(self, stage: int) -> SparsitySchedule:
        """The weight of the sparsity loss goes its whole way in each stage, however few epochs it has."""
        share = self.importance_epochs / (self._starts(stage + 1) - self._starts(stage))
        return SparsitySchedule(self.settings.first_lambda, self.settings.growth * share)

    def _next_stage(self) -> None:
        """Chooses what was learned, and goes on with the next groups when their turn has come."""
        stage = self.student.stage
        if stage + 1 < len(self.student.stages) and self.epoch == self._starts(stage + 1):
            self.student.next_stage()
            self.schedule = self._schedule(stage + 1)
            self.optimizer = self._optimizer()

    def _train_epoch(self, advance: Callable[[str], None]) -> dict[str, Any]:
        wide, epoch, process = not self.selection, self.epoch, self.accelerator.process_index
        steps = self.data.steps(self.accelerator)
        start = time.perf_counter()
        if wide:
            self._next_stage()
            self.schedule.step()
            # Every process and every epoch has draws of its own, whatever was drawn before.
            draws = (epoch * self.accelerator.num_processes + process) * steps
            self.student.gates.step.fill_(self.first_draw + draws)
        self.network.train()
        losses, penalties = [], []
        order = derived_generator(self.seed, "order", epoch)
        augmentation = derived_generator(self.seed, "augmentation", epoch, process)
        with global_seeds(derived_seed(self.seed, "epoch", epoch, process)):
            batches = self.data.batches(self.classes, self.device, shuffle=order, accelerator=self.accelerator)
            for step, (images, labels) in enumerate(batches):
                if len(images) == 1 and steps > 1:  # no variance for a batch norm
                    continue
                if self.augment is not None:
                    images = self.augment(images, augmentation)
                self._set_rate(step / steps)
                loss, penalty = self._step(images, labels)
                losses.append(loss)
                penalties.append(penalty)
                advance(f"{IMPORTANCE if wide else FINETUNING}, epoch {epoch + 1} of {self.epochs}, loss {loss:.3f}")
        self._agree_on_buffers()
        self.network.eval()
        self.epoch += 1
        entry: dict[str, Any] = {
            "stage": IMPORTANCE if wide else FINETUNING,
            "epoch": self.epoch,
            "loss": sum(losses) / len(losses),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "seconds": time.perf_counter() - start,
        }
        if wide:
            entry |= {
                "sparsity": sum(penalties) / len(penalties),
                "lambda": self.schedule.value,
                "open": self.student.open_gates(),
            }
            if self.student.bounded:
                entry["groups"] = self.student.stages[self.student.stage]
        return entry

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        with self.accelerator.autocast():
            logits = self.network(images)
        task = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings.smoothing)
        penalty = task.new_zeros(())
        if not self.selection:
            penalty = self.student.sparsity_loss()
        value = float(task.detach())
        if not math.isfinite(value):
            raise TensorError(
                f"the loss is {value} in epoch {self.epoch + 1}; accepted: finite images and weights, and a learning "
                f"rate that they bear (now {self.optimizer.param_groups[0]['lr']:g})"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(task + self.schedule.value * penalty)
        average_gradients(self.accelerator, self._named().values())
        self.optimizer.step()
        return value, float(penalty.detach())

    def _set_rate(self, done: float) -> None:
        rate = self.settings.learning_rate
        if self.selection:
            finetuning = self.epochs - self.importance_epochs
            rate = self.settings.finetuning_rate((self.epoch - self.importance_epochs + done) / finetuning)
        self.optimizer.param_groups[0]["lr"] = rate

    def _optimizer(self) -> Any:
        settings = self.settings
        gates = [] if self.selection else self.student.gate_parameters()
        weights = list(self.network.parameters()) if self.selection else self.student.weight_parameters()
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": settings.weight_decay}]
        if gates:
            groups.append({"params": gates, "lr": settings.gate_rate, "weight_decay": 0.0})
        # Accelerate keeps every optimizer that it has prepared, and with it another stage's network.
        self.accelerator.free_memory()
        optimizer = torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
        return self.accelerator.prepare_optimizer(optimizer, device_placement=False)

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    @torch.no_grad()
    def _agree_on_buffers(self) -> None:
        """Each process's batch norms saw other images."""
        if self.accelerator.num_processes > 1:
            for buffer in self.network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(mean_over_processes(self.accelerator, buffer))

    def _measured(self) -> dict[str, Any]:
        assert self.validation is not None
        self.network.eval()

        def predict(images: Tensor) -> Tensor:
            with self.accelerator.autocast():
                logits: Tensor = self.network(images)
            return logits

        batches = self.validation.batches(self.classes, self.device, accelerator=self.accelerator)
        return asdict(measure_quality(predict, batches, self.classes, accelerator=self.accelerator))

    def kept_of_teachers(self) -> dict[str, list[int]]:
        """Of the kept units of each group, how many are each teacher's."""
        groups = self.student.gate_groups
        teachers = 1 + max(int(group.teacher.max()) for group in groups.values())
        return {
            name: groups[name].teacher[kept].bincount(minlength=teachers).tolist()
            for name, kept in self.selection.items()
        }

    # -- The checkpoint ------------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, Any]:
        """What two calls must agree in to be one run."""
        return {
            "epochs": self.epochs,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "train images": len(self.data),
            "validation images": 0 if self.validation is None else len(self.validation),
            "batch size": self.data.batch_size,
            "stages": self.student.stages if self.student.bounded else None,
            "units of each group": {name: len(group.loc) for name, group in self.student.gate_groups.items()},
        }

    def document(self) -> dict[str, Any]:
        """All but the tensors."""
        scaler = self.accelerator.scaler
        return {
            "epoch": self.epoch,
            "history": self.history,
            "lambda": self.schedule.state_dict(),
            "first draw": self.first_draw,
            "selection": {name: kept.tolist() for name, kept in self.selection.items()},
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The network of the stage that the run is in, and its optimizer's state."""
        optimizer = optimizer_tensors(self.optimizer.optimizer, self._named())
        state = {f"network:{name}": value for name, value in self.network.state_dict().items()}
        return state | {f"optimizer:{name}": value for name, value in optimizer.items()}

    def restore(self, document: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Goes back to a saved state."""
        self.epoch, self.history = int(document["epoch"]), list(document["history"])
        self.first_draw = int(document["first draw"])
        self.schedule.load_state_dict(document["lambda"])
        if document["selection"]:
            self._compress({name: torch.tensor(kept) for name, kept in document["selection"].items()})
        self.network.load_state_dict(_part(tensors, "network:"))
        self.optimizer = self._optimizer()  # the student may have another stage's parameters now
        load_optimizer_tensors(self.optimizer.optimizer, self._named(), _part(tensors, "optimizer:"))
        if document["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(document["scaler"])


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def _class_count(student: WideStudent, data: Data, device: torch.device) -> int:
    """How many class scores the student gives."""
    images, _ = next(iter(data.first(1).batches(2**31, device)))
    student.eval()
    try:
        logits = student(images)
    except (RuntimeError, ValueError, TypeError) as error:
        raise TensorError(
            f"an image {tuple(images.shape[1:])} of {data.name} does not fit the student: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TensorError(
            f"the student gives {found} for one image {tuple(images.shape)}; accepted: one score for each of two or "
            "more classes, (B, classes)"
        )
    return logits.shape[1]
