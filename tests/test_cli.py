"""The command line, run as a user runs it: what is printed, what is written, and how errors read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner, Result

import pyassemble
from pyassemble import cli
from pyassemble.errors import StandardizationWarning
from pyassemble.network.sources import load_network
from pyassemble.network.standardize import STANDARDIZATIONS
from pyassemble.transfer import MATCHINGS, METHODS

if TYPE_CHECKING:
    from pathlib import Path

NETWORKS = """
from torch import nn

def network(width, classes):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )

def small(): return network(4, 2)
def large(): return network(8, 2)
def broken(): raise ValueError("no such width")
def leaving(): raise SystemExit(3)
def no_weights(): return nn.Sequential(nn.ReLU())
def only_linear(): return nn.Sequential(nn.Linear(3, 3))
"""


class Work:
    """A folder with networks, and the command line run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nets.py").write_text(NETWORKS)
        self.small = f"{folder / 'nets.py'}:small"
        self.large = f"{folder / 'nets.py'}:large"
        self.weights = folder / "small.safetensors"
        self.out = folder / "out.safetensors"
        torch.manual_seed(5)
        self.source = load_network(self.small)
        save_file(self.source.state_dict(), self.weights)

    def spec(self, factory: str) -> str:
        return f"{self.folder / 'nets.py'}:{factory}"

    def run(self, *arguments: object) -> Result:
        return CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(cli.app, [str(a) for a in arguments])

    def good(self, *arguments: object) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    def error(self, *arguments: object) -> str:
        """The one line that a failing command leaves on stderr."""
        result = self.run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
        return result.stderr

    def transfer(self, *arguments: object) -> str:
        return self.good("transfer", self.small, self.large, "--weights", self.weights, *arguments)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


