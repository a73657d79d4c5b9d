"""Assemblies by hand: what they compute, train, refuse and export."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import pyassemble as pa
from pyassemble.assemble import Continuation, FeatureShape, Head, Recipe, Stitch, stitch

if TYPE_CHECKING:
    from pathlib import Path

Blocks = list[tuple[str, int, int]]

# Maps to tokens, tokens to maps with channels last, and back to maps.
MIXED: Blocks = [("resnet", 0, 1), ("vit", 3, 5), ("last", 1, 2), ("vision", 2, 4)]
COMPOSITIONS: list[Blocks] = [
    MIXED,
    [("vit", 0, 3), ("mobile", 4, 10)],
    [("last", 0, 2), ("vit", 8, 11)],
    [("mobile", 2, 5), ("resnet", 3, 4)],  # starts inside a network
    [("vision", 0, 1), ("vision", 4, 5)],
    [("resnet", 0, 2), ("mobile", 0, 10)],  # a block that takes images behind another
    [("vit", 0, 5), ("vit", 0, 5)],
]


@pytest.mark.parametrize("blocks", COMPOSITIONS)
def test_computes_its_blocks_in_a_row(repository: pa.Repository, images: torch.Tensor, blocks: Blocks) -> None:
    assembly = pa.Assembly.compose(repository, blocks, 7, seed=3)
    with torch.no_grad():
        features = images
        for (name, first, last), before in zip(blocks, assembly.stitches, strict=True):
            features = before(features)
            assert tuple(features.shape[1:]) == repository[name].shape_before(first).size
            for segment in repository[name].segments[first : last + 1]:
                features = segment(features)
        assert torch.equal(assembly.features(images), features)
        classes = assembly(images)
        assert classes.shape == (3, 7)
        assert torch.equal(classes, assembly.head(features))
        for one in images:  # no image sees another
            expected = classes[(images == one).flatten(1).all(1)]
            torch.testing.assert_close(assembly(one[None]), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet", "mobile", "vit", "last", "vision"])
def test_a_network_cut_anywhere_and_rejoined_is_itself(
    repository: pa.Repository, networks: dict[str, nn.Module], images: torch.Tensor, name: str
) -> None:
    network, count = networks[name].eval(), len(repository[name])
    for where in {1, count // 2, count - 1}:
        assembly = pa.Assembly.compose(repository, [(name, 0, where - 1), (name, where, count - 1)], 10)
        assert not list(assembly.stitches.parameters())
        with torch.no_grad():
            assert torch.equal(repository[name].head(assembly.features(images)), network(images))


def test_the_seed_decides_the_weights(repository: pa.Repository) -> None:
    before = torch.get_rng_state()
    one, same, other = (pa.Assembly.compose(repository, MIXED, 5, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = {name for name in one if not torch.equal(one[name], other[name])}
    assert drawn == {name for name in one if name.startswith(("stitches.", "head."))}


class TestTraining:
    def test_stitches_and_head_alone_learn(self, repository: pa.Repository, images: torch.Tensor) -> None:
        assembly = pa.Assembly.compose(repository, MIXED, 5).train()
        assert assembly.training
        assert not any(module.training for module in assembly.blocks.modules())
        trained = {name for name, parameter in assembly.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, _ in assembly.named_parameters() if not name.startswith("blocks.")}
        sizes = [p.numel() for p in (*assembly.stitches.parameters(), *assembly.head.parameters())]
        assert assembly.num_trainable_parameters == sum(sizes)
        assert assembly.num_parameters == sum(p.numel() for p in assembly.parameters())

        before = {name: tensor.clone() for name, tensor in assembly.state_dict().items()}
        optimizer = torch.optim.AdamW(p for p in assembly.parameters() if p.requires_grad)
        nn.functional.cross_entropy(assembly(images), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        changed = {name for name, tensor in assembly.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == trained

    def test_full_training_takes_memory_of_its_own(self, images: torch.Tensor, networks: dict[str, nn.Module]) -> None:
        repository = pa.Repository({"mobile": networks["mobile"]}, images)
        blocks: Blocks = [("mobile", 0, 3), ("mobile", 2, 10)]
        other, assembly = (pa.Assembly.compose(repository, blocks, 5) for _ in range(2))
        with torch.no_grad():
            expected = other(images)
        assembly.train_blocks().train()
        assert any(module.training for module in assembly.blocks.modules())
        assert assembly.num_trainable_parameters == assembly.num_parameters
        optimizer = torch.optim.SGD(assembly.parameters(), lr=0.1)
        nn.functional.cross_entropy(assembly(images), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        with torch.no_grad():
            assert torch.equal(other(images), expected)
            assert not torch.equal(assembly.eval()(images), expected)
        frozen = assembly.train_blocks(False).train()
        assert not any(module.training for module in frozen.blocks.modules())
        assert not any(parameter.requires_grad for parameter in frozen.blocks.parameters())

    def test_loading_into_an_assembly_leaves_the_networks(
        self, repository: pa.Repository, networks: dict[str, nn.Module], images: torch.Tensor
    ) -> None:
        network = networks["resnet"].eval()
        with torch.no_grad():
            expected = network(images)
            assembly = pa.Assembly.compose(repository, [("resnet", 0, 4)], 5)
            holder = nn.Sequential(assembly)
            holder.load_state_dict({name: torch.zeros_like(t) for name, t in holder.state_dict().items()})
            assert not assembly.features(images).any()
            assert torch.equal(network(images), expected)

    def test_moving_an_assembly_leaves_the_networks(
        self, repository: pa.Repository, networks: dict[str, nn.Module], images: torch.Tensor
    ) -> None:
        assembly = pa.Assembly.compose(repository, [("vit", 0, 2), ("resnet", 2, 4)], 5).double()
        assert assembly(images.double()).dtype == torch.float64
        assert {p.dtype for p in networks["vit"].parameters()} == {torch.float32}
        assert {p.dtype for p in repository["vit"].segments[0].parameters()} == {torch.float32}

    def test_a_factor_of_a_blocks_output_folds_into_what_follows(
        self, repository: pa.Repository, images: torch.Tensor
    ) -> None:
        assembly = pa.Assembly.compose(repository, [("resnet", 0, 2), ("resnet", 3, 3), ("mobile", 8, 10)], 5)
        factors = (0.5, 0.25, 0.75)
        with torch.no_grad():
            features = images
            for before, block, factor in zip(assembly.stitches, assembly.blocks, factors, strict=True):
                features = block(before(features)) * factor
            expected = assembly.head(features)
            for after, factor in zip((*assembly.stitches[1:], assembly.head), factors, strict=True):
                after.scale_(factor)
            torch.testing.assert_close(assembly(images), expected, rtol=1e-4, atol=1e-4)

    def test_a_copy_is_independent(self, repository: pa.Repository, images: torch.Tensor) -> None:
        assembly = pa.Assembly.compose(repository, MIXED, 5)
        twin = copy.deepcopy(assembly)
        assert torch.equal(twin(images), assembly(images))
        assert twin.recipe == assembly.recipe


class TestParts:
    def test_given_stitches_and_head_are_used(self, repository: pa.Repository, images: torch.Tensor) -> None:
        blocks: Blocks = [("resnet", 0, 1), ("resnet", 2, 3)]
        shape = repository["resnet"].shapes[1]
        layer = stitch(shape, shape, generator=torch.Generator().manual_seed(9))
        head = Head(repository["resnet"].shapes[3], 5)
        plain = pa.Assembly.compose(repository, blocks, 5)
        assembly = pa.Assembly.compose(repository, blocks, 5, stitches={1: layer}, head=head)
        assert isinstance(plain.stitches[1], Continuation)
        assert assembly.stitches[1] is layer
        assert assembly.head is head
        assert [row.kind for row in plain.recipe.stitches] == ["images", "continuation"]
        assert [row.kind for row in assembly.recipe.stitches] == ["images", "stitch"]

    @pytest.mark.parametrize(
        ("stitches", "head", "error", "words"),
        [
            ({1: nn.Identity()}, None, pa.ArgumentTypeError, "the stitch before block 1 is a Identity"),
            ({2: nn.Identity()}, None, pa.OutOfRangeError, "a stitch is given for block 2; there are blocks 0 to 1"),
            (
                {1: Stitch(FeatureShape("map", 3, 4, 4), FeatureShape("map", 5, 4, 4))}, None, pa.TensorError,
                "the stitch before block 1 leads from map 4×4, 3 channels to map 4×4, 5 channels; from map",
            ),
            ({}, nn.Linear(3, 5), pa.ArgumentTypeError, "head is a Linear"),
            ({}, Head(FeatureShape("map", 3, 4, 4), 5), pa.TensorError, "head takes map 4×4, 3 channels and gives 5"),
        ],
    )  # fmt: skip
    def test_others_are_refused(
        self,
        repository: pa.Repository,
        stitches: dict[int, nn.Module],
        head: nn.Module | None,
        error: type[Exception],
        words: str,
    ) -> None:
        with pytest.raises(error, match=words):
            pa.Assembly.compose(repository, [("resnet", 0, 1), ("vit", 2, 3)], 5, stitches=stitches, head=head)


class TestRecipe:
    def test_goes_through_json(self, repository: pa.Repository) -> None:
        recipe = pa.Assembly.compose(repository, MIXED, 5).recipe
        assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
        assert [row.cut_points[-1] for row in recipe.blocks] == [
            repository[name].cut_points[last] for name, _, last in MIXED
        ]
        assert [source.network for source in recipe.sources] == ["resnet", "vit", "last", "vision"]

    def test_composes_the_same_again(self, repository: pa.Repository, images: torch.Tensor) -> None:
        assembly = pa.Assembly.compose(repository, MIXED, 5, seed=4)
        again = pa.Assembly.from_recipe(assembly.recipe, repository, seed=4)
        assert torch.equal(again(images), assembly(images))

    def test_refuses_networks_that_are_missing_or_have_changed(
        self, repository: pa.Repository, networks: dict[str, nn.Module], images: torch.Tensor
    ) -> None:
        recipe = pa.Assembly.compose(repository, [("resnet", 0, 1), ("mobile", 2, 4)], 5).recipe
        with pytest.raises(pa.RecipeError, match="the recipe's network 'mobile' is not in the repository of resnet"):
            pa.Assembly.from_recipe(recipe, pa.Repository({"resnet": networks["resnet"]}, images))
        changed = copy.deepcopy(networks["mobile"])
        with torch.no_grad():
            changed.blocks[1][1].conv_pw.weight[0] += 1
        others = pa.Repository({"resnet": networks["resnet"], "mobile": changed}, images)
        with pytest.raises(pa.RecipeError, match="network 'mobile' has changed: the tensors of its segments 2 to 4"):
            pa.Assembly.from_recipe(recipe, others)
        swapped = pa.Repository({"mobile": networks["resnet"], "resnet": networks["mobile"]}, images)
        with pytest.raises(pa.RecipeError, match="network 'resnet' has changed: the recipe's segments 0 to 1 end with"):
            pa.Assembly.from_recipe(recipe, swapped)
        smaller = pa.Repository({"resnet": networks["resnet"]}, images[:, :, :32, :32])
        with pytest.raises(pa.RecipeError, match="the recipe takes map 64×64, 3 channels; the repository was cut for"):
            pa.Assembly.from_recipe(recipe, smaller)


class TestRefused:
    @pytest.mark.parametrize(
        ("blocks", "error", "words"),
        [
            ([], pa.OutOfRangeError, "blocks is empty"),
            ([("alexnet", 0, 1)], pa.UnknownOptionError, "unknown network 'alexnet'; known: resnet"),
            ([("resnet", 0, 5)], pa.CutError, "'resnet' has segments 0 to 4, no block of segments 0 to 5"),
            ([("resnet", 2, 1)], pa.CutError, "no block of segments 2 to 1"),
            ([("resnet", -1, 1)], pa.CutError, "no block of segments -1 to 1"),
            ([("resnet", 0, 1.0)], pa.CutError, r"no block of segments 0 to 1\.0"),
            ([("resnet", 0)], pa.ArgumentTypeError, r"\('resnet', 0\) is no block"),
            ([7], pa.ArgumentTypeError, "7 is no block"),
        ],
    )
    def test_blocks(self, repository: pa.Repository, blocks: Blocks, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            pa.Assembly.compose(repository, blocks, 5)

    @pytest.mark.parametrize("classes", [0, -2, 2.5, True])
    def test_classes(self, repository: pa.Repository, classes: int) -> None:
        with pytest.raises(pa.OutOfRangeError, match=r"num_classes is .*an integer of at least 1"):
            pa.Assembly.compose(repository, MIXED, classes)

    @pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 64, 64), (3, 64, 64)])
    def test_images(self, repository: pa.Repository, shape: tuple[int, ...]) -> None:
        assembly = pa.Assembly.compose(repository, MIXED, 5)
        with pytest.raises(pa.TensorError, match=r"images have shape .*; \(B, 3, 64, 64\) is taken"):
            assembly(torch.zeros(shape))

    def test_a_block_that_returns_no_numbers_is_named(self, repository: pa.Repository, images: torch.Tensor) -> None:
        assembly = pa.Assembly.compose(repository, MIXED, 5)
        with torch.no_grad():
            assembly.stitches[2].convolution.bias[1] = torch.inf
        assert assembly(images).isnan().any()
        assembly.check_finite = True
        with pytest.raises(
            pa.TensorError,
            match=r"block 2 of shape \(3, 8, 8, 40\) .*segments 1 to 2 \('later\.0'\) of network 'last' "
            r"\(.*channels_last\.py:network\)",
        ):
            assembly(images)


def test_an_assembly_is_a_network_like_any_other(repository: pa.Repository, images: torch.Tensor) -> None:
    assembly = pa.Assembly.compose(repository, [("resnet", 0, 2), ("mobile", 5, 10)], 5)
    assert pa.similarity(assembly, assembly, standardization="graph") == 1  # traced: a warning would be an error
    again = pa.Repository({"assembly": assembly}, images)["assembly"]
    assert len(again) >= 5
    assert torch.equal(again.head(again.features(images)), assembly(images))


class TestExport:
    @pytest.mark.parametrize("blocks", [MIXED, COMPOSITIONS[3]])
    def test_torch_export(self, repository: pa.Repository, images: torch.Tensor, blocks: Blocks) -> None:
        assembly = pa.Assembly.compose(repository, blocks, 5)
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(assembly, (images,), dynamic_shapes=({0: batch},)).module()
        with torch.no_grad():
            torch.testing.assert_close(exported(images), assembly(images))
            torch.testing.assert_close(exported(images[:2]), assembly(images[:2]))

    @pytest.mark.slow
    @pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
        reason="needs onnx, onnxscript and onnxruntime",
    )
    @pytest.mark.parametrize("blocks", [MIXED, COMPOSITIONS[3]])
    def test_onnx(self, repository: pa.Repository, images: torch.Tensor, blocks: Blocks, tmp_path: Path) -> None:
        import onnxruntime

        assembly = pa.Assembly.compose(repository, blocks, 5)
        file = tmp_path / "assembly.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter deprecates parts of itself
            torch.onnx.export(assembly, (images,), file, dynamo=True, verbose=False)
        (classes,) = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(classes), assembly(images).detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_every_block_of_every_network_joins_every_other(repository: pa.Repository, images: torch.Tensor) -> None:
    for one, other in itertools.product(repository, repository):
        for last, first in itertools.product(range(0, len(repository[one]), 3), range(1, len(repository[other]), 3)):
            blocks = [(one, 0, last), (other, first, min(first + 1, len(repository[other]) - 1))]
            assembly = pa.Assembly.compose(repository, blocks, 5)
            with torch.no_grad():
                assert assembly(images[:1]).shape == (1, 5)
