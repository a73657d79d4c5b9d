"""Building entries: what is skipped and why, order, resuming after Ctrl-C and kill -9, and no process left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import timm
import torch

from pyassemble.errors import DuplicateNameError, UnknownOptionError, WorkerError
from pyassemble.network.standardize import standardize
from pyassemble.zoo.building import build
from pyassemble.zoo.origins import factory_jobs, timm_jobs, torchvision_jobs
from tests.zoo.factories import FACTORIES, SLOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pyassemble.zoo.jobs import SpecJob


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    folder = tmp_path / "my nets"
    folder.mkdir()
    path = folder / "nets.py"
    path.write_text(FACTORIES + SLOW)
    return path


def named(file: Path, *names: str) -> list[SpecJob]:
    return factory_jobs([f"{file}:{name}" for name in names])


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def pid_in(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text() != "")
    return int(path.read_text())


class TestTimm:
    def test_equals_direct_standardization(self) -> None:
        jobs = timm_jobs("resnet1[08]*") + timm_jobs("vit_tiny_patch16_2*") + timm_jobs("nfnet_l0")
        built = build(jobs, workers=2, progress=False)
        assert built.skipped == {}
        assert [entry.name for entry in built.entries] == [job.name for job in jobs]
        for entry, job in zip(built.entries, jobs, strict=True):
            with torch.device("meta"):
                network = timm.create_model(entry.name)
            assert entry.layers == standardize(network, "blocks")
            assert all(type(element.is_block) is bool for element in entry.layers.elements)
            assert all(type(shape) is tuple for shape in entry.layers.shapes)
            assert entry.parameters == sum(p.numel() for p in network.parameters())
            assert (entry.license, entry.weights, entry.approximate) == (job.license, job.weights, False)

    @pytest.mark.slow
    def test_all(self, tmp_path: Path) -> None:
        jobs = timm_jobs()
        built = build(jobs, progress=False, cache=tmp_path / "cache")
        assert (len(built.entries), built.skipped) == (len(timm.list_models()), {})
        for entry in built.entries[::20]:
            with torch.device("meta"):
                assert entry.layers == standardize(timm.create_model(entry.name), "blocks")
        started = time.monotonic()
        assert build(jobs, progress=False, cache=tmp_path / "cache") == built
        assert time.monotonic() - started < 20

    @pytest.mark.slow
    def test_torchvision_all(self) -> None:
        jobs = torchvision_jobs()
        built = build(jobs, progress=False)
        assert built.skipped == {}
        assert [entry.name for entry in built.entries] == [job.name for job in jobs]
        assert all(entry.weights and entry.weights.startswith("https://") for entry in built.entries)


class TestSkipping:
    def test_every_way_to_fail(self, factories: Path) -> None:
        """In one build, because starting workers is what takes the time."""
        reasons = {
            "raises": r"raises\(\) in .* failed: ValueError: no such width$",
            "raises_nothing_said": "failed: KeyError$",
            "interrupts": "KeyboardInterrupt$",
            "leaves": "SystemExit: 3$",
            "hangs": r"took longer than 3 s and was stopped$",
            "exits_with_child": "ended its process with status 8$",
            "segfaults": "SIGSEGV: about to fall$",
            "killed": r"SIGKILL \(out of memory\?\)$",
            "needs_missing": r"needs the module 'no_such_module_anywhere', which is not installed",
            "not_a_network": "returned a int",
            "nothing_to_score": "has no layer that could be scored",
        }
        jobs = named(factories, "net1", *reasons, "prints", "net2")
        built = build(jobs, workers=2, progress=False, timeout=3)
        short = {name.rpartition(":")[2]: reason for name, reason in built.skipped.items()}
        assert list(short) == list(reasons)
        for name, pattern in reasons.items():
            assert "\n" not in short[name]
            assert re.search(pattern, short[name]), short[name]
        assert [entry.name.rpartition(":")[2] for entry in built.entries] == ["net1", "prints", "net2"]
        assert [entry.layers.shapes[0] for entry in built.entries] == [(2, 3, 3, 3), (4, 3, 3, 3), (3, 3, 3, 3)]
        wait_for(lambda: not is_alive(pid_in(factories.parent / "child.pid")), 5)

    def test_duplicate_names(self, factories: Path) -> None:
        jobs = named(factories, "net1", "net2", "net1")
        with pytest.raises(DuplicateNameError, match=r"given more than once: '.*:net1'$"):
            build(jobs)

    @pytest.mark.parametrize(("workers", "timeout"), [(0, 1.0), (-2, 1.0), (1, 0.0), (1, float("nan"))])
    def test_options(self, workers: int, timeout: float) -> None:
        with pytest.raises(UnknownOptionError):
            build([], workers=workers, timeout=timeout)

    def test_nothing(self) -> None:
        built = build([])
        assert (built.entries, built.skipped) == ([], {})

    def test_workers_that_do_not_start(self, factories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "path", [])
        with pytest.raises(WorkerError, match=r"could not start up: it ended its process with status 1: .*Error"):
            build(named(factories, "net1"), progress=False)


BUILD = """
import sys
from pathlib import Path
from pyassemble.zoo.building import build
from pyassemble.zoo.origins import factory_jobs
file, cache, *names = sys.argv[1:]
build(factory_jobs([f"{file}:{name}" for name in names]), workers=2, progress=True, cache=Path(cache))
"""


class TestResuming:
    NAMES = tuple(f"net{i}" for i in range(10))

    def start(self, file: Path, cache: Path, *names: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, str(file), str(cache), *names], stderr=subprocess.PIPE, text=True
        )

    def built(self, file: Path) -> list[str]:
        path = file.parent / "built"
        return path.read_text().split() if path.exists() else []

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
    def test_goes_on_where_it_was_stopped(self, factories: Path, tmp_path: Path, how: signal.Signals) -> None:
        cache = tmp_path / "cache"
        process = self.start(factories, cache, *self.NAMES[:6], "hangs", *self.NAMES[6:])
        wait_for(lambda: len(self.built(factories)) >= 8)
        hanging, child = pid_in(factories.parent / "hangs.pid"), pid_in(factories.parent / "child.pid")
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else -signal.SIGINT)
        assert ("KeyboardInterrupt" in errors) == (how is signal.SIGINT)
        assert "Building" in errors or how is signal.SIGKILL
        wait_for(lambda: not is_alive(hanging) and not is_alive(child), 10)

        before = self.built(factories)
        jobs = named(factories, *self.NAMES)
        resumed = build(jobs, workers=1, progress=False, cache=cache)
        again = self.built(factories)[len(before) :]
        # What was under way at the end may have been built without being kept: at most one per worker.
        assert len(again) <= len(self.NAMES) - len(before) + 2
        assert len(set(before) - set(again)) >= len(before) - 2 >= 6
        assert resumed == build(jobs, workers=1, progress=False, cache=cache)
        assert [entry.layers.shapes[0][0] for entry in resumed.entries] == list(range(1, 11))
