"""The transfer experiment: how it reads data, keeps runs, reports, and its smallest form on the real data."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "bench" / "experiments"
SHARED = Path(os.environ.get("PYASSEMBLE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(autouse=True)
def experiments_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


@pytest.fixture
def pictures() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)


def png(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


class TestReading:
    @pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "labels")])
    def test_parquet(self, tmp_path: Path, pictures: Any, image: str, label: str) -> None:
        pa = pytest.importorskip("pyarrow")
        from cifar10 import read
        from pyarrow import parquet

        rows = [{"bytes": png(p), "path": None} for p in pictures]
        for part, piece in enumerate((slice(0, 4), slice(4, 6))):
            table = pa.table({image: rows[piece], label: list(range(6))[piece]})
            parquet.write_table(table, tmp_path / f"train-0000{part}-of-00002.parquet")
        images = read(tmp_path, "train", 5)
        assert torch.equal(images.pixels, torch.from_numpy(pictures[:5]).permute(0, 3, 1, 2))
        assert images.labels.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(FileNotFoundError, match="test"):
            read(tmp_path, "test")

    def test_image_folders(self, tmp_path: Path, pictures: Any) -> None:
        from cifar10 import read

        for number, picture in enumerate(pictures):
            folder = tmp_path / "val" / ("cat" if number < 3 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        (tmp_path / "val" / "cat" / "notes.txt").write_text("no image")
        images = read(tmp_path, "test")
        assert images.pixels.shape == (6, 3, 32, 32)
        assert sorted(images.labels.tolist()) == [0, 0, 0, 1, 1, 1]

    def test_torchvision_folder(self, tmp_path: Path, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import torchvision
        from cifar10 import read

        class Fake:
            data, targets = pictures, [5, 4, 3, 2, 1, 0]

            def __init__(self, root: str, train: bool, download: bool) -> None:
                assert root == str(tmp_path)
                assert not download

        (tmp_path / "cifar-10-batches-py").mkdir()
        monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
        images = read(tmp_path, "train")
        for pixels, label in zip(images.pixels, images.labels.tolist(), strict=True):
            assert torch.equal(pixels, torch.from_numpy(pictures[5 - label]).permute(2, 0, 1))

    def test_normalize(self) -> None:
        from cifar10 import Normalize

        normal = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
        assert normal[0, :, 0, 0].tolist() == pytest.approx([1.0, 3.0, 1.0])


class TestNetworks:
    def test_parameters_of_the_published_networks(self) -> None:
        from cifar_resnet import CifarResNet

        assert sum(p.numel() for p in CifarResNet(20).parameters()) == 269_722
        with pytest.raises(ValueError, match="21"):
            CifarResNet(21)

    @pytest.mark.parametrize("name", ["resnet18", "regnetx_002", "lcnet_050"])
    def test_strides_are_taken_from_the_front(self, name: str) -> None:
        import timm
        from small_images import keep_resolution

        network = timm.create_model(name, num_classes=10)
        assert keep_resolution(network, final=4) is network
        assert network.training
        assert network.eval().forward_features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (4, 4)


class TestReport:
    def row(self, **changes: Any) -> Any:
        from transfer_runs import Row

        numbers = dict.fromkeys(("accuracy", "loss", "seconds", "transfer_seconds", "similarity", "directed"), 0.5)
        numbers |= dict.fromkeys(("coverage", "source_accuracy"), 0.5)
        counts = dict.fromkeys(("source_parameters", "target_parameters", "images", "test_images", "epochs"), 2)
        counts |= dict.fromkeys(("batch_size", "tuning_images", "threads"), 2)
        names = dict.fromkeys(("precision", "device", "torch", "timm", "commit"), "x")
        row = Row(
            **numbers,  # type: ignore[arg-type]
            **counts,  # type: ignore[arg-type]
            **names,  # type: ignore[arg-type]
            workers=1,
            budget_minutes=1.0,
            section="grid",
            target="t",
            source="random",
            scenario="",
            seed=0,
            epoch=0,
        )
        return replace(row, **changes)

    def run_rows(self, accuracies: list[float], **changes: Any) -> list[Any]:
        return [
            self.row(epoch=e, accuracy=a, seconds=10.0 * e, transfer_seconds=1.0, **changes)
            for e, a in enumerate(accuracies)
        ]

    def test_time_to_the_accuracy_of_random_initialization(self) -> None:
        from transfer_report import time_ratio

        base = self.run_rows([0.1, 0.3, 0.5])
        assert time_ratio(self.run_rows([0.6, 0.7, 0.8]), base, 10.0) == pytest.approx(1 / 20)
        assert time_ratio(self.run_rows([0.4, 0.6, 0.8]), base, 10.0) == pytest.approx((1 + 5) / 20)
        assert math.isinf(time_ratio(self.run_rows([0.1, 0.2, 0.4]), base, 10.0))

    def test_runs_survive_and_are_reported(self, tmp_path: Path) -> None:
        from rich.console import Console
        from transfer_report import pairs_of, write_report
        from transfer_runs import RunFile

        file = RunFile(tmp_path / "runs.csv")
        for target, level in (("t", 0.125), ("u", 0.25)):
            for seed in range(2):
                file.append(self.run_rows([0.1, level, 2 * level], target=target, seed=seed))
                for number in range(3):
                    start = {"source": f"s{number}", "scenario": "elsewhere", "similarity": 0.3 * (number + 1)}
                    rising = [0.2, level * (1 + number), 2 * level]
                    file.append(self.run_rows(rising, target=target, seed=seed, **start))
        again = RunFile(tmp_path / "runs.csv")
        assert again.rows == file.rows
        gains = {(p.target, p.source): p.gain for p in pairs_of(again)}
        assert gains["t", "s2"] == pytest.approx(3.0)
        assert gains["u", "random"] == 1.0
        write_report(again, tmp_path, Console(file=io.StringIO()))
        summary = (tmp_path / "summary.md").read_text()
        assert "similarity, symmetric | 6 | +1.00" in summary
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["plot.png", "runs.csv", "summary.csv", "summary.md"]


@pytest.mark.slow
def test_smoke_on_the_real_data(tmp_path: Path) -> None:
    if not (SHARED / "data" / "cifar10").is_dir():
        pytest.skip(f"no CIFAR-10 at {SHARED}/data/cifar10; PYASSEMBLE_SHARED names another folder")
    pytest.importorskip("pyarrow")
    from transfer_report import pairs_of
    from transfer_runs import RunFile

    # This interpreter's import path, so that the script finds the package that is under test.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = str(EXPERIMENTS / "transfer_cifar10.py")
    command = [sys.executable, script, "--smoke", "--data", str(SHARED / "data"), "--out", str(tmp_path)]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    pairs = {(p.section, p.target, p.source, p.scenario): p for p in pairs_of(RunFile(tmp_path / "runs.csv"))}
    onto_itself = pairs["grid", "resnet20_cifar", "resnet20_cifar", "elsewhere"]
    assert onto_itself.accuracies[0, 0] == onto_itself.source_accuracy > 0.7
    assert onto_itself.coverage == 1.0
    assert {"summary.md", "summary.csv", "plot.png", "runs.csv"} <= {p.name for p in tmp_path.iterdir()}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "every planned run is in runs.csv already" in again.stdout