class TestProgram:
    def test_help_and_version_as_a_process(self) -> None:
        code = "from pyassemble.cli import main; main()"
        shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
        assert all(command in shown.stdout for command in ("quickstart", "similarity", "transfer"))

    def test_version(self, work: Work) -> None:
        assert work.good("--version") == f"pyassemble {pyassemble.__version__}\n"

    def test_choices_are_those_of_the_library(self) -> None:
        assert tuple(cli.Standardization) == tuple(STANDARDIZATIONS)
        assert tuple(cli.Matching) == tuple(MATCHINGS)
        assert tuple(cli.Method) == tuple(METHODS)

    @pytest.mark.parametrize("arguments", [["similarity", "x"], ["no"], ["similarity", "a", "b", "--matching", "x"]])
    def test_usage_errors(self, work: Work, arguments: list[str]) -> None:
        assert work.run(*arguments).exit_code == 2

    def test_debug_shows_the_traceback(self, work: Work) -> None:
        result = work.run("--debug", "similarity", "resnet18", "timm:resnet34")
        assert isinstance(result.exception, pyassemble.PyAssembleError)

    def test_interrupt(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pyassemble.network.sources.load_network", interrupt)
        result = work.run("similarity", work.small, work.large)
        assert result.exit_code == 130
        assert result.stderr.startswith("interrupted:")

    def test_warnings_are_one_line(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        def warn(spec: Any, **options: object) -> nn.Module:
            with warnings.catch_warnings():  # the test suite turns warnings into errors
                warnings.simplefilter("always")
                warnings.warn("order of [layers]\n  unknown", StandardizationWarning, stacklevel=1)
            return load_network(spec)

        monkeypatch.setattr("pyassemble.network.sources.load_network", warn)
        result = work.run("similarity", work.small, work.large)
        assert result.exit_code == 0
        assert result.stderr == "warning: order of [layers] unknown\n" * 2

    def test_quickstart(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        quickstart = type(sys)("pyassemble.quickstart")
        quickstart.run = lambda out, seed, console: calls.append((out, seed))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyassemble.quickstart", quickstart)
        work.good("quickstart", "--out", work.folder / "first", "--seed", 3)
        assert calls == [(work.folder / "first", 3)]


class TestSimilarity:
    def test_resnets(self, work: Work) -> None:
        output = work.good("similarity", "timm:resnet18", "timm:resnet34")
        assert "layer4.1         layer4.2         4 pairs" in output
        numbers = dict(re.findall(r"^(score|directed, .*?|symmetric) +([\d.]+)$", output, flags=re.MULTILINE))
        source, target = (load_network(f"timm:{name}", meta=True) for name in ("resnet18", "resnet34"))
        for name, value in [
            ("score", pyassemble.align(source, target).score),
            ("directed, source → target", pyassemble.similarity(source, target, directed=True)),
            ("directed, target → source", pyassemble.similarity(target, source, directed=True)),
            ("symmetric", pyassemble.similarity(source, target)),
        ]:
            assert float(numbers[name]) == pytest.approx(value, abs=6e-5)
        assert max(map(len, output.splitlines()[:-1])) <= 80

    def test_directed_only(self, work: Work) -> None:
        output = work.good("similarity", work.small, work.large, "--directed", "--no-table")
        assert "directed, source → target" in output
        assert "symmetric" not in output
        assert "source layer " not in output

    def test_json_to_stdout_is_nothing_but_json(self, work: Work) -> None:
        document = json.loads(work.good("similarity", work.small, work.large, "--json", "-"))
        assert (document["format"], document["version"]) == ("pyassemble.similarity", 1)
        assert (document["source"], document["target"]) == (work.small, work.large)
        directed = document["directed"]
        assert document["symmetric"] ** 2 == pytest.approx(directed["source_to_target"] * directed["target_to_source"])
        assert len(document["alignment"]["pairs"]) == 3

    def test_files(self, work: Work) -> None:
        files = [work.folder / name for name in ("a.json", "a.png", "a.svg")]
        options = ["--json", files[0], "--picture", files[1], "--picture", files[2]]
        output = work.good("similarity", work.small, work.large, *options)
        assert "symmetric" in output
        assert json.loads(files[0].read_text())["source"] == work.small
        assert files[1].read_bytes().startswith(b"\x89PNG")
        assert b"pair-0-0" in files[2].read_bytes()

    def test_source_known_by_its_tensors(self, work: Work) -> None:
        output = work.good("similarity", work.weights, work.large)
        assert "approximate" in output
        assert "symmetric" in output

    @pytest.mark.parametrize("matching", ["dp_flat", "bipartite", "n_bipartite", "random"])
    def test_matchings(self, work: Work, matching: str) -> None:
        document = json.loads(work.good("similarity", work.small, work.large, "--matching", matching, "--json", "-"))
        assert document["alignment"]["matching"] == matching

    def test_graph(self, work: Work) -> None:
        options = ["--standardization", "graph", "--json", "-"]
        document = json.loads(work.good("similarity", work.small, work.large, *options))
        assert document["alignment"]["standardization"] == "graph"

    def test_errors(self, work: Work) -> None:
        truncated = work.folder / "cut.safetensors"
        truncated.write_bytes(work.weights.read_bytes()[:200])
        for source, target, words in [
            ("timm:resnet-18", work.large, "timm knows no 'resnet-18'; close: "),
            ("resnet18", work.large, "'resnet18' is not understood (timm:resnet18?); accepted: "),
            (work.spec("broken"), work.large, "broken() in "),
            (work.spec("broken"), work.large, "ValueError: no such width"),
            (work.spec("none"), work.large, "defines no 'none'"),
            (work.small, work.weights, "can only be a source"),
            (work.folder / "none.safetensors", work.large, "none.safetensors: no such file"),
            (truncated, work.large, "cut.safetensors: truncated: "),
            (work.folder, work.large, "holds neither config.json nor recipe.json"),
            (work.spec("no_weights"), work.large, "no convolution"),
        ]:
            assert words in work.error("similarity", source, target)

    def test_outputs_are_checked_first(self, work: Work) -> None:
        assert "known: .png, .svg" in work.error("similarity", work.spec("broken"), work.large, "--picture", "a.pdf")
        missing = work.folder / "none" / "a.json"
        assert f"the folder {missing.parent} does not exist" in work.error(
            "similarity", work.spec("broken"), work.large, "--json", missing
        )
        assert f"{work.folder} is a folder" in work.error(
            "similarity", work.spec("broken"), work.large, "--json", work.folder
        )

    def test_json_through_a_link_and_to_a_device(self, work: Work) -> None:
        file, link, null = (work.folder / name for name in ("a.json", "link.json", "null.json"))
        link.symlink_to(file)
        work.good("similarity", work.small, work.large, "--json", link)
        assert link.is_symlink()
        assert json.loads(file.read_text())["source"] == work.small
        null.symlink_to(os.devnull)
        work.good("similarity", work.small, work.large, "--json", null)
        assert null.is_char_device()

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    @pytest.mark.parametrize(("option", "start"), [("--json", b"{"), ("--picture", b"\x89PNG")])
    def test_pipes(self, work: Work, option: str, start: bytes) -> None:
        pipe = work.folder / "pipe.png"
        os.mkfifo(pipe)
        with ThreadPoolExecutor() as threads:
            received = threads.submit(pipe.read_bytes)
            work.good("similarity", work.small, work.large, option, pipe)
            assert received.result(timeout=60).startswith(start)
        assert pipe.is_fifo()

    def test_two_outputs_in_one_file(self, work: Work) -> None:
        picture, other = work.folder / "a.png", work.folder / "b.png"
        other.symlink_to(picture)
        for arguments, words in [
            (("--picture", picture, "--json", picture), "--picture and --json both name"),
            (("--picture", picture, "--picture", other), "--picture and --picture both name"),
        ]:
            assert words in work.error("similarity", work.spec("broken"), work.large, *arguments)


class TestTransfer:
    def test_end_to_end(self, work: Work) -> None:
        output = work.transfer("--out", work.out)
        assert f"saved {work.out}" in output
        assert "50%" in output
        large = load_network(work.large, weights=work.out)
        torch.manual_seed(0)
        expected = load_network(work.large)
        report = pyassemble.transfer(work.source, expected)
        state = expected.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in large.state_dict().items())
        with safe_open(work.out, "pt") as file:
            assert file.metadata() == {
                "source": work.small,
                "target": work.large,
                "method": "clip",
                "matching": "dp",
                "standardization": "blocks",
                "coverage": f"{report.coverage:.6f}",
                "pyassemble": pyassemble.__version__,
            }

    def test_onto_itself_is_the_source(self, work: Work) -> None:
        work.good("transfer", work.small, work.small, "--weights", work.weights, "--out", work.out)
        saved, source = load_file(work.out), load_file(work.weights)
        assert all(torch.equal(saved[name], source[name]) for name in source)

    def test_tensors_alone_as_source(self, work: Work) -> None:
        work.good("transfer", work.weights, work.small, "--out", work.out)
        saved, source = load_file(work.out), load_file(work.weights)
        assert all(torch.equal(saved[name], source[name]) for name in source)

    def test_pretrained_factory(self, work: Work) -> None:
        work.good("transfer", work.small, work.large, "--pretrained", "--out", work.out)
        assert work.out.exists()

    def test_seed_and_target_weights(self, work: Work) -> None:
        torch.save(load_network(work.large).state_dict(), work.folder / "large.pt")
        results = []
        for number, options in enumerate((["--seed", 1], ["--seed", 1], ["--seed", 2])):
            work.transfer("--out", work.folder / f"{number}.safetensors", *options)
            results.append(load_file(work.folder / f"{number}.safetensors")["0.weight"])
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
        work.transfer("--out", work.out, "--target-weights", work.folder / "large.pt")
        before = torch.load(work.folder / "large.pt", weights_only=True)["0.weight"]
        assert torch.equal(load_file(work.out)["0.weight"][0], before[0])

    def test_no_buffers(self, work: Work) -> None:
        state = work.source.state_dict()
        state["1.running_mean"] += 3
        save_file(state, work.weights)
        work.transfer("--out", work.out, "--no-buffers")
        assert not load_file(work.out)["1.running_mean"].any()

    def test_dry_run(self, work: Work) -> None:
        output = work.good("transfer", work.small, work.large, "--dry-run", "--out", work.out)
        assert "tensors would be written" in output
        assert "dry run: nothing was written" in output
        assert not work.out.exists()

    def test_json_and_picture(self, work: Work) -> None:
        picture = work.folder / "a.svg"
        document = json.loads(work.transfer("--out", work.out, "--json", "-", "--picture", picture))
        assert (document["format"], document["source"], document["target"]) == (
            "pyassemble.transfer",
            work.small,
            work.large,
        )
        assert work.out.exists()
        assert picture.exists()

    def test_existing_output(self, work: Work) -> None:
        work.out.write_bytes(b"precious")
        arguments = ["transfer", work.small, work.large, "--weights", work.weights, "--out", work.out]
        assert "out.safetensors exists; --force overwrites it" in work.error(*arguments)
        assert work.out.read_bytes() == b"precious"
        work.good(*arguments, "--force")
        assert "0.weight" in load_file(work.out)

    def test_two_outputs_in_one_file(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(work.folder)
        picture = work.folder / "a.svg"
        other = os.path.join(work.folder, "..", work.folder.name, work.out.name)
        for arguments, words in [
            (("--out", work.out, "--json", work.out), f"--out and --json both name {work.out}"),
            (("--out", work.out, "--json", other), "--out and --json both name"),
            (("--out", work.out.name, "--json", work.out), "--out and --json both name"),
            (("--out", work.out, "--json", picture, "--picture", "a.svg"), "--picture and --json both name"),
        ]:
            assert words in work.error("transfer", work.spec("broken"), work.large, "--pretrained", *arguments)
        picture.symlink_to(work.out)
        arguments = ("--out", work.out, "--picture", picture)
        assert "--out and --picture both" in work.error("transfer", work.small, work.large, "--pretrained", *arguments)
        assert not work.out.exists()

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc refuses new files even to root")
    @pytest.mark.parametrize("option", ["--json", "--picture"])
    def test_unwritable_outputs_are_found_first(self, work: Work, option: str) -> None:
        arguments = ("--pretrained", "--out", work.out, option, "/proc/a.png")
        assert "/proc/a.png cannot be written: " in work.error("transfer", work.spec("broken"), work.large, *arguments)
        arguments = ("--pretrained", "--out", "/proc/a.safetensors")
        assert "a.safetensors cannot be written: " in work.error(
            "transfer", work.spec("broken"), work.large, *arguments
        )

    def test_a_factory_that_exits(self, work: Work) -> None:
        assert "leaving() in " in work.error("transfer", work.spec("leaving"), work.large, "--dry-run")

    def test_modes(self, work: Work) -> None:
        files = [work.out, work.folder / "a.json", work.folder / "a.png"]
        work.transfer("--out", files[0], "--json", files[1], "--picture", files[2])
        (work.folder / "ordinary").write_text("")
        assert {file.stat().st_mode for file in files} == {(work.folder / "ordinary").stat().st_mode}

    def test_errors(self, work: Work) -> None:
        save_file({"0.weight": torch.ones(1)}, work.folder / "other.safetensors")
        (work.folder / "cut.safetensors").write_bytes(work.weights.read_bytes()[:100])
        pair, out = (work.small, work.large), ("--out", work.out)
        for arguments, words in [
            ((*pair, *out), "has no trained weights to transfer; give them with --weights FILE"),
            ((*pair, "--weights", work.weights), "no --out FILE.safetensors"),
            ((*pair, *out, "--weights", work.weights, "--pretrained"), "exclude each other"),
            ((work.weights, work.large, *out, "--pretrained"), "is itself the source's weights"),
            ((*pair, *out, "--weights", work.folder / "none.pt"), "none.pt: no such file"),
            ((*pair, *out, "--weights", work.folder / "cut.safetensors"), "cut.safetensors: truncated"),
            ((*pair, *out, "--weights", work.folder / "other.safetensors"), "'0.bias' (4,) (and 6 more) missing"),
            ((*pair, "--weights", work.weights, "--out", work.folder / "out.pt"), "are written to .safetensors"),
            ((*pair, "--weights", work.weights, "--out", work.folder / "no" / "o.safetensors"), "no does not exist"),
            ((work.weights, work.spec("broken"), *out), "ValueError: no such width"),
        ]:
            assert words in work.error("transfer", *arguments)
            assert not work.out.exists()

    def test_nothing_in_common(self, work: Work) -> None:
        save_file(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), work.weights)
        assert "no layer in common" in work.error("transfer", work.weights, work.spec("only_linear"), "--out", work.out)
