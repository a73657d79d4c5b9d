"""A first look: a network trained on handwritten digits helps one of another architecture; both together make a third.

Runs on scikit-learn's embedded digits (1 797 images of 8×8 pixels), on the CPU, without any download.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from pyassemble.assemble import Repository, SearchSettings
from pyassemble.assemble.assemble import assemble
from pyassemble.atomic import replacing
from pyassemble.training import evaluate, fit
from pyassemble.transfer import similarity, transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SOURCE_WIDTHS, SOURCE_BLOCKS = (16, 32), 2
TARGET_WIDTHS, TARGET_BLOCKS = (24, 48), 3
SOURCE_IMAGES = 898
"""Half of the digits; the other half is the target's."""
TARGET_IMAGES = 200

# The publication's defaults are for tens of thousands of images: here the stitches start from the least-squares map
# between the networks' features, and images are not mixed.
ASSEMBLY_SETTINGS = SearchSettings(
    batch_size=32,
    weights_rate=3e-3,
    start="least_squares",
    start_images=128,
    score_images=128,
    selection_images=256,
    mixup=0,
    cutmix=0,
    smoothing=0,
)
ASSEMBLY_EPOCHS = 3
FINETUNING_EPOCHS = 4


@dataclass(frozen=True)
class Assembled:
    """The network assembled from the source and a target that was started from it.

    Attributes:
        recipe: Its blocks, in words.
        accuracy: On the test images.
        parts: Accuracy of the two networks it is made of, the source first.
        trained: Parameters of its stitches and head, the only ones that were trained.
        parameters: All of them.
    """

    recipe: str
    accuracy: float
    parts: tuple[float, float]
    trained: int
    parameters: int


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart measured.

    Attributes:
        random: Accuracy from random initialization, (seeds, epochs + 1); the first column is before training.
        transferred: The same, started from the source.
        source_accuracy: The source's own accuracy on the same test images.
        similarity: Symmetric similarity of the two architectures.
        coverage: Share of the target's elements that the source wrote.
        assembled: The network made of blocks of both.
        picture: The PNG file.
        seconds: The whole run's wall time.
    """

    random: NDArray[np.float64]
    transferred: NDArray[np.float64]
    source_accuracy: float
    similarity: float
    coverage: float
    assembled: Assembled
    picture: Path
    seconds: float


def run(
    out_dir: Path,
    seed: int = 0,
    *,
    seeds: int = 5,
    epochs: int = 4,
    source_epochs: int = 10,
    console: Console | None = None,
) -> QuickstartResult:
    """Trains a small network on half of the digits, carries it into a deeper and wider one, and compares.

    The target then learns from only 200 images of the other half, once from the transferred weights and once from
    random initialization: the same initial weights and the same order of images for both, several times over. At last
    the source and the target become a repository, from which a third network is assembled.

    Args:
        out_dir: Folder for ``transfer.png``; made if it is missing.
        seed: Of every random choice. The same seed gives the same table on the same machine.
        seeds: How often the comparison is repeated.
        epochs: How long the target is trained.
        source_epochs: How long the source is trained.
        console: Where to print; standard output by default.

    Returns:
        The measured numbers.
    """
    console = console or Console()
    start = time.perf_counter()
    out_dir.mkdir(parents=True, exist_ok=True)
    images, labels = _digits(seed)
    source_half = slice(0, SOURCE_IMAGES)
    taught = slice(SOURCE_IMAGES, SOURCE_IMAGES + TARGET_IMAGES)
    tested = slice(SOURCE_IMAGES + TARGET_IMAGES, None)

    def accuracy(network: nn.Module) -> float:
        return evaluate(network, images[tested], labels[tested])

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with _one_thread(), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(
            "training the source", total=source_epochs + 2 * seeds * epochs + ASSEMBLY_EPOCHS + FINETUNING_EPOCHS
        )

        def after_epoch() -> None:
            progress.advance(task)

        source = _source(images[source_half], labels[source_half], seed, source_epochs, after_epoch)
        coverage = 0.0
        curves: dict[bool, list[list[float]]] = {False: [], True: []}
        for repeat in range(seed, seed + seeds):
            for transferred, found in curves.items():
                start_from = "the source" if transferred else "random weights"
                progress.update(task, description=f"training the target from {start_from}, seed {repeat}")
                target = _network(TARGET_WIDTHS, TARGET_BLOCKS, repeat)
                if transferred:
                    coverage = transfer(source, target).coverage
                found.append(
                    _curve(target, images[taught], labels[taught], repeat, epochs, accuracy, after_epoch),
                )
        alike = similarity(source, target)
        source_accuracy = accuracy(source)
        progress.update(task, description="assembling a third network from blocks of both")
        known = slice(0, SOURCE_IMAGES + TARGET_IMAGES)
        assembled = _assembled(source, target, images[known], labels[known], seed, accuracy, after_epoch)
    picture = out_dir / "transfer.png"
    result = QuickstartResult(
        random=np.array(curves[False]),
        transferred=np.array(curves[True]),
        source_accuracy=source_accuracy,
        similarity=alike,
        coverage=coverage,
        assembled=assembled,
        picture=picture,
        seconds=time.perf_counter() - start,
    )
    with replacing(picture) as temporary:
        _draw(result, temporary)
    _tell(result, console)
    return result


def _digits(seed: int) -> tuple[Tensor, Tensor]:
    """All digits in a random order, pixels from -1 to 1."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return images[order], torch.tensor(data.target, dtype=torch.int64)[order]


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = width_in == width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def _network(widths: tuple[int, ...], blocks: int, seed: int) -> nn.Sequential:
    """A small residual network: a stem, a stage of ``blocks`` blocks for each width, a head."""
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to advance
        torch.manual_seed(seed)
        stem = nn.Sequential(nn.Conv2d(1, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages = [stem]
        width_in = widths[0]
        for number, width in enumerate(widths):
            first = _Block(width_in, width, 2 if number > 0 else 1)
            stages.append(nn.Sequential(first, *(_Block(width, width, 1) for _ in range(blocks - 1))))
            width_in = width
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, 10))
        return nn.Sequential(*stages, head)


