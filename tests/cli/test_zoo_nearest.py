"""``pyassemble zoo nearest``: the ranking that is printed, what is imported for it, and how errors read."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from torch import nn

import pyassemble as pa
from pyassemble.cli.zoo.nearest import Similarity
from pyassemble.network.sources import load_network
from pyassemble.report.zoo import count_text
from pyassemble.zoo.hub import read_repository
from pyassemble.zoo.shipped import shipped_zoo
from pyassemble.zoo.zoo import SIMILARITIES
from tests.zoo.hub_server import safetensors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.work import Work
    from tests.zoo.hub_server import HubServer


@pytest.fixture
def index(work: Work) -> Path:
    """A zoo whose ranking for the small network differs between the similarities."""
    zoo = pa.Zoo()
    zoo.add("large [wide]", load_network(work.large), license="mit", weights="hf-hub:me/large")
    zoo.add("small", load_network(work.small))
    long = nn.Sequential(*load_network(work.small), *(nn.Conv2d(4, 4, 3) for _ in range(6)))
    zoo.add("long", long, weights="https://example.org/" + "x" * 100 + "/long.pth")
    zoo.add("file", work.weights)
    path = work.folder / "zoo.npz"
    zoo.save(path)
    return path


class TestRanking:
    def test_equals_the_library(self, work: Work, index: Path) -> None:
        zoo, network = pa.Zoo.load(index), load_network(work.small)
        rankings = []
        for similarity in ("symmetric", "directed"):
            options = ["--zoo", index, "--similarity", similarity, "--k", 4, "--json", "-"]
            document = json.loads(work.good("zoo", "nearest", work.small, *options))
            assert (document["format"], document["version"]) == ("pyassemble.nearest", 1)
            assert (document["network"], document["similarity"]) == (work.small, similarity)
            ranking = [(row["name"], row["similarity"]) for row in document["nearest"]]
            assert ranking == zoo.nearest(network, 4, similarity=similarity)
            rankings.append([name for name, _ in ranking])
        assert rankings[0] != rankings[1]

    def test_choices_are_those_of_the_library(self) -> None:
        assert tuple(Similarity) == SIMILARITIES

    def test_table(self, work: Work, index: Path) -> None:
        output = work.good("zoo", "nearest", work.small, "--zoo", index, "--k", 3)
        lines = output.splitlines()
        assert lines[0].split() == ["#", "name", "similarity", "size", "license", "weights"]
        assert max(map(len, lines)) <= 80
        small = next(line for line in lines if line.split()[1:2] == ["small"])
        assert small.split() == ["1", "small", "1.0000", "130", "—", "—"]
        assert "3 of 4 networks, symmetric similarity" in lines[-1]

    def test_names_with_brackets_and_approximate_entries(self, work: Work, index: Path) -> None:
        output = work.good("zoo", "nearest", work.small, "--zoo", index)
        assert "large [wide]" in output
        assert "~1.0000" in output
        assert output.endswith("~ known by its tensors only\n")

    def test_only_with_weights(self, work: Work, index: Path) -> None:
        output = work.good("zoo", "nearest", work.small, "--zoo", index, "--weights", "--k", 1, "--json", "-")
        (row,) = json.loads(output)["nearest"]
        assert (row["name"], row["approximate"]) == ("file", True)
        output = work.good("zoo", "nearest", work.small, "--zoo", index, "--weights", "--k", 9, "--json", "-")
        everything = [name for name, _ in pa.Zoo.load(index).nearest(load_network(work.small))]
        assert [row["name"] for row in json.loads(output)["nearest"]] == [n for n in everything if n != "small"]

    def test_weights_file_as_the_network(self, work: Work, index: Path) -> None:
        output = work.good("zoo", "nearest", work.weights, "--zoo", index, "--k", 1)
        assert "approximate, " in output

    def test_hub_repository_without_its_weights(
        self, work: Work, index: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The address of the Hub is read from the environment when a process starts.
        monkeypatch.setattr("pyassemble.zoo.hub.read_repository", partial(read_repository, endpoint=hub.url))
        shapes = {name: tuple(tensor.shape) for name, tensor in work.source.state_dict().items()}
        hub.add("me/net", {"model.safetensors": safetensors(shapes)})
        output = work.good("zoo", "nearest", "hf-hub:me/net", "--zoo", index, "--k", 1, "--json", "-")
        document = json.loads(output)
        assert (document["network"], document["approximate"]) == ("hf-hub:me/net", True)
        assert document["nearest"][0]["similarity"] == 1.0
        assert "me/none" in work.error("zoo", "nearest", "hf-hub:me/none", "--zoo", index)

    def test_json_file_beside_the_table(self, work: Work, index: Path) -> None:
        file = work.folder / "a.json"
        assert "similarity" in work.good("zoo", "nearest", work.small, "--zoo", index, "--json", file)
        assert len(json.loads(file.read_text())["nearest"]) == 4

    @pytest.mark.parametrize(
        ("count", "text"),
        [(0, "0"), (999, "999"), (1000, "1.0 k"), (999_949, "999.9 k"), (999_950, "1.0 M"), (1_234_567, "1.2 M")],
    )
    def test_counts(self, count: int, text: str) -> None:
        assert count_text(count) == text


# The program as a process of its own, which then says what it has imported.
RUN = """
import sys
from pyassemble.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    slow = {"timm", "torchvision", "matplotlib", "scipy", "sklearn", "numba", "sympy", "torch._dynamo", "joblib"}
    slow |= {"pyassemble.report.picture", "pyassemble.transfer"}
    print("imported", *sorted(slow & set(sys.modules)))
    sys.exit(end.code)
