"""A zoo: what it holds, and that it says of its networks what every pair by itself says."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save_file
from torch import nn

import pyassemble as pa
from pyassemble.zoo import Entry
from tests.networks import build
from tests.zoo.sequences import networks, sequence_of, spelled_out, zoo_of

if TYPE_CHECKING:
    from pathlib import Path

    from pyassemble.network.layers import LayerSequence

ARCHITECTURES = (
    "timm:resnet10t",
    "timm:vit_tiny_patch16_224",
    "timm:mobilenetv3_small_050",
    "timm:densenet121",
    "torchvision:squeezenet1_0",
    "torchvision:googlenet",
    "torchvision:swin_t",
)


def small_zoo() -> pa.Zoo:
    zoo = pa.Zoo()
    zoo.add("conv", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), license="mit", weights="https://example.org/conv")
    zoo.add("linear", nn.Linear(4, 2))
    zoo.add("both", nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 2)))
    return zoo


def test_what_it_holds() -> None:
    zoo = small_zoo()
    assert zoo.names == ["conv", "linear", "both"]
    assert len(zoo) == 3
    assert "linear" in zoo
    assert "other" not in zoo
    assert 3 not in zoo
    record = zoo["conv"]
    assert (record.name, record.parameters, record.license) == ("conv", 8 * 27 + 8, "mit")
    assert record.weights == "https://example.org/conv"
    assert not record.approximate
    assert zoo["linear"].license is None
    assert repr(zoo) == "<Zoo of 3 networks: 3 distinct layers in 0 distinct blocks>"
    with pytest.raises(KeyError):
        zoo["other"]


def test_of_entries_with_versions() -> None:
    zoo = pa.Zoo.of([Entry.of("a", nn.Linear(1, 2))], {"timm": "1.0"})
    assert zoo.libraries == {"timm": "1.0"}
    zoo.libraries["timm"] = "2.0"
    assert zoo.libraries == {"timm": "1.0"}


def test_state_dicts_and_files_are_added_too(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    save_file(network.state_dict(), tmp_path / "network.safetensors")
    zoo = pa.Zoo()
    zoo.add("module", network)
    zoo.add("state", network.state_dict())
    zoo.add("file", tmp_path / "network.safetensors")
    assert [zoo[name].approximate for name in zoo.names] == [False, True, True]
    assert zoo["file"].weights == str(tmp_path / "network.safetensors")
    assert (zoo.similarity_matrix() == 1.0).all()


def test_duplicate_names() -> None:
    zoo = small_zoo()
    before = spelled_out(zoo._index.tables)
    with pytest.raises(pa.DuplicateNameError, match="given more than once: 'linear'"):
        zoo.add("linear", nn.Conv2d(1, 1, 1))
    with pytest.raises(pa.DuplicateNameError, match="'a'"):
        pa.Zoo.of([Entry.of("a", nn.Linear(1, 2)), Entry.of("a", nn.Linear(1, 2))])
    assert zoo.names == ["conv", "linear", "both"]
    assert spelled_out(zoo._index.tables) == before


def test_networks_that_cannot_be_added_leave_no_trace() -> None:
    zoo = small_zoo()
    with pytest.raises(pa.EmptyNetworkError):
        zoo.add("empty", nn.ReLU())
    with pytest.raises(pa.UnsupportedNetworkError):
        zoo.add("lazy", nn.LazyLinear(3))
    assert zoo.names == ["conv", "linear", "both"]
    assert zoo.similarity_matrix().shape == (3, 3)


def test_select() -> None:
    zoo = small_zoo()
    chosen = zoo.select(["both", "conv"])
    assert chosen.names == ["both", "conv"]
    assert chosen["conv"] == zoo["conv"]
    order = [2, 0]
    assert np.array_equal(chosen.similarity_matrix(), zoo.similarity_matrix()[np.ix_(order, order)])
    chosen.add("new", nn.Linear(1, 1))
    assert "new" not in zoo
    assert len(zoo.select([])) == 0
    with pytest.raises(KeyError, match="other"):
        zoo.select(["conv", "other"])
    with pytest.raises(pa.DuplicateNameError, match="given more than once: 'conv'"):
        zoo.select(["conv", "both", "conv"])


@given(networks(min_size=1))
@settings(max_examples=50)
def test_matrix_is_that_of_single_pairs(sequences: list[LayerSequence]) -> None:
    from pyassemble.network.backend import backend, sequence

    matrix = zoo_of(sequences).similarity_matrix(workers=1)
    for i, target in enumerate(map(sequence, sequences)):
        for j, source in enumerate(map(sequence, sequences)):
            score = backend().score(source, target)
            assert matrix[i, j] == (score / target.num_scored if target.num_scored else 0.0)


def test_matrix_of_real_architectures() -> None:
    modules = {name: build(name, meta=True) for name in ARCHITECTURES}
    zoo = pa.Zoo()
    for name, module in modules.items():
        zoo.add(name, module)
    matrix = zoo.similarity_matrix()
    expected = [[pa.similarity(s, t, directed=True) for s in modules.values()] for t in modules.values()]
    assert matrix.tolist() == expected
    assert (np.diag(matrix) == 1.0).all()
    symmetric = [[pa.similarity(s, t) for s in modules.values()] for t in modules.values()]
    np.testing.assert_allclose(np.sqrt(matrix * matrix.T), symmetric, rtol=1e-15)


def test_an_empty_tensor_does_not_count() -> None:
    with pytest.warns(UserWarning, match="Initializing zero-element tensors"):
        network = nn.Sequential(nn.Linear(0, 8), nn.Linear(8, 4))
    zoo = pa.Zoo()
    zoo.add("a", network)
    assert zoo.similarity_matrix().tolist() == [[1.0]]
    assert pa.similarity(network, network, directed=True) == 1.0
    assert zoo.nearest(network) == [("a", 1.0)]


@given(networks())
@settings(max_examples=25)
def test_saved_and_loaded(tmp_path_factory: pytest.TempPathFactory, sequences: list[LayerSequence]) -> None:
    path = tmp_path_factory.mktemp("zoo") / "index.npz"
    zoo = zoo_of(sequences)
    zoo.save(path)
    loaded = pa.Zoo.load(path)
    assert loaded.names == zoo.names
    assert [loaded[name] for name in loaded.names] == [zoo[name] for name in zoo.names]
    assert loaded.similarity_matrix(workers=1).tobytes() == zoo.similarity_matrix(workers=1).tobytes()
    assert spelled_out(loaded._index.tables) == spelled_out(zoo._index.tables)


def test_a_loaded_zoo_grows(tmp_path: Path) -> None:
    small_zoo().save(tmp_path / "index.npz")
    loaded, zoo = pa.Zoo.load(tmp_path / "index.npz"), small_zoo()
    for grown in (loaded, zoo):
        grown.nearest(nn.Linear(3, 3))
        grown.add("more", nn.Sequential(nn.Linear(4, 2), nn.Conv2d(3, 8, 3)))
    with pytest.raises(pa.DuplicateNameError):
        loaded.add("conv", nn.Linear(1, 1))
    assert loaded.similarity_matrix().tobytes() == zoo.similarity_matrix().tobytes()
    loaded.save(tmp_path / "index.npz")
    assert pa.Zoo.load(tmp_path / "index.npz").names == [*small_zoo().names, "more"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda zoo: pickle.loads(pickle.dumps(zoo))])
def test_copies_are_independent(duplicate: object) -> None:
    zoo = small_zoo()
    expected = zoo.nearest(nn.Linear(3, 3))  # it has an engine now, which cannot be copied
    twin = duplicate(zoo)  # type: ignore[operator]
    assert twin.nearest(nn.Linear(3, 3)) == expected
    twin.add("more", nn.Linear(3, 3))
    assert len(zoo) == 3
    assert twin.nearest(nn.Linear(3, 3), 1) == [("more", 1.0)]
    assert zoo.nearest(nn.Linear(3, 3)) == expected


def test_meta_modules_need_no_memory() -> None:
    with torch.device("meta"):
        network = nn.Linear(1 << 20, 1 << 20)
    zoo = pa.Zoo()
    zoo.add("large", network)
    assert zoo["large"].parameters == (1 << 40) + (1 << 20)


def test_layers_that_repeat_take_no_room() -> None:
    block = [("Conv2d", (64, 64, 3, 3)), ("BatchNorm2d", (64,)), (None, ())]
    zoo = zoo_of([sequence_of([block] * n) for n in range(1, 50)])
    assert repr(zoo) == "<Zoo of 49 networks: 2 distinct layers in 1 distinct blocks>"
