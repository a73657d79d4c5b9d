"""``pyassemble merge``: trained networks of one architecture into one of the same size."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.images import preprocessing_for
from pyassemble.cli.networks import parse
from pyassemble.cli.options import NETWORK_HELP, OPTIONS_PANEL, OUTPUT_PANEL, WEIGHTS_PANEL, Json
from pyassemble.cli.outputs import JsonOutput, check_outputs, pictures_written
from pyassemble.cli.program import app
from pyassemble.errors import NetworkSpecError, OutOfRangeError, WeightsFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.utils.data import Dataset

    from pyassemble.merge import MergeResult
    from pyassemble.network.sources import NetworkSpec
    from pyassemble.training.augment import Augmentation
    from pyassemble.training.image_files import Preprocessing
    from pyassemble.training.metrics import Quality

DATA_PANEL = "Images"


class Precision(StrEnum):
    """Numbers of the forward pass; the names of :data:`pyassemble.training.accelerated.PRECISIONS`."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


class Augment(StrEnum):
    """What is done to training images."""

    NONE = "none"
    FLIP = "flip"
    FLIP_CROP = "flip-crop"


@app.command()
def merge(
    networks: Annotated[
        list[str], typer.Argument(metavar="A B...", help=f"Two or more: {NETWORK_HELP}.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            help="A folder with a folder for each class, FILE.parquet, or torchvision:NAME:FOLDER.",
            rich_help_panel=DATA_PANEL,
            show_default=False,
        ),
    ],
    epochs: Annotated[int, typer.Option(help="In all: half to learn importance, half to fine-tune.", min=2)],
    out: Annotated[
        Path, typer.Option(metavar="FILE.safetensors", help="Where the weights go.", rich_help_panel=OUTPUT_PANEL)
    ],
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Each network's weights, in order; repeatable.", rich_help_panel=WEIGHTS_PANEL
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained",
            help="Use the weights published for them, or their factories'.",
            rich_help_panel=WEIGHTS_PANEL,
        ),
    ] = False,
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="Of networks from a library, if not its default.", rich_help_panel=WEIGHTS_PANEL, show_default=False
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Named as --data is; a tenth of it without.", rich_help_panel=DATA_PANEL, show_default=False),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Images' height and width; the networks' own without.", rich_help_panel=DATA_PANEL, show_default=False
        ),
    ] = None,
    augment: Annotated[
        Augment, typer.Option(help="What is done to training images.", rich_help_panel=DATA_PANEL)
    ] = Augment.FLIP,
    workers: Annotated[int, typer.Option(help="Processes that read images.", rich_help_panel=DATA_PANEL, min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Images in a step.", rich_help_panel=OPTIONS_PANEL, min=1)] = 64,
    learning_rate: Annotated[float, typer.Option(help="SGD's, for the weights.", rich_help_panel=OPTIONS_PANEL)] = 0.01,
    gate_rate: Annotated[float, typer.Option(help="SGD's, for the gates.", rich_help_panel=OPTIONS_PANEL)] = 0.2,
    first_lambda: Annotated[
        float, typer.Option(help="Weight of the sparsity loss at first.", rich_help_panel=OPTIONS_PANEL)
    ] = 0.05,
    memory: Annotated[
        float | None,
        typer.Option(
            help="Bound on parameters while importance is learned, in multiples of the networks' own, such as 1.3.",
            rich_help_panel=OPTIONS_PANEL,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.", rich_help_panel=OPTIONS_PANEL, min=0)] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda; a GPU if there is one.", rich_help_panel=OPTIONS_PANEL, show_default=False),
    ] = None,
    mixed_precision: Annotated[
        Precision, typer.Option(help="Of the forward pass.", rich_help_panel=OPTIONS_PANEL)
    ] = Precision.NO,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the state is kept at every epoch; without, OUT.merging until the end.",
            rich_help_panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.", rich_help_panel=OUTPUT_PANEL)] = False,
    json_to: Json = None,
    picture: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Curves and gates, .png or .svg; repeatable.", rich_help_panel=OUTPUT_PANEL),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="A report.", rich_help_panel=OUTPUT_PANEL, show_default=False),
    ] = None,
) -> None:
    """Merge trained networks of one architecture into one of the same size, on labelled images.

    An interrupted run goes on where it was when the command is repeated.
    """
    from pyassemble.merge import MergeSettings
    from pyassemble.report.merge import accuracy_table, gates_table, measured, merge_json
    from pyassemble.training.checkpoint import Checkpoint

    json_output = JsonOutput.of(json_to)
    pages = _pages(html)
    check_outputs([*pictures_written(picture), *pages, *json_output.written], others=[("--out", out)])
    _check_out(out, force)
    specs = [parse(text) for text in networks]
    _check_weights(specs, weights or [], pretrained)
    settings = MergeSettings(
        learning_rate=learning_rate, finetune_rate=learning_rate, gate_rate=gate_rate, first_lambda=first_lambda
    )
    with working("building the networks"):
        teachers = _teachers(specs, weights or [], pretrained, num_classes, _device(device))
    preprocessing = preprocessing_for(teachers[0], size)
    train, held_out = _images(data, validation, preprocessing, seed)
    merging = _Merging(
        teachers, train, held_out, preprocessing, memory, seed, batch_size, workers, mixed_precision.value
    )
    folder = out.with_name(f"{out.name}.merging") if checkpoint is None else checkpoint
    try:
        result = merging.run(epochs, settings, _augmentation(augment, preprocessing), folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"finished epochs are in {folder}; the same command goes on there") from None
    rows = measured(result, dict(zip(_labels(networks), merging.qualities, strict=True)))
    run: dict[str, Any] = {
        "networks": networks,
        "data": data,
        "training images": len(train),  # type: ignore[arg-type]
        "validation images": len(held_out),  # type: ignore[arg-type]
        "epochs": epochs,
        "batch size": batch_size,
        "bound of memory": memory,
        "seed": seed,
    }
    document = merge_json(result, merging.student.gate_groups, rows, run)
    _save(out, result.network, networks, data, epochs, seed)
    if checkpoint is None:
        Checkpoint(folder, "merge", {}).discard()
    json_output.write(document)
    _draw(document, picture or [], html)
    if json_output.to_stdout:
        return
    console = Console()
    console.print(gates_table(document), "")
    console.print(accuracy_table(document), "")
    for path in [*(picture or []), *([] if html is None else [html])]:
        print_line(console, f"drawn: {path}")
    print_line(console, f"saved {out}")


