"""The index of timm's architectures that ships with the package, against the installed timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm

import pyassemble as pa
from pyassemble.zoo import Built, Entry, build
from pyassemble.zoo.origins import timm_jobs
from pyassemble.zoo.shipped import shipped_index
from tests.zoo.sequences import spelled_out

if TYPE_CHECKING:
    from pathlib import Path

    from pyassemble.zoo import Zoo


@pytest.fixture(scope="module")
def shipped() -> Zoo:
    zoo = pa.Zoo.load(str(shipped_index()))
    if zoo.libraries["timm"] != timm.__version__:
        pytest.skip(f"the index is of timm {zoo.libraries['timm']}; {timm.__version__} is installed")
    return zoo


def check(zoo: Zoo, entries: list[Entry]) -> None:
    names = [entry.name for entry in entries]
    built = pa.Zoo.of(entries)
    assert [zoo[name] for name in names] == [built[name] for name in names]
    assert spelled_out(zoo.select(names)._index.tables) == spelled_out(built._index.tables)


def test_it_is_small() -> None:
    assert len(shipped_index().read_bytes()) <= 3_000_000


def test_it_has_all_of_timm(shipped: Zoo) -> None:
    assert shipped.names == timm.list_models()
    assert all(shipped[name].parameters > 0 for name in shipped.names)


def test_some_are_what_is_built_here(shipped: Zoo) -> None:
    jobs = [
        job for job in timm_jobs() if job.name in ("resnet18", "convnext_atto", "vit_tiny_patch16_224", "tinynet_e")
    ]
    check(shipped, [job.build() for job in jobs])


@pytest.mark.slow
def test_all_are_what_is_built_here(shipped: Zoo) -> None:
    check(shipped, build(timm_jobs(), cache=None, progress=False).entries)


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("nothing should be built")


def test_it_is_used(shipped: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyassemble.zoo.shipped.build", never)
    assert pa.Zoo.timm().names == shipped.names
    some = pa.Zoo.timm("resnet1*")
    assert some.names == timm.list_models("resnet1*")
    assert some["resnet18"] == shipped["resnet18"]
    assert some.libraries == {"timm": timm.__version__}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building itself is tested elsewhere; its processes take seconds to start."""
    monkeypatch.setattr("pyassemble.zoo.shipped.build", lambda jobs, **_: Built([job.build() for job in jobs], {}))


@pytest.mark.usefixtures("in_this_process")
def test_not_for_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outdated = pa.Zoo.of([Entry.of("tinynet_e", build_one("tinynet_a"))], {"timm": "0.0"})
    outdated.save(tmp_path / "timm.npz")
    monkeypatch.setattr("pyassemble.zoo.shipped.shipped_index", lambda: tmp_path / "timm.npz")
    zoo = pa.Zoo.timm("tinynet_e", progress=False)
    assert zoo["tinynet_e"].parameters == Entry.of("x", build_one("tinynet_e")).parameters
    assert zoo.libraries == {"timm": timm.__version__}


@pytest.mark.usefixtures("in_this_process")
def test_not_for_architectures_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = pa.Zoo.of([Entry.of("tinynet_a", build_one("tinynet_a"))], {"timm": timm.__version__})
    partial.save(tmp_path / "timm.npz")
    monkeypatch.setattr("pyassemble.zoo.shipped.shipped_index", lambda: tmp_path / "timm.npz")
    assert pa.Zoo.timm("tinynet_[de]", progress=False).names == ["tinynet_d", "tinynet_e"]


def test_no_such_architecture() -> None:
    with pytest.raises(pa.NetworkSpecError, match="no_such_network"):
        pa.Zoo.timm("no_such_network*")


def build_one(name: str) -> object:
    import torch

    with torch.device("meta"):
        return timm.create_model(name)
