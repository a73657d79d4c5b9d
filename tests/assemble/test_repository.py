"""Repositories: networks by name, shared and frozen, and the words in which others are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch
from torch import nn

import pyassemble as pa
from pyassemble.assemble.rebuilding import source_recipe
from tests.assemble import channels_last
from tests.networks import build, same_state, snapshot

if TYPE_CHECKING:
    from pathlib import Path

FACTORY = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
"""


def test_a_network_is_its_segments_and_its_head(repository: pa.Repository, networks: dict[str, nn.Module]) -> None:
    images = torch.randn(2, 3, 64, 64)
    assert repository.names == list(repository) == list(networks)
    assert {name: len(repository[name]) for name in repository} == {
        "resnet": 5, "mobile": 11, "vit": 12, "last": 4, "vision": 8,
    }  # fmt: skip
    for name, network in networks.items():
        parts = repository[name]
        with torch.no_grad():
            assert torch.equal(parts.head(parts.features(images)), network.eval()(images))
        assert len(parts.segments) == len(parts.cut_points) == len(parts.shapes)


def test_the_users_networks_stay_as_they_were() -> None:
    network = build("timm:resnet18").train()
    network.layer1.eval()
    network.conv1.weight.requires_grad_(False)
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    modes = [module.training for module in network.modules()]
    grads = [parameter.requires_grad for parameter in network.parameters()]
    before = snapshot(network)
    repository = pa.Repository({"a": network}, torch.randn(1, 3, 64, 64))
    assembly = pa.Assembly.compose(repository, [("a", 0, 3), ("a", 2, 7)], 4)
    assembly.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == grads
    assert all(parameter.grad is None for parameter in network.parameters())
    assert same_state(network, before)
    assert not calls


def test_assemblies_share_the_networks_memory(repository: pa.Repository, networks: dict[str, nn.Module]) -> None:
    pointers = {parameter.data_ptr() for network in networks.values() for parameter in network.parameters()}
    for blocks in ([("resnet", 0, 1), ("vit", 3, 5)], [("vit", 0, 5), ("resnet", 1, 3)]):
        assembly = pa.Assembly.compose(repository, blocks, 4)
        assert {parameter.data_ptr() for parameter in assembly.blocks.parameters()} <= pointers