class _Merging:
    """The teachers, measured, and the student that they become."""

    def __init__(
        self,
        teachers: list[nn.Module],
        train: Dataset[Any],
        validation: Dataset[Any],
        preprocessing: Preprocessing,
        memory: float | None,
        seed: int,
        batch_size: int,
        workers: int,
        mixed_precision: str,
    ) -> None:
        import torch
        from torch.utils.data import DataLoader

        import pyassemble

        self.device = next((p.device for p in teachers[0].parameters()), torch.device("cpu"))
        shape = (2, preprocessing.channels, preprocessing.height, preprocessing.width)
        with working("reading the networks' graph"):
            images = torch.zeros(shape, device=self.device)
            self.student = pyassemble.merge(teachers, images, memory=memory, seed=seed)
        self.train = DataLoader(train, batch_size, num_workers=workers)
        self.validation = DataLoader(validation, batch_size, num_workers=workers)
        self.seed, self.mixed_precision = seed, mixed_precision
        with working("measuring the networks"):
            self.qualities = [self._quality(teacher) for teacher in teachers]

    def _quality(self, teacher: nn.Module) -> Quality:
        import torch

        from pyassemble.training.data import Data
        from pyassemble.training.metrics import measure_quality

        data = Data.of(self.validation, "validation")
        with torch.no_grad():
            images, _ = next(iter(data.first(1).batches(2**31, self.device)))
            classes = teacher(images).shape[-1]
        return measure_quality(teacher, data.batches(classes, self.device), classes)

    def run(self, epochs: int, settings: Any, augment: Augmentation | None, checkpoint: Path) -> MergeResult:
        import pyassemble

        return pyassemble.train_merged(
            self.student,
            self.train,
            validation=self.validation,
            epochs=epochs,
            settings=settings,
            augment=augment,
            seed=self.seed,
            checkpoint=checkpoint,
            mixed_precision=self.mixed_precision,
        )


