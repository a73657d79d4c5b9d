"""``pyassemble assemble``: a recipe in, a folder out; resuming; what a wrong recipe is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

import pyassemble as pa
from pyassemble.network.sources import load_network
from tests.cli.pictures import NETWORKS, make_pictures

if TYPE_CHECKING:
    from tests.cli.work import Work


@pytest.fixture
def recipe(work: Work) -> dict[str, Any]:
    (work.folder / "blocks.py").write_text(NETWORKS)
    make_pictures(work.folder / "pictures")
    make_pictures(work.folder / "others", 12)
    return {
        "networks": {"wide": f"{work.folder}/blocks.py:wide", "deep": {"source": f"{work.folder}/blocks.py:deep"}},
        "images": {"height": 8, "width": 8},
        "data": {"train": str(work.folder / "pictures"), "validation": str(work.folder / "others")},
        "blocks": 2,
        "epochs": 2,
        "out": str(work.folder / "result"),
        "settings": {"batch_size": 8, "rounds": 1, "candidates": 2, "score_images": 8, "alpha": 1},
    }


def written(work: Work, recipe: dict[str, Any]) -> Path:
    (work.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return work.folder / "recipe.yaml"


def test_from_recipe_to_folder(work: Work, recipe: dict[str, Any]) -> None:
    result = work.run("assemble", written(work, recipe), "--json", work.folder / "a.json")
    assert result.exit_code == 0, result.output
    assert "epoch 1: loss" in result.stderr
    assert "epoch 2: loss" in result.stderr
    assert "note: wide has random weights" in result.stderr
    assert "parameters: " in result.stdout
    assert f"saved {work.folder / 'result'}" in result.stdout
    assembly = pa.Assembly.load(work.folder / "result")
    with torch.no_grad():
        assert assembly(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    again = load_network(str(work.folder / "result"))
    assert isinstance(again, pa.Assembly)
    document = json.loads((work.folder / "a.json").read_text())
    assert [entry["kind"] for entry in document["history"]] == ["epoch", "epoch", "result"]
    assert "exists; --force replaces it" in work.error("assemble", work.folder / "recipe.yaml")


def test_resumed(work: Work, recipe: dict[str, Any]) -> None:
    recipe["finetune"] = {"epochs": 1}
    path = written(work, recipe)
    work.good("assemble", path)
    whole = pa.Assembly.load(work.folder / "result").state_dict()
    for folder in ("result", "result.search"):
        (work.folder / folder).rename(work.folder / f"{folder}.first")
    work.good("assemble", path, "--epochs", 1)
    result = work.run("assemble", path, "--force")
    assert result.exit_code == 0, result.output
    assert "epoch 1: loss" not in result.stderr
    assert "epoch 2: loss" in result.stderr
    found = pa.Assembly.load(work.folder / "result").state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": None}, "epochs is missing; accepted: a whole number"),
        ({"epochs": 0}, "epochs is 0; accepted: at least 1"),
        ({"epochs": True}, "epochs is True; accepted: a whole number"),
        ({"epoch": 3}, "has an entry 'epoch'; accepted: networks, images, data, epochs"),
        ({"networks": {}}, "networks is empty"),
        ({"networks": ["timm:resnet18", "timm:resnet18"]}, "'timm:resnet18' is there more than once"),
        ({"networks": {"a": {"file": "x"}}}, "networks.a has an entry 'file'; accepted: source, weights"),
        ({"networks": {"a": "nothing"}}, "network 'nothing'"),
        ({"images": {"height": 8}}, "images.width is missing"),
        ({"images": {"height": 8, "width": 8, "mean": ["x"]}}, "images.mean is ['x']; accepted: a list of numbers"),
        ({"images": {"height": 8, "width": 8, "channels": 2}}, "2 channels"),
        ({"data": {"train": "/nowhere"}}, "data '/nowhere': no such file or folder"),
        ({"settings": {"batch_size": "8"}}, "settings.batch_size is '8'; accepted: a whole number"),
        ({"settings": {"form": "max"}}, "unknown form 'max'; known: min, printed"),
        ({"settings": {"size": 8}}, "settings has an entry 'size'; accepted: batch_size, rounds"),
        ({"finetune": {"epochs": 1, "mode": "all"}}, "finetune.mode is 'all'; accepted: stitches, full"),
        ({"num_classes": 4}, "train has 3 classes; 4 were expected"),
        ({"blocks": 7}, "has 3 cut points"),
        ({"select": "size"}, "unknown select 'size'"),
    ],
)
def test_wrong_recipes(work: Work, recipe: dict[str, Any], change: dict[str, Any], words: str) -> None:
    path = written(work, {**recipe, **change})
    assert words in work.run("assemble", path).stderr.replace("\n", " ")
    assert work.run("assemble", path).exit_code == 2
    assert not (work.folder / "result").exists()


def test_files_that_are_no_recipes(work: Work) -> None:
    assert "cannot be read" in work.error("assemble", work.folder / "none.yaml")
    (work.folder / "a.yaml").write_text("a: [")
    assert "is no YAML" in work.error("assemble", work.folder / "a.yaml")
    (work.folder / "a.yaml").write_text("- 1")
    assert "the recipe is a list" in work.error("assemble", work.folder / "a.yaml")


def test_a_class_too_many_in_validation(work: Work, recipe: dict[str, Any]) -> None:
    (work.folder / "others" / "yellow").mkdir()
    next((work.folder / "others" / "red").glob("*.png")).rename(work.folder / "others" / "yellow" / "1.png")
    assert "validation has 4 classes; 3 were expected" in work.error("assemble", written(work, recipe))


def test_the_readmes_recipe_is_understood(work: Work) -> None:
    from pyassemble.assemble.plan import FinetunePlan, Plan

    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (work.folder / "recipe.yaml").write_text(readme.split("```yaml\n")[1].split("```")[0])
    plan = Plan.read(work.folder / "recipe.yaml")
    assert [source.name for source in plan.networks] == ["resnet", "mine"]
    assert plan.networks[1].weights == Path("small.safetensors")
    assert plan.finetune == FinetunePlan(10, "stitches")
    assert plan.settings.score_images == 2048
    assert plan.checkpoint_folder == Path("assembled.search")
