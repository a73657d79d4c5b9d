"""Entries: what is counted, what is approximate, and that their text gives them back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from pyassemble.errors import EmptyNetworkError, UnsupportedNetworkError, WeightsFileError
from pyassemble.network.layers import Element, LayerSequence
from pyassemble.network.standardize import standardize
from pyassemble.zoo.entry import Entry
from pyassemble.zoo.records import from_text, to_text

if TYPE_CHECKING:
    from pathlib import Path


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 5)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(5)


class TestOf:
    @pytest.mark.parametrize("form", ["module", "state_dict"])
    def test_tied_parameters_count_once(self, form: str) -> None:
        network = Tied()
        entry = Entry.of("tied", network if form == "module" else network.state_dict(), license="mit", weights="here")
        assert entry.parameters == 20 + 5 + 5 + 5 + 5
        assert (entry.license, entry.weights) == ("mit", "here")
        assert entry.approximate == (form == "state_dict")

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_files(self, tmp_path: Path, suffix: str) -> None:
        network = timm.create_model("resnet10t")
        path = tmp_path / f"net{suffix}"
        (save_file if suffix == ".safetensors" else torch.save)(network.state_dict(), path)
        entry = Entry.of("net", path)
        assert entry == Entry("net", standardize(path), sum(p.numel() for p in network.parameters()), None, str(path))
        assert entry.approximate

    def test_config_beside_a_file(self, tmp_path: Path) -> None:
        network = timm.create_model("resnet10t", num_classes=3, in_chans=1)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        config = {"architecture": "resnet10t", "num_classes": 3, "model_args": {"in_chans": 1}}
        (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": {"license": "mit"}}))
        entry = Entry.of("net", tmp_path / "model.safetensors")
        assert (entry.layers, entry.approximate, entry.license) == (standardize(network), False, "mit")

    def test_config_of_another_network(self, tmp_path: Path) -> None:
        save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
        assert Entry.of("net", tmp_path / "model.safetensors").approximate

    @pytest.mark.parametrize("network", [nn.ReLU(), nn.Sequential(), {"scale": torch.ones(3)}, {}])
    def test_nothing_to_score(self, network: nn.Module | dict[str, torch.Tensor]) -> None:
        with pytest.raises(EmptyNetworkError, match="'nothing' has no layer that could be scored"):
            Entry.of("nothing", network)

    def test_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedNetworkError):
            Entry.of("x", 3)  # type: ignore[arg-type]
        with pytest.raises(WeightsFileError, match="no such file"):
            Entry.of("x", tmp_path / "none.safetensors")


names = st.text(max_size=8)
sizes = st.lists(st.integers(0, 2**63 - 1), max_size=5).map(tuple)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    rows = draw(st.lists(st.tuples(names, st.none() | names, sizes), max_size=5))
    elements = draw(st.lists(st.builds(Element, st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=4))
    columns = tuple(zip(*rows, strict=True)) if rows else ((), (), ())
    layers = LayerSequence(*columns, tuple(elements), draw(st.booleans()))
    return Entry(draw(names), layers, draw(st.integers(0, 2**70)), draw(st.none() | names), draw(st.none() | names))


class TestRecords:
    @given(entries())
    def test_round_trip(self, entry: Entry) -> None:
        text = to_text(entry)
        assert text.isascii()
        assert "\n" not in text
        again = from_text(text)
        assert again == entry
        assert repr(again) == repr(entry)

    @pytest.mark.parametrize("text", ["", "3", "[]", "{}", '{"names": 3}', "[" * 100_000])
    def test_not_a_record(self, text: str) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - whatever json says
            from_text(text)

    def test_columns_of_different_lengths(self) -> None:
        record = json.loads(to_text(Entry.of("x", nn.Linear(2, 3))))
        with pytest.raises(ValueError, match="different lengths"):
            from_text(json.dumps(record | {"kinds": []}))
