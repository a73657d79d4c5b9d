"""Origins: what is listed, by which names, and on what a cached entry depends."""

from __future__ import annotations

import json
import os
import pickle
from typing import TYPE_CHECKING

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pyassemble.errors import NetworkSpecError, WeightsFileError
from pyassemble.network.initialization import SkipInitialization
from pyassemble.network.sources import load_network
from pyassemble.network.standardize import standardize
from pyassemble.zoo.entry import Entry
from pyassemble.zoo.folder import folder_jobs
from pyassemble.zoo.hub import hub_jobs
from pyassemble.zoo.origins import factory_jobs, timm_jobs, torchvision_jobs

if TYPE_CHECKING:
    from pathlib import Path

    from pyassemble.zoo.jobs import FileJob


class TestLibraries:
    def test_timm(self) -> None:
        jobs = timm_jobs()
        assert [job.name for job in jobs] == timm.list_models()
        assert len({job.key for job in jobs}) == len(jobs)
        resnet = next(job for job in jobs if job.name == "resnet50")
        assert (resnet.license, resnet.weights) == ("apache-2.0", "hf-hub:timm/resnet50.a1_in1k")
        assert all(job.license != "unknown" for job in jobs)
        assert {job.weights.partition(":")[0] for job in jobs if job.weights} == {"hf-hub", "https"}

    def test_torchvision(self) -> None:
        jobs = torchvision_jobs()
        assert [job.name for job in jobs] == [f"torchvision:{name}" for name in torchvision.models.list_models()]
        vit = next(job for job in jobs if job.name == "torchvision:vit_h_14")
        assert vit.license is not None
        assert vit.license.endswith("LICENSE")
        assert vit.weights is not None
        assert vit.weights.startswith("https://download.pytorch.org/models/vit_h_14")

    @pytest.mark.parametrize("name", ["resnet18", "fasterrcnn_mobilenet_v3_large_fpn", "googlenet"])
    def test_torchvision_entries(self, name: str) -> None:
        entry = torchvision_jobs(name)[0].build()
        assert entry.layers == standardize(load_network(f"torchvision:{name}", meta=True))

    @pytest.mark.parametrize("jobs", [timm_jobs, torchvision_jobs])
    def test_no_match(self, jobs: type) -> None:
        with pytest.raises(NetworkSpecError, match="has no network whose name matches 'no_such"):
            jobs("no_such*")

    def test_version_is_part_of_the_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = timm_jobs("resnet18")[0].key
        assert timm_jobs("resnet18")[0].key == before
        monkeypatch.setattr("timm.__version__", "9.9")
        after = timm_jobs("resnet18")[0].key
        monkeypatch.setattr("pyassemble.__version__", "9.9")
        assert len({before, after, timm_jobs("resnet18")[0].key}) == 3

    def test_jobs_can_be_pickled(self) -> None:
        jobs = [*timm_jobs("resnet18"), *torchvision_jobs("resnet18"), *hub_jobs(["a/b@c"], token="t")]
        assert pickle.loads(pickle.dumps(jobs)) == jobs

    def test_prefix(self) -> None:
        assert timm_jobs("resnet18", prefix="timm:")[0].name == "timm:resnet18"


class TestInitialization:
    @pytest.mark.parametrize("name", timm.list_models()[5::97])
    def test_skipping_it_changes_no_layer(self, name: str) -> None:
        with torch.device("meta"):
            plain = Entry.of(name, timm.create_model(name))
            with SkipInitialization():
                assert Entry.of(name, timm.create_model(name)) == plain

    def test_numbers_outside_the_meta_device_are_set(self) -> None:
        with SkipInitialization():
            assert torch.equal(torch.empty(3).fill_(2).mul_(2), torch.full((3,), 4.0))

    def test_shapes_that_do_not_fit_are_found(self) -> None:
        with SkipInitialization(), pytest.raises(RuntimeError):
            torch.empty(3, device="meta").add_(torch.empty(4, device="meta"))


