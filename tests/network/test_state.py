from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyassemble as pa
from pyassemble.errors import UnsupportedNetworkError
from pyassemble.network import standardize
from pyassemble.network.state import natural_key
from tests.networks import build

if TYPE_CHECKING:
    from pathlib import Path


def test_natural_order_compares_numbers_by_value() -> None:
    names = ["layer10.conv", "layer2.conv", "layer2.bn", "a", "layer2"]
    assert sorted(names, key=natural_key) == ["a", "layer2", "layer2.bn", "layer2.conv", "layer10.conv"]


def test_a_state_dict_in_definition_order_aligns_as_its_module() -> None:
    network = build("timm:resnet18", meta=True)
    by_module, by_state = standardize(network), standardize(network.state_dict())
    assert by_state.approximate
    assert not by_module.approximate
    scored = [layer for layer in by_module.layers if layer.kind]
    assert [layer for layer in by_state.layers if layer.kind] == scored
    assert pa.similarity(network.state_dict(), network) > 0.95


def test_a_sorted_header_puts_norms_behind_their_convolutions(tmp_path: Path) -> None:
    network = build("timm:resnet18")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    names = [layer.name for layer in standardize(tmp_path / "weights.safetensors").layers]
    assert names[:6] == ["conv1", "bn1", "fc", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2"]
    alignment = pa.align(tmp_path / "weights.safetensors", network)
    assert alignment.approximate
    assert sum(s == t for s, t in alignment.pairs) >= 40  # all but the classifier, which sorts before the stages


def test_a_config_that_names_the_architecture_makes_it_exact(tmp_path: Path) -> None:
    network = build("timm:resnet18")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 10}))
    alignment = pa.align(tmp_path / "model.safetensors", network)
    assert not alignment.approximate
    assert alignment.directed == 1.0
    # A config that lies about the tensors is not believed.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet34", "num_classes": 10}))
    assert pa.align(tmp_path / "model.safetensors", network).approximate


def test_graph_standardization_of_a_state_dict_scores_every_tensor() -> None:
    network = build("timm:vit_tiny_patch16_224", meta=True)
    sequence = standardize(network.state_dict(), "graph")
    assert len(sequence.layers) == len(standardize(network, "graph").layers)
    assert pa.similarity(network.state_dict(), network, standardization="graph") > 0.9


def test_a_sorted_state_dict_is_not_taken_for_definition_order(tmp_path: Path) -> None:
    network = build("timm:resnet18")
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_file(tmp_path / "weights.safetensors")
    torch.save(loaded, tmp_path / "weights.pt")
    for sorted_state in (loaded, tmp_path / "weights.pt"):
        assert standardize(sorted_state).layers == standardize(tmp_path / "weights.safetensors").layers


@pytest.mark.parametrize("state", [{"a": 3}, {1: torch.zeros(2)}])
def test_what_is_not_a_state_dict_is_refused(state: dict) -> None:
    with pytest.raises(UnsupportedNetworkError, match="maps names to tensors"):
        standardize(state)
