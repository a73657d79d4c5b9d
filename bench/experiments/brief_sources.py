"""Sources for the ranking experiment that nobody publishes: small networks trained briefly on CIFAR-10.

Weights go to a folder that git ignores; the same recipe and seed make them again. What came out is kept in a CSV file.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from cifar_resnet import load_weights
from provenance import commit
from safetensors.torch import save_file
from small_networks import build, parameter_count, precision_for
from transfer_training import LEARNING_RATE, accuracy

from pyassemble.atomic import replacing
from pyassemble.training import fit, random_flip

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from cifar10 import Images, Normalize
    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How every brief source is trained."""

    skipped: int
    """Images left to the targets: a source has not seen what a target is trained on."""
    images: int
    epochs: int
    batch_size: int
    seed: int = 1000
    """Far from the targets' seeds, so that no target begins where its source began."""

    def chosen(self, train: Images) -> Images:
        """This recipe's part of the training images."""
        stop = self.skipped + self.images
        if stop > len(train):
            raise ValueError(f"{stop} training images wanted, {len(train)} there")
        return type(train)(train.pixels[self.skipped : stop], train.labels[self.skipped : stop])


@dataclass(frozen=True)
class Trained:
    """One trained source, as kept in the CSV file."""

    name: str
    parameters: int
    accuracy: float
    test_images: int
    images: int
    epochs: int
    batch_size: int
    seed: int
    seconds: float
    commit: str


class BriefSources:
    """The folder of trained sources and the CSV file about them."""

    def __init__(self, folder: Path, table: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.table = table
        self.recipe = recipe

    def checkpoint(self, name: str) -> Path:
        r = self.recipe
        return self.folder / f"{name}_{r.images}x{r.epochs}_batch{r.batch_size}_seed{r.seed}.safetensors"

    def load(self, name: str, device: torch.device) -> nn.Module:
        network = build(name, self.recipe.seed, device)
        load_weights(network, self.checkpoint(name))
        return network.eval()

    def train(self, name: str, train: Images, test: Images, normalize: Normalize) -> Trained:
        """Trains a source from random initialization and keeps it."""
        recipe, images = self.recipe, self.recipe.chosen(train)
        device = images.labels.device
        network = build(name, recipe.seed, device)
        results = fit(
            network,
            images.pixels,
            images.labels,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            learning_rate=LEARNING_RATE,
            seed=recipe.seed,
            autocast=precision_for(network, device),
            prepare=normalize,
            augment=random_flip,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.checkpoint(name)) as temporary:
            save_file({key: value.cpu().contiguous() for key, value in network.state_dict().items()}, temporary)
        trained = Trained(
            name=name,
            parameters=parameter_count(network),
            accuracy=accuracy(network, test, normalize),
            test_images=len(test),
            images=recipe.images,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            seconds=sum(result.seconds for result in results),
            commit=commit(),
        )
        self._keep(trained)
        return trained

    def _keep(self, trained: Trained) -> None:
        records = [row for row in read_trained(self.table) if row["name"] != trained.name]
        with replacing(self.table) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Trained)])
            writer.writeheader()
            writer.writerows([*records, asdict(trained)])


def read_trained(table: Path) -> list[dict[str, str]]:
    """The rows of the CSV file as they stand there; none if it does not exist."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))