"""


class TestShippedZoo:
    def test_a_factory_imports_nothing_that_takes_long(self, work: Work) -> None:
        command = [sys.executable, "-c", RUN, "zoo", "nearest", work.small, "--k", "2"]
        shown = subprocess.run(command, capture_output=True, text=True)
        assert (shown.returncode, shown.stderr) == (0, "")
        lines = shown.stdout.splitlines()
        assert lines[-1] == "imported"
        expected = pa.Zoo.timm().nearest(load_network(work.small), 2)
        assert [line.split()[1:3] for line in lines[2:4]] == [[name, f"{value:.4f}"] for name, value in expected]

    def test_what_is_known_is_not_built(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = pa.Zoo.timm().nearest(load_network("timm:resnet34", meta=True), 5)
        monkeypatch.setattr("pyassemble.network.sources.load_network", None)
        document = json.loads(work.good("zoo", "nearest", "timm:resnet34", "--k", 5, "--json", "-"))
        assert [(row["name"], row["similarity"]) for row in document["nearest"]] == expected
        assert document["zoo"] == {"networks": len(pa.Zoo.timm()), "libraries": pa.Zoo.timm().libraries}

    def test_another_version_of_timm(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pyassemble.zoo.shipped._version", lambda: "0.0.1")
        monkeypatch.setattr("pyassemble.cli.zoo.group.shipped", shipped_zoo)  # not as loaded before
        assert shipped_zoo() is None
        built = pa.Zoo()
        built.add("mine", load_network(work.large))
        monkeypatch.setattr("pyassemble.zoo.zoo.Zoo.timm", lambda **options: built)
        result = work.run("zoo", "nearest", work.small)
        assert result.exit_code == 0
        assert result.stderr.startswith("note: the index in this package is of another version of timm")
        assert "mine" in result.stdout

    def test_entry_is_as_it_was_added(self) -> None:
        zoo = pa.Zoo()
        network = load_network("timm:convnext_atto", meta=True)
        zoo.add("convnext", network, license="mit", weights="here")
        again = pa.Zoo.of([zoo.entry("convnext")])
        assert again["convnext"] == zoo["convnext"]
        assert zoo.entry("convnext").layers.shapes == pa.zoo.Entry.of("x", network).layers.shapes
        other = load_network("timm:resnet18", meta=True)
        assert again.nearest(other) == zoo.nearest(other)
        assert zoo.nearest(zoo.entry("convnext")) == zoo.nearest(network) == [("convnext", 1.0)]


class TestErrors:
    def test_bad_input(self, work: Work, index: Path) -> None:
        damaged = work.folder / "damaged.npz"
        damaged.write_bytes(index.read_bytes()[:-100])
        other = work.folder / "text.npz"
        other.write_text("no index")
        known = ("--zoo", index)
        for arguments, words in [
            ((work.small, "--zoo", work.folder / "none.npz"), "there is no index file "),
            ((work.small, "--zoo", damaged), "damaged.npz is no sound zoo index: "),
            ((work.small, "--zoo", other), "text.npz is no sound zoo index: "),
            ((work.small, "--zoo", work.folder), "cannot be read: Is a directory"),
            (("timm:resnet-18", *known), "timm knows no 'resnet-18'; close: "),
            (("torchvision:resnet-18", *known), "torchvision knows no 'resnet-18'"),
            (("hf-hub:a/b/c", *known), "'a/b/c' is not the name of a Hub repository"),
            ((work.spec("broken"), *known), "ValueError: no such width"),
            ((work.spec("leaving"), *known), "leaving() in "),
            ((work.spec("no_weights"), *known), "has no layer that could be scored"),
            ((work.small, *known, "--k", 0), "--k is 0; accepted: 1 and more"),
            ((work.small, *known, "--k", -3), "--k is -3"),
            ((work.folder / "none.safetensors", *known), "none.safetensors: no such file"),
            ((work.spec("broken"), *known, "--json", work.folder), "is a folder; a file name was expected"),
        ]:
            assert words in work.error("zoo", "nearest", *arguments)

    def test_usage(self, work: Work) -> None:
        assert work.run("zoo", "nearest", work.small, "--similarity", "x").exit_code == 2