def _source(images: Tensor, labels: Tensor, seed: int, epochs: int, after_epoch: Callable[[], None]) -> nn.Module:
    network = _network(SOURCE_WIDTHS, SOURCE_BLOCKS, seed)
    fit(
        network,
        images,
        labels,
        epochs=epochs,
        batch_size=64,
        learning_rate=3e-3,
        seed=seed,
        after_epoch=lambda _: after_epoch(),
    )
    return network


def _curve(
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    epochs: int,
    accuracy: Callable[[nn.Module], float],
    after_epoch: Callable[[], None],
) -> list[float]:
    """Test accuracy before training and after every epoch."""
    found = [accuracy(target)]

    def measure(_: object) -> None:
        found.append(accuracy(target))
        after_epoch()

    fit(target, images, labels, epochs=epochs, batch_size=32, seed=seed, after_epoch=measure)
    return found


def _assembled(
    source: nn.Module,
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    seed: int,
    accuracy: Callable[[nn.Module], float],
    after_epoch: Callable[[], None],
) -> Assembled:
    repository = Repository({"source": source, "target": target}, images[:2])
    assembly = assemble(
        repository,
        (images, labels),
        num_classes=10,
        blocks=3,
        epochs=ASSEMBLY_EPOCHS,
        seed=seed,
        settings=ASSEMBLY_SETTINGS,
        progress=False,
        after_epoch=lambda _: after_epoch(),
    )
    recipe = str(assembly.history[-1]["assembly"])
    assembly.finetune(
        (images, labels), epochs=FINETUNING_EPOCHS, batch_size=32, seed=seed, mixup=0, cutmix=0, smoothing=0,
        progress=False, after_epoch=lambda _: after_epoch(),
    )  # fmt: skip
    return Assembled(
        recipe=recipe,
        accuracy=accuracy(assembly),
        parts=(accuracy(source), accuracy(target)),
        trained=assembly.num_trainable_parameters,
        parameters=assembly.num_parameters,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small do not gain from more, and lose much where other programs use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _tell(result: QuickstartResult, console: Console) -> None:
    epochs = result.random.shape[1] - 1
    table = Table(title=f"Test accuracy of the target, mean of {len(result.random)} seeds", title_justify="left")
    table.add_column("start")
    table.add_column("before training", justify="right")
    for epoch in range(1, epochs + 1):
        table.add_column(f"epoch {epoch}", justify="right")
    rows = {"random": result.random, "transferred": result.transferred}
    for name, accuracies in rows.items():
        table.add_row(name, *(f"{100 * mean:.1f} %" for mean in accuracies.mean(0)))
    ahead = (result.transferred > result.random).sum(0)
    table.add_row("transfer ahead", *(f"{count} of {len(result.random)}" for count in ahead))
    console.print(
        f"Source: {_size(SOURCE_WIDTHS, SOURCE_BLOCKS)}, trained on {SOURCE_IMAGES} digits; "
        f"{100 * result.source_accuracy:.1f} % on the test images.\n"
        f"Target: {_size(TARGET_WIDTHS, TARGET_BLOCKS)}, trained on {TARGET_IMAGES} other digits.\n"
        f"Similarity {result.similarity:.2f}; the source wrote {100 * result.coverage:.0f} % of the target.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    made = result.assembled
    console.print(
        f"Assembled from blocks of both, the target as transferred and trained: {made.recipe}\n"
        f"{100 * made.accuracy:.1f} % on the test images (source {100 * made.parts[0]:.1f} %, target "
        f"{100 * made.parts[1]:.1f} %), {made.trained:,} of its {made.parameters:,} parameters trained.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"Picture: {result.picture} ({result.seconds:.0f} s in all)", highlight=False, soft_wrap=True)


def _size(widths: tuple[int, ...], blocks: int) -> str:
    return f"{blocks * len(widths)} residual blocks, {' and '.join(map(str, widths))} channels"


def _draw(result: QuickstartResult, path: Path) -> None:
    # A figure of its own canvas, not pyplot: the caller's backend and open figures stay as they are.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = {"transferred": (result.transferred, "#0072B2"), "random initialization": (result.random, "#555555")}
    for name, (accuracies, colour) in styles.items():
        percent = 100 * accuracies
        epochs = range(percent.shape[1])
        axes.plot(epochs, percent.mean(0), color=colour, lw=2.2, marker="o", label=name)
        axes.fill_between(epochs, percent.min(0), percent.max(0), color=colour, alpha=0.15, lw=0)
    axes.axhline(100 * result.source_accuracy, color="#E69F00", lw=1.2, ls="--", label="the source itself")
    axes.set_xticks(range(result.random.shape[1]))
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"epochs on {TARGET_IMAGES} digits (0: before training)")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(
        f"A deeper, wider network started from a small one\n{len(result.random)} seeds, bands from worst to best; "
        f"similarity {result.similarity:.2f}",
        fontsize=10,
        loc="left",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=130, format="png")
