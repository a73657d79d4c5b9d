"""``pyassemble merge``: what is written, that it goes on after an interrupt, and how errors read."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pyassemble
from pyassemble import cli
from pyassemble.network.sources import load_network
from pyassemble.training.accelerated import PRECISIONS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.work import Work

CLASSES = {"dark": 60, "light": 200}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twenty noisy pictures of each class, told apart by how bright they are."""
    generator = torch.Generator().manual_seed(0)
    for name, brightness in CLASSES.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = brightness + 20 * torch.randn(6, 6, 3, generator=generator)
            picture = Image.fromarray(pixels.clamp(0, 255).byte().numpy())
            picture.save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def weights(work: Work) -> list[object]:
    """Options with a weights file for each of two networks."""
    options: list[object] = []
    for number in range(2):
        torch.manual_seed(number)
        file = work.folder / f"teacher{number}.safetensors"
        save_file(load_network(work.small).state_dict(), file)
        options += ["--weights", file]
    return options


@pytest.fixture
def command(work: Work, images: Path, weights: list[object]) -> list[object]:
    given = ["--data", images, "--size", 6, "--epochs", 4, "--batch-size", 8, "--learning-rate", 0.05]
    return ["merge", work.small, work.small, *weights, *given, "--out", work.out]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


class TestMerge:
    def test_end_to_end(self, work: Work, command: list[object]) -> None:
        report, page, picture = (work.folder / name for name in ("m.json", "m.html", "m.png"))
        output = work.good(*command, "--json", report, "--html", page, "--picture", picture)
        assert f"saved {work.out}" in output
        assert "from 2" in output
        merged = load_network(work.small, weights=work.out).eval()
        with safe_open(work.out, "pt") as file:
            assert file.metadata()["merged"] == f"{work.small}, {work.small}"
            assert file.metadata()["pyassemble"] == pyassemble.__version__
        document = json.loads(report.read_text())
        assert document["format"] == "pyassemble.merge-report"
        assert [row["name"] for row in document["accuracy"]] == [
            f"teacher 1: {work.small}",
            f"teacher 2: {work.small}",
            "mean of their outputs",
            "wide network, importance learned",
            "compressed",
            "merged",
        ]
        (gates,) = document["gates"]
        assert (gates["group"], gates["unit"], sum(gates["kept"])) == ("0", "channel", 4)
        assert isinstance(merged[0], nn.Conv2d)
        assert [entry["stage"] for entry in document["history"]].count("fine-tuning") == 2
        assert document["run"]["training images"] == 36
        with Image.open(picture) as drawn:
            assert drawn.size[0] > 500
        text = page.read_text()
        assert not re.search(r"(src|href)=\"http|url\(http|@import", text)
        ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
        assert all(row["name"] in text for row in document["accuracy"])
        work.good("report", report, "--out", work.folder / "again.html")
        assert (work.folder / "again.html").read_text() == text

    def test_the_same_command_gives_the_same_bits(self, work: Work, command: list[object]) -> None:
        work.good(*command)
        first = load_file(work.out)
        assert not (work.folder / "out.safetensors.merging").exists()
        work.good(*command, "--force", "--checkpoint", work.folder / "other")
        assert same(load_file(work.out), first)
        assert (work.folder / "other" / "merge.json").exists()

    def test_within_a_bound_of_memory(self, work: Work, command: list[object]) -> None:
        report = work.folder / "m.json"
        work.good(*command, "--memory", 1.5, "--json", report)
        document = json.loads(report.read_text())
        assert document["run"]["bound of memory"] == 1.5
        learning = [entry for entry in document["history"] if entry["stage"] == "importance"]
        assert all("groups" in entry for entry in learning)
        assert "accepted: a finite number, at least" in work.error(*command, "--force", "--memory", 0.5)

    def test_goes_on(self, work: Work, command: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
        work.good(*command, "--checkpoint", work.folder / "whole")
        whole = load_file(work.out)
        real = pyassemble.train_merged

        def interrupted(*arguments: object, **options: object) -> object:
            def stop(entry: dict[str, object]) -> None:
                if entry["epoch"] == 1:
                    raise KeyboardInterrupt

            return real(*arguments, **options, after_epoch=stop)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(pyassemble, "train_merged", interrupted)
            result = work.run(*command, "--force")
        folder = work.folder / "out.safetensors.merging"
        assert result.exit_code == 130
        assert result.stderr == f"interrupted: finished epochs are in {folder}; the same command goes on there\n"
        work.good(*command, "--force")
        assert same(load_file(work.out), whole)

    def test_json_alone_on_stdout(self, work: Work, command: list[object], images: Path) -> None:
        document = json.loads(work.good(*command, "--json", "-", "--validation", images, "--augment", "flip-crop"))
        assert document["run"]["validation images"] == 40

    def test_factories_weights_and_three_networks(self, work: Work, images: Path) -> None:
        options = ["--pretrained", "--data", images, "--size", 6, "--epochs", 2, "--out", work.out, "--augment", "none"]
        assert "from 3" in work.good("merge", work.small, work.small, work.small, *options)

    def test_choices_are_those_of_the_library(self) -> None:
        from pyassemble.cli.merge import Precision

        assert tuple(Precision) == PRECISIONS
        assert "merge" in {command.callback.__name__ for command in cli.app.registered_commands if command.callback}


class TestErrors:
    def test_networks_and_weights(self, work: Work, command: list[object], images: Path) -> None:
        rest = command[command.index("--data") :]
        nets = ["merge", work.small, work.small]
        assert "accepted: two or more networks" in work.error("merge", work.small, "--pretrained", *rest)
        assert "no trained weights to merge" in work.error(*nets, *rest)
        assert "2 networks, 1 --weights" in work.error(*nets, "--weights", work.weights, *rest)
        assert "exclude each other" in work.error(*nets, "--weights", work.weights, "--pretrained", *rest)
        assert "has shape" in work.error("merge", work.small, work.large, "--pretrained", *rest)
        assert not work.out.exists()

    def test_images(self, work: Work, command: list[object], images: Path) -> None:
        place = command.index("--data")
        without_size = [*command[:place], *command[place + 4 :], "--data", images]
        assert "give it with --size" in work.error(*without_size)
        assert "no such file or folder" in work.error(*command, "--data", work.folder / "none")
        assert "--size 0; accepted: at least 1" in work.error(*command, "--size", 0)
        assert "does not take an example input" in work.error(*command, "--size", 2)
        for number in range(3):  # a third class
            (images / "unknown").mkdir(exist_ok=True)
            Image.new("RGB", (6, 6)).save(images / "unknown" / f"{number}.png")
        assert "for num_classes=2" in work.error(*command)

    def test_outputs(self, work: Work, command: list[object]) -> None:
        assert "unknown page format '.htm'" in work.error(*command, "--html", work.folder / "a.htm")
        assert "both name" in work.error(*command, "--json", work.out)
        work.out.write_bytes(b"")
        assert "--force overwrites it" in work.error(*command)

    def test_devices(self, work: Work, command: list[object]) -> None:
        assert "--device tpux; accepted: cpu" in work.error(*command, "--device", "tpux")
        if not torch.cuda.is_available():
            assert "no CUDA device here" in work.error(*command, "--device", "cuda")
