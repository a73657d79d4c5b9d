"""Assemblies as folders: the same bits without the sources, and the words in which other folders are refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import pyassemble as pa
from pyassemble.network.sources import load_network
from tests.assemble.test_assembly import COMPOSITIONS, MIXED
from tests.networks import scramble

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FACTORY = """
from tests.assemble.channels_last import ChannelsLast

def network():
    return ChannelsLast()
"""


@pytest.fixture(scope="module")
def assembly(repository: pa.Repository) -> pa.Assembly:
    assembly = pa.Assembly.compose(repository, MIXED, 5, seed=1)
    assembly.history = [{"epoch": 0, "accuracy": 0.25}, {"epoch": 1, "accuracy": 0.75, "note": "last"}]
    return assembly


@pytest.fixture
def folder(assembly: pa.Assembly, tmp_path: Path) -> Path:
    assembly.save(tmp_path / "made")
    return tmp_path / "made"


@pytest.mark.parametrize("blocks", COMPOSITIONS[:1] + COMPOSITIONS[3:])
def test_loaded_it_computes_the_same_bits(
    repository: pa.Repository, images: torch.Tensor, tmp_path: Path, blocks: list[tuple[str, int, int]]
) -> None:
    assembly = pa.Assembly.compose(repository, blocks, 5, seed=2)
    scramble(assembly.stitches)
    assembly.save(tmp_path / "made")
    before = torch.get_rng_state()
    loaded = pa.Assembly.load(tmp_path / "made")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.recipe == assembly.recipe
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), assembly(images))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made"]  # nothing temporary is left


def test_in_another_process(assembly: pa.Assembly, folder: Path, images: torch.Tensor, tmp_path: Path) -> None:
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, pyassemble as pa\n"
        "torch.set_num_threads(int(sys.argv[3]))\n"
        "with torch.no_grad():\n"
        "    classes = pa.Assembly.load(sys.argv[1])(torch.load(sys.argv[2] + '/images.pt'))\n"
        "torch.save(classes, sys.argv[2] + '/out.pt')\n"
    )
    arguments = [str(folder), str(tmp_path), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "out.pt"), assembly(images).detach())


def test_history_and_training_of_blocks_are_kept(
    repository: pa.Repository, images: torch.Tensor, tmp_path: Path
) -> None:
    assembly = pa.Assembly.compose(repository, [("resnet", 0, 1), ("mobile", 6, 10)], 5).train_blocks().train()
    optimizer = torch.optim.SGD(assembly.parameters(), lr=0.01)
    assembly(images).square().mean().backward()
    optimizer.step()
    assembly.eval().history = [{"epoch": 0, "loss": 0.5}]
    assembly.save(tmp_path / "made")
    loaded = pa.Assembly.load(tmp_path / "made")
    assert loaded.blocks_trained
    assert loaded.history == assembly.history
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(images), assembly(images))


def test_a_factor_folded_into_a_continuation_is_kept(
    repository: pa.Repository, images: torch.Tensor, tmp_path: Path
) -> None:
    assembly = pa.Assembly.compose(repository, [("resnet", 0, 1), ("resnet", 2, 4)], 5)
    assembly.stitches[1].scale_(0.5)
    assembly.save(tmp_path / "made")
    assert torch.equal(pa.Assembly.load(tmp_path / "made")(images), assembly(images))


def test_a_folder_is_a_network_by_name(assembly: pa.Assembly, folder: Path, images: torch.Tensor) -> None:
    network = load_network(str(folder))
    assert isinstance(network, pa.Assembly)
    assert network.training
    assert torch.equal(network.eval()(images), assembly(images))
    assert pa.similarity(network, assembly) == 1


def test_the_card_names_sources_licenses_and_figures(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert "license: other" in header.splitlines()
    for words in (
        "`timm:resnet10t` | apache-2.0",
        "`torchvision:resnet18` | unknown",
        "| accuracy | 0.75 |",
        "img_size",
    ):
        assert words in body


def test_saving_again_replaces_the_folder(repository: pa.Repository, folder: Path, images: torch.Tensor) -> None:
    other = pa.Assembly.compose(repository, [("resnet", 0, 4)], 3)
    other.save(folder)
    assert torch.equal(pa.Assembly.load(folder)(images), other(images))
    assert [file.name for file in folder.parent.iterdir()] == ["made"]


class TestHub:
    class Api:
        """Stands for the Hub: keeps what is uploaded."""

        endpoint = "https://hub.test"
        calls: list[tuple[str, Any]]

        def __init__(self, token: str | None = None, library_name: str | None = None) -> None:
            self.token = token
            type(self).calls = [("token", token)]

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
            self.calls.append(("create", (repo_id, private, exist_ok)))

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            assembly = pa.Assembly.load(folder_path)
            names = sorted(file.name for file in folder_path.iterdir())
            self.calls.append(("upload", (repo_id, names, commit_message, assembly.recipe)))

    def test_uploads_what_save_writes(self, assembly: pa.Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.HfApi", self.Api)
        address = assembly.push_to_hub("org/name", private=True, token="t", message="first")
        assert address == "https://hub.test/org/name"
        names = ["README.md", "model.safetensors", "recipe.json"]
        assert self.Api.calls == [
            ("token", "t"),
            ("create", ("org/name", True, True)),
            ("upload", ("org/name", names, "first", assembly.recipe)),
        ]

    def test_what_is_there_is_loaded(
        self, repository: pa.Repository, images: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = pa.Assembly.compose(repository, [("resnet", 0, 1), ("mobile", 6, 10)], 5)
        made.save(tmp_path / "hub")

        def download(repo_id: str, *, allow_patterns: list[str]) -> str:
            assert (repo_id, allow_patterns) == ("org/name", ["recipe.json", "model.safetensors"])
            return str(tmp_path / "hub")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        assert torch.equal(pa.Assembly.load("hf-hub:org/name")(images), made(images))

    def test_code_that_a_recipe_from_there_names_is_not_run(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
        with pytest.raises(pa.RecipeError, match=r"builds network 'last' from .*only architectures of timm and"):
            pa.Assembly.load("hf-hub:org/name")

    def test_a_hub_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*_: object, **__: object) -> str:
            raise ConnectionError("no route\nat all")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        with pytest.raises(pa.HubError, match=r"^Hub repository 'org/name' cannot be read: no route$"):
            pa.Assembly.load("hf-hub:org/name")

    def test_the_signatures_are_the_librarys(self) -> None:
        import inspect

        from huggingface_hub import HfApi

        for method in ("__init__", "create_repo", "upload_folder"):
            theirs = inspect.signature(getattr(HfApi, method)).parameters
            assert set(inspect.signature(getattr(self.Api, method)).parameters) <= set(theirs)

    def test_a_hub_that_refuses(self, assembly: pa.Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
        class Refusing(self.Api):
            def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
                raise ConnectionError("no route\nand much more")

        monkeypatch.setattr("huggingface_hub.HfApi", Refusing)
        with pytest.raises(pa.HubError, match=r"^Hub repository 'org/name' cannot be written: no route$"):
            assembly.push_to_hub("org/name")


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "recipe.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


class TestRefused:
    def test_saving_what_cannot_be_built_again(self, images: torch.Tensor, tmp_path: Path) -> None:
        class Mine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
                self.stem, self.head = nn.Conv2d(3, 3, 3), nn.Linear(4, 2)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(self.block(self.stem(x)).mean((2, 3)))

        assembly = pa.Assembly.compose(pa.Repository({"mine": Mine()}, images), [("mine", 0, 0)], 2)
        with pytest.raises(pa.RecipeError, match=r"network 'mine' cannot be built again .*sources=\{'mine': 'path"):
            assembly.save(tmp_path / "made")
        assert not list(tmp_path.iterdir())

    def test_saving_over_something_else(self, assembly: pa.Assembly, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
        with pytest.raises(pa.WeightsFileError, match="photos holds something other than an assembly"):
            assembly.save(tmp_path / "photos")
        with pytest.raises(pa.WeightsFileError, match=r"cat\.png is no folder"):
            assembly.save(tmp_path / "photos" / "cat.png")
        with pytest.raises(pa.WeightsFileError, match="nowhere does not exist"):
            assembly.save(tmp_path / "nowhere" / "made")
        assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"

    def test_a_failure_while_saving_leaves_the_old(
        self, assembly: pa.Assembly, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        monkeypatch.setattr(assembly, "history", [{"loss": float("nan")}])
        with pytest.raises(pa.RecipeError, match="the assembly's history does not fit into JSON"):
            assembly.save(folder)
        assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()} == before
        assert [file.name for file in folder.parent.iterdir()] == ["made"]

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda c: c.update(kind="cake"), r"recipe\.json is not the recipe of an assembly"),
            (lambda c: c.update(version=9), "is of version 9; this pyassemble reads version 1"),
            (lambda c: c.pop("history"), "has no proper entry 'history'"),
            (lambda c: c["recipe"].pop("blocks"), "recipe lacks 'blocks'; its entries are input_shape, num_classes"),
            (lambda c: c["recipe"].update(colour=1), "recipe has an unknown entry 'colour'"),
            (lambda c: c["recipe"].update(num_classes="5"), r"recipe\.num_classes is '5'; int was expected"),
            (lambda c: c["recipe"]["blocks"][1].update(first=None), r"recipe\.blocks\[1\]\.first is None; int"),
            (lambda c: c["recipe"]["input_shape"].update(kind="sound"), r"recipe\.input_shape has kind 'sound'"),
            (lambda c: c["recipe"]["input_shape"].update(height=0), "sizes of at least 1 were expected"),
            (
                lambda c: c["recipe"]["stitches"][1].update(kind="glue"),
                r"stitches\[1\]\.kind is 'glue'; known are stitch",
            ),
            (lambda c: c["recipe"]["stitches"].pop(), "recipe has 4 blocks and 3 stitches; one before each"),
            (
                lambda c: c["recipe"]["sources"].pop(0),
                "recipe names no source for network 'resnet'; it has last, vision",
            ),
            (lambda c: c["recipe"]["sources"][0].update(spec=None), "does not say what network 'resnet' is built from"),
            (
                lambda c: c["recipe"]["sources"][0].update(spec="timm:resnet1t"),
                "network 'resnet' cannot be built: network 'timm:resnet1t': timm knows no 'resnet1t'",
            ),
            (
                lambda c: c["recipe"]["sources"][0].update(spec="timm:resnet18"),
                r"network 'resnet' has changed: the recipe's segments 0 to 1 end with conv1, layer1\.0, the network's "
                r"with layer1\.0, layer1\.1",
            ),
            (lambda c: c["recipe"]["sources"][0].update(spec="gone.py:network"), "no such file: gone.py"),
        ],
    )
    def test_loading_another_recipe(self, folder: Path, edit: Callable[[dict[str, Any]], object], words: str) -> None:
        edited(folder, edit)
        with pytest.raises(pa.RecipeError, match=words):
            pa.Assembly.load(folder)

    def test_a_file_of_code_that_has_changed(self, images: torch.Tensor, tmp_path: Path) -> None:
        file = tmp_path / "nets.py"
        file.write_text(FACTORY)
        repository = pa.Repository([f"{file}:network"], images)
        assembly = pa.Assembly.compose(repository, [(f"{file}:network", 0, 2)], 4)
        assembly.save(tmp_path / "made")
        assert torch.equal(pa.Assembly.load(tmp_path / "made")(images), assembly(images))
        file.write_text(FACTORY + "\nmore = 1\n")
        with pytest.raises(pa.RecipeError, match=r"has changed: .*nets\.py is not the file it was built from"):
            pa.Assembly.load(tmp_path / "made")

    def test_weights_of_another_assembly(self, folder: Path, repository: pa.Repository, tmp_path: Path) -> None:
        pa.Assembly.compose(repository, MIXED, 5, seed=8).save(tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
        with pytest.raises(pa.WeightsFileError, match=r"model\.safetensors is not the file that was saved with"):
            pa.Assembly.load(folder)

    def test_files_that_are_missing_or_cut_short(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(pa.RecipeError, match=r"nothing holds no recipe\.json"):
            pa.Assembly.load(tmp_path / "nothing")
        (folder / "model.safetensors").rename(tmp_path / "kept")
        with pytest.raises(pa.WeightsFileError, match=r"model\.safetensors does not exist"):
            pa.Assembly.load(folder)
        text = (folder / "recipe.json").read_text()
        (folder / "recipe.json").write_text(text[:100])
        with pytest.raises(pa.RecipeError, match=r"recipe\.json is not readable as JSON"):
            pa.Assembly.load(folder)