def _check_out(out: Path, force: bool) -> None:
    from pyassemble.network.weights import check_writable

    check_writable(out)
    if out.exists() and not force:
        raise WeightsFileError(f"{out} exists; --force overwrites it")


def _pages(html: Path | None) -> list[tuple[str, Path]]:
    if html is None:
        return []
    from pyassemble.report.heatmap_html import check_page_path

    check_page_path(html)
    return [("--html", html)]


def _check_weights(specs: Sequence[NetworkSpec], weights: Sequence[Path], pretrained: bool) -> None:
    """Each network needs exactly one set of weights; random ones are never what was meant."""
    if len(specs) < 2:
        raise NetworkSpecError(f"only {specs[0].text!r} is named; accepted: two or more networks of one architecture")
    if weights and pretrained:
        raise NetworkSpecError("--weights and --pretrained exclude each other: one network, one set of weights")
    if weights and len(weights) != len(specs):
        raise NetworkSpecError(
            f"{len(specs)} networks, {len(weights)} --weights; accepted: one file for each, in order"
        )
    for spec in specs:
        if not (weights or pretrained or spec.holds_weights):
            raise NetworkSpecError(
                f"network {spec.text!r} has no trained weights to merge; give one --weights FILE for each network, in "
                "order, or take the published ones, or a factory's own, with --pretrained"
            )


def _teachers(
    specs: Sequence[NetworkSpec], weights: Sequence[Path], pretrained: bool, num_classes: int | None, device: str
) -> list[nn.Module]:
    from pyassemble.network.sources import load_network

    options = None if num_classes is None else {"num_classes": num_classes}
    files: Sequence[Path | None] = weights or [None] * len(specs)
    return [
        load_network(spec, weights=file, pretrained=pretrained, options=options).to(device).eval()
        for spec, file in zip(specs, files, strict=True)
    ]


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OutOfRangeError(f"--device {name}; accepted: cpu, cuda, cuda:NUMBER") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OutOfRangeError(f"--device {name}: no CUDA device here; accepted: cpu")
    return name


def _images(
    data: str, validation: str | None, preprocessing: Preprocessing, seed: int
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Training and validation images; a random tenth of the former where none are named."""
    import torch
    from torch.utils.data import Subset

    from pyassemble.training.image_files import read_images

    train = read_images(data, preprocessing)
    if validation is not None:
        return train, read_images(validation, preprocessing, split="test")
    if len(train) < 2:
        raise OutOfRangeError(f"{data} has {len(train)} images; accepted: at least 2, or --validation")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, len(train) // 10)
    return Subset(train, order[held_out:]), Subset(train, order[:held_out])


def _augmentation(augment: Augment, preprocessing: Preprocessing) -> Augmentation | None:
    from functools import partial

    from pyassemble.training.augment import in_order, random_crop, random_flip

    if augment is Augment.NONE:
        return None
    if augment is Augment.FLIP:
        return random_flip
    padding = max(1, min(preprocessing.height, preprocessing.width) // 8)
    return in_order(random_flip, partial(random_crop, padding=padding))


def _labels(networks: Sequence[str]) -> list[str]:
    """The networks as the accuracy table calls them: they often are one architecture with other weights."""
    return [f"teacher {number}: {text}" for number, text in enumerate(networks, 1)]


def _save(out: Path, network: nn.Module, networks: Sequence[str], data: str, epochs: int, seed: int) -> None:
    from pyassemble import __version__
    from pyassemble.network.weights import write_weights

    metadata = {
        "merged": ", ".join(networks),
        "data": data,
        "epochs": str(epochs),
        "seed": str(seed),
        "pyassemble": __version__,
    }
    write_weights(out, network.state_dict(), metadata)


def _draw(document: dict[str, Any], pictures: Sequence[Path], html: Path | None) -> None:
    from pyassemble.report.merge import write_merge_html
    from pyassemble.report.merge_picture import draw_merge

    for path in pictures:
        with working(f"drawing {path}"):
            draw_merge(document, path)
    if html is not None:
        with working(f"drawing {html}"):
            write_merge_html(document, html)