def test_from_names_of_sources(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(FACTORY)
    names = ["timm:resnet10t", f"{tmp_path / 'nets.py'}:network"]
    repository = pa.Repository(names, torch.randn(1, 3, 32, 32))
    assert repository.names == names
    assert [len(repository[name]) for name in names] == [5, 2]
    assert [repository.source(name).spec for name in names] == names
    assert repository.source(names[1]).file_hash
    mixed = pa.Repository({"a": "timm:resnet10t", "b": build("timm:resnet18")}, torch.randn(1, 3, 32, 32))
    assert [mixed.source(name).spec for name in mixed] == ["timm:resnet10t", "timm:resnet18"]


class TestSourcesAreFoundOut:
    def test_of_the_shared_networks(self, repository: pa.Repository) -> None:
        found = {name: (repository.source(name).spec, dict(repository.source(name).options)) for name in repository}
        assert found == {
            "resnet": ("timm:resnet10t", {}),
            "mobile": ("timm:mobilenetv3_small_050", {}),
            "vit": ("timm:vit_tiny_patch16_224", {"img_size": (64, 64)}),
            "last": (f"{channels_last.__file__}:network", {}),
            "vision": ("torchvision:resnet18", {}),
        }
        assert repository.source("resnet").license == "apache-2.0"

    def test_with_other_channels_and_dropout(self) -> None:
        network = timm.create_model("resnet10t", in_chans=1, drop_path_rate=0.1, drop_rate=0.2)
        repository = pa.Repository({"a": network}, torch.randn(1, 1, 32, 32))
        assert (repository.source("a").spec, repository.source("a").options) == ("timm:resnet10t", (("in_chans", 1),))

    def test_not_where_the_network_was_changed(self) -> None:
        network = timm.create_model("resnet10t")
        network.layer1[0].act1 = nn.GELU()
        repository = pa.Repository({"a": network}, torch.randn(1, 3, 32, 32))
        assert source_recipe(repository, "a").spec is None

    def test_what_was_said_is_tried(self, tmp_path: Path) -> None:
        (tmp_path / "nets.py").write_text(FACTORY)
        spec = f"{tmp_path / 'nets.py'}:network"
        network = pa.network.sources.load_network(spec)
        images = torch.randn(1, 3, 32, 32)
        assert pa.Repository({"a": network}, images).source("a").spec is None
        assert pa.Repository({"a": network}, images, sources={"a": spec}).source("a").spec == spec


class TestRefused:
    IMAGES = torch.randn(1, 3, 64, 64)

    @pytest.mark.parametrize(
        ("networks", "error", "words"),
        [
            ({}, pa.ArgumentTypeError, "networks is empty; at least one"),
            ("timm:resnet18", pa.ArgumentTypeError, "networks is a str; networks by name"),
            ({"a": 3}, pa.ArgumentTypeError, "network 'a' is a int; a torch.nn.Module or the name of its source"),
            (["timm:resnet10t", "timm:resnet10t"], pa.DuplicateNameError, "more than once: 'timm:resnet10t'"),
            (["timm:resnet1t"], pa.NetworkSpecError, "timm knows no 'resnet1t'"),
            ({"a": nn.Sequential(nn.Conv2d(3, 4, 3))}, pa.CutError, "network 'a': Sequential has no block"),
            ({"a": nn.Sequential(nn.LazyConv2d(4, 3))}, pa.PyAssembleError, "network 'a': "),
        ],
    )
    def test_networks(self, networks: object, error: type[Exception], words: str) -> None:
        with pytest.raises(error, match=words):
            pa.Repository(networks, self.IMAGES)

    def test_untraceable(self) -> None:
        class Branching(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x if x.sum() > 0 else -x

        with pytest.raises(pa.UnsupportedNetworkError, match="network 'b': Branching cannot be traced"):
            pa.Repository({"b": Branching()}, self.IMAGES)

    def test_images_that_a_network_does_not_take(self) -> None:
        with pytest.raises(pa.UnsupportedNetworkError, match=r"network 'a': .* run on images of shape \(1, 64, 64"):
            pa.Repository({"a": build("timm:resnet10t")}, torch.randn(1, 1, 64, 64))
        with pytest.raises(pa.UnsupportedNetworkError, match=r"network 'v': .* images of shape \(3, 64, 64\)"):
            pa.Repository({"v": build("timm:vit_tiny_patch16_224")}, self.IMAGES)

    def test_weights_that_are_no_numbers(self) -> None:
        network = build("timm:resnet10t")
        with torch.no_grad():
            network.layer2[0].conv1.weight[3, 2] = torch.nan
        with pytest.raises(pa.TensorError, match=r"network 'a': tensor 'layer2\.0\.conv1\.weight' of shape \(128, 64"):
            pa.Repository({"a": network}, self.IMAGES)

    def test_an_unknown_name(self, repository: pa.Repository) -> None:
        with pytest.raises(pa.UnknownOptionError, match="unknown network 'alexnet'; known: resnet, mobile, vit, last"):
            repository["alexnet"]
        with pytest.raises(pa.UnknownOptionError, match="unknown network in sources 'b'; known: a"):
            pa.Repository({"a": build("timm:resnet10t")}, self.IMAGES, sources={"b": "timm:resnet10t"})
        with pytest.raises(pa.NetworkSpecError, match=r"no such file: gone\.py"):
            pa.Repository({"a": build("timm:resnet10t")}, self.IMAGES, sources={"a": "gone.py:Net"})


def test_hashes_tell_weights_apart(images: torch.Tensor) -> None:
    network = build("timm:resnet18")
    one, same, other = (pa.Repository({"a": network}, images) for _ in range(3))
    before = one.segment_hashes("a", 0, 7)
    assert same.segment_hashes("a", 2, 3) == before[2:4]
    with torch.no_grad():
        network.layer2[0].conv2.weight[0, 0, 0, 0] += 1
    differing = [old != new for old, new in zip(before, other.segment_hashes("a", 0, 7), strict=True)]
    assert differing == [False] * 2 + [True] + [False] * 5
