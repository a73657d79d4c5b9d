"""Networks by name: every accepted form, and the words in which the others are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from pyassemble.errors import NetworkSpecError, WeightsFileError
from pyassemble.network.sources import NetworkSpec, SpecKind, load_network

FACTORY = """
from __future__ import annotations
import sys
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Width:
    value: int = 4

def build():
    return nn.Sequential(nn.Conv2d(3, Width().value, 3), nn.BatchNorm2d(4), nn.ReLU())

def needs_numbers():
    torch.linspace(0, 1, 3)[1].item()
    return build()

def failing():
    raise ValueError("no such width\\nand more lines")

def leaving():
    sys.exit(3)

def wrong():
    return [1, 2]

def takes_arguments(width):
    return build()

constant = 3
"""


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    path = tmp_path / "my nets" / "model.py"
    path.parent.mkdir()
    path.write_text(FACTORY)
    return path


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    network = timm.create_model("resnet10t", num_classes=7)
    (folder / "config.json").write_text(
        json.dumps({"architecture": "resnet10t", "num_classes": 7, "num_features": 512, "pretrained_cfg": {}})
    )
    save_file(network.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class TestParse:
    @pytest.mark.parametrize(
        ("text", "kind", "name"),
        [
            ("timm:resnet18.a1_in1k", SpecKind.TIMM, "resnet18.a1_in1k"),
            ("torchvision:resnet18", SpecKind.TORCHVISION, "resnet18"),
            ("hf-hub:timm/resnet18@main", SpecKind.HUB, "timm/resnet18@main"),
        ],
    )
    def test_library(self, text: str, kind: SpecKind, name: str) -> None:
        assert NetworkSpec.parse(text) == NetworkSpec(text, kind, name, None)

    def test_paths(self, factory_file: Path, tmp_path: Path) -> None:
        assert NetworkSpec.parse(f"{factory_file}:build").kind is SpecKind.FACTORY
        assert NetworkSpec.parse(str(tmp_path)).kind is SpecKind.FOLDER
        weights = NetworkSpec.parse("w.safetensors")
        assert (weights.kind, weights.path, weights.holds_weights) == (SpecKind.WEIGHTS, Path("w.safetensors"), True)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("resnet18", r"'resnet18' is not understood \(timm:resnet18\?\); accepted: timm:NAME"),
            ("", "'' is not understood; accepted"),
            ("keras:resnet18", "accepted: timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, a folder"),
            ("timm:", "'timm:' names no network"),
            ("model.py", r"which function\? model\.py:FUNCTION"),
            ("none/model.py:build", "no such file: none/model.py"),
            ("none/", "no such folder"),
        ],
    )
    def test_refused(self, text: str, words: str) -> None:
        with pytest.raises(NetworkSpecError, match=words):
            NetworkSpec.parse(text)

    def test_factory_name(self, factory_file: Path) -> None:
        with pytest.raises(NetworkSpecError, match=r"'build\(\)' is not a function's name"):
            NetworkSpec.parse(f"{factory_file}:build()")


class TestLibraries:
    @pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:squeezenet1_1"])
    def test_builds(self, spec: str) -> None:
        assert not any(p.is_meta for p in load_network(spec).parameters())
        assert all(p.is_meta for p in load_network(spec, meta=True).parameters())

    @pytest.mark.parametrize(
        ("spec", "words"),
        [
            ("timm:resnet-18", "timm knows no 'resnet-18'; close: .*resnet18"),
            ("timm:resnet1O1.tv_in1k", "close: .*resnet101"),
            ("timm:@@@@", r"timm knows no '@@@@'; timm\.list_models\(\)"),
            ("timm:resnet18.nope", r"timm failed: RuntimeError: Invalid pretrained tag \(nope\)"),
            ("torchvision:resnet1", "torchvision knows no 'resnet1'; close: resnet"),
            ("torchvision:@@@@", r"torchvision\.models\.list_models"),
        ],
    )
    def test_unknown(self, spec: str, words: str) -> None:
        with pytest.raises(NetworkSpecError, match=words):
            load_network(spec)

    def test_no_download_that_was_not_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object, **kwargs: object) -> None:
            raise AssertionError("download")

        monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
        load_network("torchvision:lraspp_mobilenet_v3_large", meta=True)

    def test_announcements_are_silent(self) -> None:
        load_network("torchvision:googlenet", meta=True)

    @pytest.mark.usefixtures("_offline")
    @pytest.mark.parametrize(
        ("spec", "pretrained"), [("hf-hub:nobody/nothing", False), ("timm:resnet18.a1_in1k", True)]
    )
    def test_out_of_reach(self, spec: str, pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(NetworkSpecError, match=f"network '{spec}': timm failed: ") as caught:
            load_network(spec, pretrained=pretrained)
        assert "\n" not in str(caught.value)

    def test_nothing_published(self) -> None:
        with pytest.raises(NetworkSpecError, match="timm failed: RuntimeError: No pretrained weights"):
            load_network("timm:resnet200", pretrained=True)


class TestFolder:
    def test_with_its_weights(self, hub_folder: Path) -> None:
        from safetensors.torch import load_file

        network = load_network(str(hub_folder))
        saved = load_file(hub_folder / "model.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())

    def test_meta(self, hub_folder: Path) -> None:
        (hub_folder / "model.safetensors").unlink()
        assert load_network(str(hub_folder), meta=True).state_dict()["fc.weight"].shape == (7, 512)

    def test_other_weights(self, hub_folder: Path) -> None:
        (hub_folder / "model.safetensors").rename(hub_folder / "other.safetensors")
        load_network(str(hub_folder), weights=hub_folder / "other.safetensors")
        with pytest.raises(WeightsFileError, match=r"model\.safetensors: no such file"):
            load_network(str(hub_folder))

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("readme", "", r"holds neither config\.json nor recipe\.json"),
            ("recipe.json", "{}", r"recipe\.json is of kind None; known are assembly"),
            ("config.json", "{", r"config\.json is not readable as JSON"),
            ("config.json", "[]", 'has no entry "architecture"'),
            ("config.json", '{"architectures": ["Bert"]}', 'has no entry "architecture"'),
            ("config.json", '{"architecture": "resnet1t"}', "timm knows no 'resnet1t'; close: resnet"),
        ],
    )
    def test_refused(self, tmp_path: Path, name: str, content: str, words: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(NetworkSpecError, match=words):
            load_network(str(tmp_path))


class TestFactory:
    def test_builds(self, factory_file: Path) -> None:
        assert isinstance(load_network(f"{factory_file}:build"), nn.Sequential)

    def test_meta_where_possible(self, factory_file: Path) -> None:
        assert load_network(f"{factory_file}:build", meta=True)[0].weight.is_meta  # type: ignore[index]
        assert not load_network(f"{factory_file}:needs_numbers", meta=True)[0].weight.is_meta  # type: ignore[index]

    def test_imports_its_neighbours(self, factory_file: Path) -> None:
        (factory_file.parent / "neighbour_of_model.py").write_text(
            "from torch import nn\ndef f(): return nn.Linear(2, 2)"
        )
        factory_file.write_text("from neighbour_of_model import f")
        before = list(sys.path)
        assert isinstance(load_network(f"{factory_file}:f"), nn.Linear)
        assert sys.path == before

    def test_two_files_of_one_name(self, factory_file: Path, tmp_path: Path) -> None:
        other = tmp_path / "model.py"
        other.write_text("from torch import nn\ndef build(): return nn.Linear(2, 2)")
        assert isinstance(load_network(f"{other}:build"), nn.Linear)
        assert isinstance(load_network(f"{factory_file}:build"), nn.Sequential)

    @pytest.mark.parametrize(
        ("factory", "words"),
        [
            ("failing", r"failing\(\) in .*model\.py failed: ValueError: no such width$"),
            ("leaving", r"network '.*model\.py:leaving': leaving\(\) in .*model\.py failed: SystemExit: 3$"),
            ("wrong", r"wrong\(\) in .*model\.py returned a list; a torch\.nn\.Module was expected"),
            ("takes_arguments", "failed: TypeError: .*missing 1 required positional argument: 'width'"),
            ("constant", "'constant' in .*model.py is a int; a function was expected"),
            ("biuld", "defines no 'biuld'; close: build"),
        ],
    )
    def test_refused(self, factory_file: Path, factory: str, words: str) -> None:
        with pytest.raises(NetworkSpecError, match=words):
            load_network(f"{factory_file}:{factory}")

    def test_file_that_cannot_be_imported(self, factory_file: Path) -> None:
        for text, words in [
            ("import torch_no", "ModuleNotFoundError: No module named 'torch_no'"),
            ("def", "Syntax"),
            ("raise SystemExit(3)", "SystemExit: 3"),
        ]:
            factory_file.write_text(text)
            with pytest.raises(NetworkSpecError, match=rf"model\.py:build': importing .*model\.py failed: {words}"):
                load_network(f"{factory_file}:build")


class TestWeights:
    def test_strict(self, factory_file: Path, tmp_path: Path) -> None:
        network = load_network(f"{factory_file}:build")
        torch.save({"state_dict": network.state_dict()}, tmp_path / "w.pth")
        loaded = load_network(f"{factory_file}:build", weights=tmp_path / "w.pth")
        assert torch.equal(loaded[0].weight, network[0].weight)  # type: ignore[index]
        torch.save({"0.weight": torch.ones(1)}, tmp_path / "w.pth")
        with pytest.raises(WeightsFileError, match=r"not fit the network: '0\.bias' \(4,\) \(and 4 more\) missing"):
            load_network(f"{factory_file}:build", weights=tmp_path / "w.pth")

    def test_not_a_network(self) -> None:
        with pytest.raises(NetworkSpecError, match="can only be a source"):
            load_network("w.safetensors")

    def test_exclusive(self) -> None:
        with pytest.raises(NetworkSpecError, match="exclude each other"):
            load_network("timm:resnet18", weights="w.safetensors", pretrained=True)
