"""``pyassemble score``: the table, what is kept, and how errors read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

import pyassemble as pa
from pyassemble.network.sources import load_network
from pyassemble.training.image_files import Preprocessing, read_images
from tests.cli.pictures import NETWORKS, make_pictures

if TYPE_CHECKING:
    from tests.cli.work import Work


@pytest.fixture(autouse=True)
def _files(work: Work) -> None:
    (work.folder / "blocks.py").write_text(NETWORKS)
    make_pictures(work.folder / "pictures")


def arguments(work: Work, *names: str) -> list[object]:
    networks = [f"{work.folder}/blocks.py:{name}" for name in names]
    return ["score", *networks, "--data", work.folder / "pictures", "--size", 8, "--images", 10]


def test_is_the_librarys_score(work: Work) -> None:
    out = work.folder / "scores.json"
    table = work.good(*arguments(work, "wide", "deep"), "--seed", 3, "--out", out)
    images, _ = read_images(str(work.folder / "pictures"), Preprocessing(3, 8, 8)).tensors(10)
    rows = json.loads(out.read_text())["networks"]
    for name in ("wide", "deep"):
        torch.manual_seed(3)
        network = load_network(f"{work.folder}/blocks.py:{name}")
        row = rows[f"{work.folder}/blocks.py:{name}"]
        assert row["score"] == pytest.approx(pa.score(network, images, seed=3), abs=1e-5)
        assert row["parameters"] == sum(p.numel() for p in network.parameters())
        assert f"{row['score']:.4f}" in table
    assert "place by size" in table


def test_statistics_of_the_images(work: Work) -> None:
    out = work.folder / "scores.json"
    data = ["--data", work.folder / "pictures", "--size", 8, "--images", 10]
    work.good("score", work.small, *data, "--out", out, "--statistics", "batch")
    document = json.loads(out.read_text())
    assert document["conditions"]["statistics"] == "batch"
    images, _ = read_images(str(work.folder / "pictures"), Preprocessing(3, 8, 8)).tensors(10)
    torch.manual_seed(0)
    network = load_network(work.small)
    found = document["networks"][work.small]["score"]
    assert found == pytest.approx(pa.score(network, images, statistics="batch"), abs=1e-5)
    assert found != pytest.approx(pa.score(network, images), abs=1e-3)


def test_goes_on_where_it_was(work: Work) -> None:
    out = work.folder / "scores.json"
    work.good(*arguments(work, "wide"), "--out", out)
    document = json.loads(out.read_text())
    document["networks"][f"{work.folder}/blocks.py:wide"]["score"] = 12.5  # shows that it is not computed again
    out.write_text(json.dumps(document))
    assert "12.5000" in work.good(*arguments(work, "wide", "deep"), "--out", out)
    assert len(json.loads(out.read_text())["networks"]) == 2
    assert "with seed 0, now 1; --force" in work.error(*arguments(work, "wide"), "--out", out, "--seed", 1)
    assert "12.5000" not in work.good(*arguments(work, "wide"), "--out", out, "--seed", 1, "--force")
    out.write_text("{}")
    assert "holds no scores; --force replaces it" in work.error(*arguments(work, "wide"), "--out", out)


def test_errors(work: Work) -> None:
    assert "accepted: a folder" in work.error("score", "timm:resnet18", "--data", work.folder / "none")
    assert "knows no 'resnet1'" in work.error("score", "timm:resnet1", "--data", work.folder / "pictures")
    (work.folder / "empty").mkdir()
    assert "Accepted: a folder for each class" in work.error("score", "timm:resnet18", "--data", work.folder / "empty")
    wrong = ["score", f"{work.folder}/blocks.py:wide", "--data", work.folder / "pictures", "--channels", 2]
    assert "1 or 3 channels" in work.error(*wrong)
