"""Merging within a bound of memory: what widening group by group takes, and what it costs in accuracy.

Two teachers of each seed, trained alike, become one network of their size: by the full wide student, and by students
bounded to 1.3 and 1.1 times the teachers' parameters. Every strategy has the same epochs, images and rates. Measured
are the bytes of parameters and SGD's momentum at their largest over all steps, those of all tensors that merging
allocated, after an epoch (buffers and positions of channels too, gradients not), and the accuracy. Finished runs are
kept in OUT/runs.csv: the same command goes on where it stopped.

    python bench/experiments/merge_memory.py --architectures small_vgg      one CPU core, about 20 minutes
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from cifar10 import Normalize, read
from cifar_resnet import MEAN, STD, CifarResNet
from markdown import percent, table
from merge_strategies import AUGMENT, Budget, Data, merge_settings, train
from provenance import ROOT, commit
from small_vgg import SmallVGG
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.training.seeding import derived_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {"resnet20": lambda: CifarResNet(20), "small_vgg": SmallVGG}
BOUNDS: tuple[float | None, ...] = (None, 1.3, 1.1)


@dataclass(frozen=True)
class Row:
    """One merge."""

    architecture: str
    memory: str
    """The bound, in multiples of the teachers' parameters; "full" for none."""
    seed: int
    stages: int
    teachers_accuracy: float
    """Mean of both."""
    wide_accuracy: float
    """Of the student after its last epoch of importance."""
    compressed_accuracy: float
    """Before fine-tuning."""
    accuracy: float
    teachers_bytes: int
    """Both teachers' parameters and as much momentum."""
    peak_bytes: int
    """The student's parameters and momentum, at their largest after a step."""
    peak_tensor_bytes: int
    """All tensors that there were not before merging, at their largest after an epoch."""
    seconds: float
    """Of the epochs in which importance was learned."""
    images: int
    test_images: int
    teacher_epochs: int
    epochs: int
    threads: int
    torch: str
    commit: str


def tensor_bytes() -> int:
    """Of all storages that this process's tensors have."""
    gc.collect()
    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Watch:
    """The optimizer's parameters and momentum after every step, while importance is learned."""

    def __init__(self) -> None:
        self.peak = 0

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        held: dict[int, int] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                for tensor in (parameter, *optimizer.state[parameter].values()):
                    if isinstance(tensor, Tensor):
                        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(held.values()))


def run(
    name: str, memory: float | None, seed: int, teachers: list[nn.Module], data: Data, budget: Budget, threads: int
) -> Row:
    own = sum(parameter.numel() * parameter.element_size() for net in teachers for parameter in net.parameters())
    before = tensor_bytes()
    student = pa.merge(teachers, data.images[:2], seed=seed, memory=memory)
    watch, tensors, seconds = Watch(), [tensor_bytes() - before], 0.0

    def after(entry: dict[str, Any]) -> None:
        nonlocal seconds
        if entry["stage"] == "importance":
            student.zero_grad(set_to_none=True)
            tensors.append(tensor_bytes() - before)
            seconds += entry["seconds"]
            if entry["epoch"] == budget.sixth:
                handle.remove()

    handle = register_optimizer_step_post_hook(watch)
    result = pa.train_merged(
        student,
        (data.images, data.labels),
        validation=(data.test_images, data.test_labels),
        epochs=2 * budget.sixth,
        settings=merge_settings(budget),
        batch_size=budget.batch_size,
        augment=AUGMENT,
        seed=derived_seed(seed, "merging"),
        mixed_precision=budget.precision,
        progress=False,
        after_epoch=after,
    )
    ends: dict[str, float] = {entry["stage"]: entry["validation"]["accuracy"] for entry in result.history}
    return Row(
        architecture=name,
        memory="full" if memory is None else str(memory),
        seed=seed,
        stages=len(student.stages),
        teachers_accuracy=statistics.mean(data.accuracy(teacher) for teacher in teachers),
        wide_accuracy=ends["importance"],
        compressed_accuracy=ends["compressed"],
        accuracy=data.accuracy(result.network),
        teachers_bytes=2 * own,
        peak_bytes=watch.peak,
        peak_tensor_bytes=max(tensors),
        seconds=round(seconds, 1),
        images=len(data.images),
        test_images=len(data.test_images),
        teacher_epochs=budget.third,
        epochs=2 * budget.sixth,
        threads=threads,
        torch=torch.__version__,
        commit=commit(),
    )