class TestFactories:
    def test_name_and_key(self, tmp_path: Path) -> None:
        path = tmp_path / "net.py"
        path.write_text("raise SystemExit('executed')")
        (job,) = factory_jobs([f"{path}:build"])
        assert job.name == f"{path}:build"
        keys = [job.key]
        (tmp_path / "neighbour.py").write_text("width = 3")
        keys += [factory_jobs([f"{path}:build"])[0].key]
        (tmp_path / "neighbour.py").write_text("width = 4")
        keys += [factory_jobs([f"{path}:build"])[0].key]
        path.write_text("")
        keys += [factory_jobs([f"{path}:build"])[0].key]
        assert len(set(keys)) == 4

    @pytest.mark.parametrize("spec", ["timm:resnet18", "none.py:build", "net", "."])
    def test_refused(self, spec: str) -> None:
        with pytest.raises(NetworkSpecError):
            factory_jobs([spec])


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def write_shards(folder: Path, stem: str, *, index: bool) -> None:
    state = network().state_dict()
    halves = [dict(list(state.items())[:3]), dict(list(state.items())[3:])]
    files = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, folder / file)
    if index:
        weight_map = {name: file for file, half in zip(files, halves, strict=True) for name in half}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "zoo"
    for name in ("exact", "sharded", "plain/deep"):
        (folder / name).mkdir(parents=True)
    exact = timm.create_model("resnet10t", num_classes=5)
    save_file(exact.state_dict(), folder / "exact" / "model.safetensors")
    (folder / "exact" / "config.json").write_text('{"architecture": "resnet10t", "num_classes": 5}')
    write_shards(folder / "sharded", "model", index=True)
    write_shards(folder / "plain", "net", index=False)
    save_file(network(8).state_dict(), folder / "plain" / "deep" / "a.safetensors")
    save_file(network(9).state_dict(), folder / "plain" / "deep" / "b.safetensors")
    (folder / "plain" / "notes.txt").write_text("no network")
    save_file(network().state_dict(), folder / "model.safetensors")
    return folder


def by_name(folder: Path) -> dict[str, FileJob]:
    return {job.name: job for job in folder_jobs(folder)}


class TestFolder:
    def test_names(self, folder: Path) -> None:
        assert set(by_name(folder)) == {
            "zoo",
            "exact",
            "sharded",
            "plain/net-00001-of-00002.safetensors",
            "plain/deep/a.safetensors",
            "plain/deep/b.safetensors",
        }

    def test_entries(self, folder: Path) -> None:
        entries = {name: job.build() for name, job in by_name(folder).items()}
        assert entries["exact"].layers == standardize(timm.create_model("resnet10t", num_classes=5))
        assert [name for name, entry in entries.items() if not entry.approximate] == ["exact"]
        whole = standardize(folder / "model.safetensors")
        parameters = sum(p.numel() for p in network().parameters())
        for name in ("zoo", "sharded", "plain/net-00001-of-00002.safetensors"):
            assert (entries[name].layers, entries[name].parameters) == (whole, parameters)
        assert entries["sharded"].weights == str(folder / "sharded" / "model.safetensors.index.json")
        assert entries["plain/deep/a.safetensors"].weights == str(folder / "plain" / "deep" / "a.safetensors")

    @pytest.mark.parametrize(
        "change", ["sharded/model-00002-of-00002.safetensors", "sharded/model.safetensors.index.json"]
    )
    def test_key_depends_on_the_files(self, folder: Path, change: str) -> None:
        before = {name: job.key for name, job in by_name(folder).items()}
        os.utime(folder / change, ns=(1, 1))
        after = {name: job.key for name, job in by_name(folder).items()}
        assert [name for name in before if before[name] != after[name]] == ["sharded"]

    @pytest.mark.parametrize("index", [True, False])
    def test_missing_shard(self, tmp_path: Path, index: bool) -> None:
        write_shards(tmp_path, "model", index=index)
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        (job,) = folder_jobs(tmp_path)
        with pytest.raises(WeightsFileError, match="no such file" if index else "file 2 of 2 is missing"):
            job.build()

    def test_broken_index(self, tmp_path: Path) -> None:
        write_shards(tmp_path, "model", index=True)
        (tmp_path / "model.safetensors.index.json").write_text("{")
        (job,) = folder_jobs(tmp_path)
        with pytest.raises(WeightsFileError, match=r"index\.json is no JSON"):
            job.build()

    def test_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
        (job,) = folder_jobs(tmp_path)
        with pytest.raises(WeightsFileError, match="claims a header of"):
            job.build()

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsFileError, match=r"holds no \.safetensors file"):
            folder_jobs(tmp_path)
        with pytest.raises(WeightsFileError, match="no such folder"):
            folder_jobs(tmp_path / "none")
