"""``pyassemble similarity``: what is printed, what is written, and how errors read."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import pyassemble
from pyassemble.network.sources import load_network

if TYPE_CHECKING:
    from tests.cli.work import Work


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
