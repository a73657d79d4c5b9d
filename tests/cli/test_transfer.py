"""``pyassemble transfer``: what is printed, what is written, and how errors read."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pyassemble
from pyassemble.network.sources import load_network

if TYPE_CHECKING:
    from tests.cli.work import Work


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
