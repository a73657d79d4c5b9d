"""``pyassemble zoo build``: what is built, skipped, kept and left behind, also when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import save_file

import pyassemble as pa
from pyassemble.network.sources import load_network
from pyassemble.zoo import Built, Entry
from tests.zoo.factories import FACTORIES, SLOW

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.work import Work


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Builds in this process, which takes no time to start; holds the options of the last build."""
    seen: dict[str, Any] = {}

    def build(jobs: Any, **options: Any) -> Built:
        seen.update(options, names=[job.name for job in jobs])
        options["cache"].write_text("kept")
        built = Built()
        for job in jobs:
            try:
                built.entries.append(job.build())
            except pa.PyAssembleError as error:
                built.skipped[job.name] = str(error)
        return built

    monkeypatch.setattr("pyassemble.zoo.build", build)
    return seen


class TestBuilding:
    def test_in_worker_processes(self, work: Work) -> None:
        out = work.folder / "zoo.npz"
        result = work.run(
            "zoo", "build", out, "--factory", work.small, "--factory", work.spec("broken"), "--factory", work.large,
            "--workers", 1, "--timeout", 30,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        first, last = result.stdout.splitlines()
        assert first.startswith(f"skipped {work.spec('broken')}: ")
        assert first.endswith("ValueError: no such width")
        assert last.startswith(f"built 2 of 3 networks, skipped 1: {out} (")
        zoo = pa.Zoo.load(out)
        assert zoo.names == [work.small, work.large]
        assert zoo.nearest(load_network(work.large), 1) == [(work.large, 1.0)]
        assert sorted(path.name for path in work.folder.iterdir() if path.suffix == ".cache") == []

    def test_all_origins(self, work: Work, inside: dict[str, Any]) -> None:
        folder, out = work.folder / "weights", work.folder / "zoo.npz"
        folder.mkdir()
        save_file(work.source.state_dict(), folder / "a [1].safetensors")
        output = work.good(
            "zoo", "build", out, "--timm", "resnet1[08]", "--timm", "resnet18*", "--torchvision", "alexnet",
            "--folder", folder, "--factory", work.small, "--timeout", 7, "--workers", 3,
        )  # fmt: skip
        names = ["resnet18", "resnet18d", "torchvision:alexnet", "a [1].safetensors", work.small]
        assert inside["names"] == names
        assert (inside["timeout"], inside["workers"], inside["progress"]) == (7, 3, False)
        zoo = pa.Zoo.load(out)
        assert zoo.names == names
        assert set(zoo.libraries) == {"timm", "torchvision"}
        assert [zoo[name].approximate for name in names] == [False, False, False, True, False]
        assert zoo["resnet18"].parameters == 11_689_512
        assert output.startswith(f"built 5 of 5 networks: {out} (")

    def test_caches(self, work: Work, inside: dict[str, Any]) -> None:
        out, cache = work.folder / "zoo.npz", work.folder / "mine"
        work.good("zoo", "build", out, "--factory", work.small)
        assert inside["cache"] == work.folder / "zoo.npz.cache"
        assert not inside["cache"].exists()
        work.good("zoo", "build", out, "--factory", work.small, "--cache", cache)
        assert inside["cache"] == cache
        assert cache.exists()

    def test_nothing_could_be_built(self, work: Work, inside: dict[str, Any]) -> None:
        out = work.folder / "zoo.npz"
        out.write_bytes(b"precious")
        result = work.run("zoo", "build", out, "--factory", work.spec("broken"), "--factory", work.spec("no_weights"))
        assert result.exit_code == 2
        assert len(result.stdout.splitlines()) == 2
        assert result.stderr == f"error: none of 2 networks could be built; {out} was not written\n"
        assert out.read_bytes() == b"precious"
        assert not inside["cache"].exists()

    def test_names_that_are_no_text(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        odd = Entry.of("odd \udcff", work.source)
        built = Built([odd, Entry.of("good", work.source)], {"other \udcfe": "why"})
        monkeypatch.setattr("pyassemble.zoo.build", lambda jobs, **options: built)
        output = work.good("zoo", "build", work.folder / "zoo.npz", "--factory", work.small)
        assert output.splitlines()[:2] == ["skipped other \\udcfe: why", "skipped odd \\udcff: its name is not UTF-8"]
        assert pa.Zoo.load(work.folder / "zoo.npz").names == ["good"]

    def test_errors(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyassemble.zoo.build", None)  # nothing of this gets as far
        out, small = work.folder / "zoo.npz", ("--factory", work.small)
        for arguments, words in [
            ((out,), "no networks to build; name some with --timm, "),
            ((work.folder, *small), "is a folder; a file name was expected"),
            ((work.folder / "no" / "zoo.npz", *small), "no does not exist"),
            ((out, *small, "--cache", out), "OUT and --cache both name"),
            ((out, "--timm", "no such network"), "timm has no network whose name matches 'no such network'"),
            ((out, "--folder", work.folder / "none"), "none: no such folder"),
            ((out, "--factory", "timm:resnet18"), "'timm:resnet18' is no factory"),
            ((out, "--hub", "a/b/c"), "'a/b/c' is not the name of a Hub repository"),
            ((out, *small, "--workers", 0), "--workers is 0; accepted: -1 (one per core), 1 and more"),
            ((out, *small, "--timeout", 0), "--timeout is 0; accepted: seconds above 0"),
        ]:
            assert words in work.error("zoo", "build", *arguments)
            assert not out.exists()

    def test_one_network_twice(self, work: Work) -> None:
        out = work.folder / "zoo.npz"
        arguments = ("zoo", "build", out, "--factory", work.small, "--factory", work.small)
        assert "each name may occur once; given more than once" in work.error(*arguments)
        assert not out.exists()

    def test_a_cache_that_is_something_else(self, work: Work) -> None:
        cache = work.folder / "zoo.npz.cache"
        cache.write_bytes(b"precious\n")
        arguments = ("zoo", "build", work.folder / "zoo.npz", "--factory", work.small)
        assert "zoo.npz.cache is not the cache of a build" in work.error(*arguments)
        assert cache.read_bytes() == b"precious\n"


class TestInterrupting:
    def test_goes_on_where_it_was(self, work: Work, tmp_path: Path) -> None:
        nets = tmp_path / "many.py"
        nets.write_text(FACTORIES + SLOW)
        out, cache, built = tmp_path / "zoo.npz", tmp_path / "zoo.npz.cache", tmp_path / "built"
        factories = [part for i in range(10) for part in ("--factory", f"{nets}:net{i}")]
        code = "from pyassemble.cli import main; main()"
        arguments = ["zoo", "build", str(out), "--workers", "1", *factories]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TERM": "dumb"},
        )
        deadline = time.monotonic() + 120
        while not built.exists() or len(built.read_text().split()) < 4:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert (output, errors) == (
            "",
            f"interrupted: what was finished is in {cache}; the same command goes on there\n",
        )
        assert {path.name for path in tmp_path.iterdir()} >= {"many.py", "built", "zoo.npz.cache"}
        assert not out.exists()

        before = built.read_text().split()
        work.good(*arguments)
        again = built.read_text().split()[len(before) :]
        assert len(set(before) & set(again)) <= 1  # what was under way
        assert pa.Zoo.load(out).names == factories[1::2]
        assert not cache.exists()
        assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
