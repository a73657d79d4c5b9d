"""From blocks to a recipe, and from a recipe's rows to stitches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyassemble.assemble.recipe import BlockRecipe, Recipe, StitchKind, StitchRecipe
from pyassemble.assemble.stitches import Continuation, Stitch
from pyassemble.errors import ArgumentTypeError, RecipeError, TensorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyassemble.assemble.repository import Block, Repository
    from pyassemble.network.cuts import CutNetwork


def recipe_of(repository: Repository, blocks: Sequence[Block], num_classes: int) -> Recipe:
    """The recipe of an assembly of these blocks."""
    rows = tuple(_block_recipe(repository, block) for block in blocks)
    stitches = [_first_stitch(repository, rows[0])]
    for before, row in pairwise(rows):
        continues = (before.network, before.last + 1) == (row.network, row.first)
        kind: StitchKind = "continuation" if continues else "stitch"
        stitches.append(StitchRecipe(kind, before.output_shape, row.input_shape))
    sources = tuple(repository.source(name) for name in dict.fromkeys(block.network for block in blocks))
    return Recipe(repository.input_shape, num_classes, sources, rows, tuple(stitches), libraries())


def libraries() -> tuple[tuple[str, str], ...]:
    """Versions of what an assembly depends on."""
    import timm
    import torchvision

    import pyassemble

    found = (pyassemble, timm, torch, torchvision)
    return tuple((module.__name__, str(module.__version__)) for module in found)


def made_stitch(row: StitchRecipe, generator: torch.Generator) -> nn.Module:
    """What a recipe puts before a block, with random weights."""
    match row.kind:
        case "images":
            return nn.Identity()
        case "continuation":
            return Continuation()
        case "stitch":
            return Stitch(row.source, row.target, generator=generator)


def check_cut(row: BlockRecipe, network: CutNetwork) -> None:
    """Whether a network is cut where the recipe's was.

    Raises:
        RecipeError: It is not.
    """
    found = _cut_points(network, row.first, row.last) if row.last < len(network) else ()
    if found != row.cut_points:
        raise RecipeError(
            f"network {row.network!r} has changed: the recipe's segments {row.first} to {row.last} end with "
            f"{', '.join(row.cut_points)}, the network's with {', '.join(found) or f'number {len(network) - 1}'}"
        )
    shapes = (network.shape_before(row.first), network.shapes[row.last])
    if shapes != (row.input_shape, row.output_shape):
        raise RecipeError(
            f"network {row.network!r} has changed: the recipe's segments {row.first} to {row.last} take "
            f"{row.input_shape} and return {row.output_shape}, the network's take {shapes[0]} and return {shapes[1]}"
        )


def _block_recipe(repository: Repository, block: Block) -> BlockRecipe:
    network = repository[block.network]
    return BlockRecipe(
        network=block.network,
        first=block.first,
        last=block.last,
        cut_points=_cut_points(network, block.first, block.last),
        input_shape=network.shape_before(block.first),
        output_shape=network.shapes[block.last],
        segment_hashes=repository.segment_hashes(block.network, block.first, block.last),
    )


def _cut_points(network: CutNetwork, first: int, last: int) -> tuple[str, ...]:
    return tuple(network.cut_points[max(first - 1, 0) : last + 1])


def _first_stitch(repository: Repository, row: BlockRecipe) -> StitchRecipe:
    kind: StitchKind = "images" if row.first == 0 else "stitch"
    return StitchRecipe(kind, repository.input_shape, row.input_shape)


def with_given_stitches(recipe: Recipe, given: Mapping[int, nn.Module]) -> Recipe:
    """The recipe with the stitches that the caller brings, after checking that they fit."""
    rows = list(recipe.stitches)
    for index, stitch in given.items():
        row = rows[index]
        if isinstance(stitch, Continuation) and row.kind == "continuation":
            continue
        if not isinstance(stitch, Stitch):
            raise ArgumentTypeError(
                f"the stitch before block {index} is a {type(stitch).__name__}; a pyassemble.assemble.Stitch was "
                "expected"
            )
        if (stitch.source, stitch.target) != (row.source, row.target):
            raise TensorError(
                f"the stitch before block {index} leads from {stitch.source} to {stitch.target}; from {row.source} to "
                f"{row.target} was expected"
            )
        rows[index] = replace(row, kind="stitch")
    return replace(recipe, stitches=tuple(rows))
