"""``pyassemble assemble``: a new network from blocks of those that a recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pyassemble.cli.console import print_line, say, working
from pyassemble.cli.options import OUTPUT_PANEL, Json
from pyassemble.cli.outputs import JsonOutput, check_outputs
from pyassemble.cli.program import app
from pyassemble.errors import PyAssembleError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from pyassemble.assemble import Assembly, Repository
    from pyassemble.assemble.epoch_record import EpochRecord
    from pyassemble.assemble.plan import Plan


@app.command()
def assemble(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.yaml", help="Networks, data, epochs, out.", show_default=False)
    ],
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.", show_default=False)] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the result of another run.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    json_to: Json = None,
) -> None:
    """Search a network made of blocks of pretrained ones, and save it.

    An interrupted search goes on at its last whole epoch when the command is repeated.
    """
    from pyassemble.assemble.plan import Plan
    from pyassemble.report.assembly import ASSEMBLE_FORMAT, ASSEMBLE_VERSION

    plan = Plan.read(recipe)
    if epochs is not None:
        plan = replace(plan, epochs=epochs)
    output = JsonOutput.of(json_to)
    check_outputs(output.written)
    if plan.out.exists() and not force:
        raise PyAssembleError(f"{plan.out} exists; --force replaces it")
    train, validation, classes = _data(plan)
    repository = _repository(plan)
    assembly = _searched(plan, repository, train, validation, classes)
    if plan.finetune is not None:
        assembly.finetune(
            train,
            validation=validation,
            epochs=plan.finetune.epochs,
            mode=plan.finetune.mode,
            learning_rate=plan.finetune.learning_rate,
            batch_size=plan.settings.batch_size,
            seed=plan.seed,
            mixed_precision=plan.mixed_precision,
        )
    with working(f"saving {plan.out}"):
        assembly.save(plan.out)
    document = {"format": ASSEMBLE_FORMAT, "version": ASSEMBLE_VERSION, "out": str(plan.out)}
    output.write({**document, "history": assembly.history})
    if not output.to_stdout:
        _tell(assembly, plan)


def _data(plan: Plan) -> tuple[DataLoader[Any], DataLoader[Any] | None, int]:
    """Training and validation images, and the number of classes."""
    from torch.utils.data import DataLoader, Subset

    from pyassemble.training.image_files import LabelledFiles, read_images

    def loader(files: LabelledFiles) -> DataLoader[Any]:
        count = len(files) if plan.data.limit is None else min(plan.data.limit, len(files))
        return DataLoader(Subset(files, range(count)), plan.settings.batch_size, num_workers=plan.data.workers)

    with working("looking at the data"):
        train = read_images(plan.data.train, plan.images, split="train")
        validation = None
        if plan.data.validation is not None:
            validation = read_images(plan.data.validation, plan.images, split="test")
    classes = plan.num_classes or len(train.classes)
    for name, files in (("train", train), ("validation", validation)):
        if files is not None and len(files.classes) != classes:
            raise PyAssembleError(f"{name} has {len(files.classes)} classes; {classes} were expected")
    return loader(train), None if validation is None else loader(validation), classes


def _repository(plan: Plan) -> Repository:
    import torch

    from pyassemble.assemble import Repository
    from pyassemble.network.sources import NetworkSpec, load_network

    torch.manual_seed(plan.seed)
    networks = {}
    for source in plan.networks:
        with working(f"building {source.name}"):
            spec = NetworkSpec.parse(source.source)
            pretrained = plan.pretrained and source.weights is None
            networks[source.name] = load_network(spec, weights=source.weights, pretrained=pretrained)
            if not (pretrained or source.weights or spec.holds_weights):
                say("note", "yellow", f"{source.name} has random weights: no weights file, and pretrained is false")
    example = torch.zeros(2, plan.images.channels, plan.images.height, plan.images.width)
    with working("cutting the networks"):
        sources = {source.name: source.source for source in plan.networks}
        return Repository(networks, example, device=plan.device, sources=sources)


def _searched(
    plan: Plan, repository: Repository, train: DataLoader[Any], validation: DataLoader[Any] | None, classes: int
) -> Assembly:
    from pyassemble.assemble import assemble as search
    from pyassemble.cli.console import errors

    def after_epoch(record: EpochRecord) -> None:
        print_line(
            errors(),
            f"epoch {record.epoch}: loss {record.weights_loss:.3f}, validation accuracy {100 * record.accuracy:.1f} %, "
            f"best score {record.score:.2f}, {record.blocks_saved} block executions saved",
        )

    try:
        return search(
            repository,
            train,
            validation=validation,
            num_classes=classes,
            blocks=plan.blocks,
            epochs=plan.epochs,
            select=plan.select,
            seed=plan.seed,
            checkpoint=plan.checkpoint_folder,
            settings=plan.settings,
            mixed_precision=plan.mixed_precision,
            after_epoch=after_epoch,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"finished epochs are in {plan.checkpoint_folder}; the same command goes on there"
        ) from None


def _tell(assembly: Assembly, plan: Plan) -> None:
    result = next(entry for entry in assembly.history if entry["kind"] == "result")
    table = Table(title="Blocks", title_justify="left")
    for column in ("source", "segments", "ends with"):
        table.add_column(column)
    for block in assembly.recipe.blocks:
        table.add_row(block.network, f"{block.first} to {block.last}", block.cut_points[-1])
    console = Console()
    console.print(table)
    quality = next((e["validation"] for e in reversed(assembly.history) if "validation" in e), result["validation"])
    cost, best = result["cost"], result["best"][result["select"]]
    print_line(
        console,
        f"validation: accuracy {100 * quality['accuracy']:.1f} %, AUROC {quality['auroc']:.3f} on {quality['images']} "
        "images",
    )
    print_line(
        console,
        f"parameters: {cost['trainable']:,} trained in the search, {cost['total']:,} in all; "
        f"{cost['flops'] / 1e6:,.1f} million FLOPs",
    )
    tau = result["score_against_size"]
    print_line(
        console,
        f"score {best['score']:.2f}; over all candidates its order agrees with that by size with Kendall's tau "
        f"{'undefined' if tau is None else f'{tau:+.2f}'}",
    )
    print_line(console, f"saved {plan.out}; the search's state is in {plan.checkpoint_folder}")