def trained(name: str, seed: int, number: int, data: Data, budget: Budget) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(derived_seed(seed, "weights", number))
        network = ARCHITECTURES[name]().to(memory_format=torch.channels_last)
    train(network, data, budget.third, budget, derived_seed(seed, "teacher", number))
    return network.eval()


def summary(rows: Sequence[dict[str, str]]) -> str:
    first = rows[0]
    seeds = len({row["seed"] for row in rows})
    lines = [
        "# Merging within a bound of memory",
        "",
        f"CIFAR-10, {first['images']} training and {first['test_images']} test images, {seeds} seeds, teachers of "
        f"{first['teacher_epochs']} epochs, {first['epochs']} epochs of merging, half of them to learn importance; "
        f"CPU, {first['threads']} thread, torch {first['torch']}, code {first['commit']}. Accuracies are medians over "
        "the seeds; differences are of the same teachers, with their smallest and largest. Bytes are parameters and "
        "SGD's momentum at their largest, and all tensors that merging allocated, both in multiples of the teachers' "
        "parameters and momentum. Made by bench/experiments/merge_memory.py.",
        "",
    ]
    header = ["network", "bound", "stages", "parameters and momentum", "all tensors", "learning importance"]
    header += ["teachers", "wide", "compressed", "merged", "merged, beside the full student"]
    body = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        full = {row["seed"]: row for row in rows if (row["architecture"], row["memory"]) == (name, "full")}
        for memory in dict.fromkeys(row["memory"] for row in rows):
            mine = [row for row in rows if (row["architecture"], row["memory"]) == (name, memory)]
            if not mine:
                continue

            def median(column: str, mine: list[dict[str, str]] = mine) -> float:
                return statistics.median(float(row[column]) for row in mine)

            def largest(column: str, mine: list[dict[str, str]] = mine) -> str:
                return f"{max(int(row[column]) / int(row['teachers_bytes']) for row in mine):.2f} ×"

            pairs = [(float(row["accuracy"]), float(full[row["seed"]]["accuracy"])) for row in mine]
            gaps = [100 * (bounded - whole) for bounded, whole in pairs]
            beside = f"{statistics.median(gaps):+.1f} ({min(gaps):+.1f} to {max(gaps):+.1f}) points"
            body.append(
                [
                    name,
                    memory if memory == "full" else f"{memory} ×",
                    mine[0]["stages"],
                    largest("peak_bytes"),
                    largest("peak_tensor_bytes"),
                    f"{median('seconds'):.0f} s",
                    *(percent(median(f"{column}accuracy")) for column in ("teachers_", "wide_", "compressed_", "")),
                    "—" if memory == "full" else beside,
                ]
            )
    return "\n".join([*lines, table(header, body), ""])


def read_rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(file) as temporary, temporary.open("w", newline="") as content:
        writer = csv.DictWriter(content, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "cifar10")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "merge_memory")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument(
        "--epochs", type=int, default=72, help="of one long run; a teacher has a third, merging a third"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", choices=("no", "bf16"), default="bf16", help="of the forward pass")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.epochs % 6 or options.epochs < 36:
        parser.error(f"--epochs {options.epochs}: a multiple of 6, at least 36, is needed")
    commit()  # of the code that runs, whatever is committed meanwhile
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = options.out / "runs.csv"
    normalize = Normalize(MEAN, STD)
    images, test = read(options.data, "train", options.images), read(options.data, "test", options.test_images)
    pixels = [normalize(part.pixels).to(memory_format=torch.channels_last) for part in (images, test)]
    data = Data(pixels[0], images.labels, pixels[1], test.labels)
    budget = Budget(options.epochs, precision=options.precision)
    started = time.monotonic()
    for seed in range(options.seeds):
        for name in options.architectures:
            rows: list[dict[str, Any]] = [*read_rows(runs)]
            done = {(row["architecture"], row["memory"], int(row["seed"])) for row in rows}
            missing = [bound for bound in BOUNDS if (name, str(bound or "full"), seed) not in done]
            if not missing:
                continue
            teachers = [trained(name, seed, number, data, budget) for number in range(2)]
            for memory in missing:
                rows.append(asdict(run(name, memory, seed, teachers, data, budget, options.threads)))
                write_rows(runs, rows)
                print(f"{time.monotonic() - started:.0f} s: {rows[-1]}", flush=True)
    text = summary(read_rows(runs))
    with replacing(options.out / "summary.md") as temporary:
        temporary.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
