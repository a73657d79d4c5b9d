"""Labelled images from folders, parquet files and torchvision's data sets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from pyassemble.errors import DataSpecError
from pyassemble.training.image_files import Preprocessing, read_images

if TYPE_CHECKING:
    from pathlib import Path

RGB = Preprocessing(3, 8, 8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def pictures(count: int, size: int = 8) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(count)]


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def expected(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - 0.5) / 0.25


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for number, pixels in enumerate(pictures(6)):
        folder = tmp_path / "data" / ("cat" if number < 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(pixels))
    return tmp_path / "data"


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": encoded(pixels), "path": None} for pixels in pictures(5)]
    pq.write_table(pa.table({"img": rows, "label": [0, 2, 1, 2, 0]}), tmp_path / "a.parquet")
    return tmp_path / "a.parquet"


def test_folders(folders: Path) -> None:
    found = read_images(str(folders), RGB)
    assert (len(found), found.classes) == (6, ["cat", "dog"])
    for i, pixels in enumerate(pictures(6)):
        image, label = found[i]
        torch.testing.assert_close(image, expected(pixels))
        assert label == int(i >= 2)


def test_parquet(parquet: Path) -> None:
    found = read_images(str(parquet), RGB)
    images, labels = found.tensors()
    torch.testing.assert_close(images, torch.stack([expected(pixels) for pixels in pictures(5)]))
    assert labels.tolist() == [0, 2, 1, 2, 0]
    assert found.classes == ["0", "1", "2"]
    assert found.tensors(2)[1].tolist() == [0, 2]


def test_torchvision(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(DataSpecError, match="Dataset not found or corrupted"):
        read_images(f"torchvision:CIFAR10:{tmp_path}", RGB)
    with pytest.raises(DataSpecError, match=r"with NAME one of .*CIFAR10"):
        read_images(f"torchvision:Cifar:{tmp_path}", RGB)
    with pytest.raises(DataSpecError, match="torchvision:NAME:FOLDER"):
        read_images("torchvision:CIFAR10", RGB)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 3), ("t10k", 2)):
        header = (2051).to_bytes(4) + count.to_bytes(4) + (28).to_bytes(4) * 2
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes((2049).to_bytes(4) + count.to_bytes(4) + bytes(range(count)))
    grey = Preprocessing(1, 28, 28, (0.5,), (0.5,))
    for split, count in (("train", 3), ("test", 2)):
        images, labels = read_images(f"torchvision:MNIST:{tmp_path}", grey, split=split).tensors()
        assert images.shape == (count, 1, 28, 28)
        assert labels.tolist() == list(range(count))


def test_resized_and_grey(parquet: Path) -> None:
    assert read_images(str(parquet), Preprocessing(1, 5, 7, (0.5,), (0.5,)))[0][0].shape == (1, 5, 7)


def test_bad_input(tmp_path: Path, parquet: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b.parquet").write_bytes(parquet.read_bytes()[:50])
    (tmp_path / "c.txt").write_text("")
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "d.parquet")
    pq.write_table(pa.table({"img": [b"no picture"], "label": [0]}), tmp_path / "e.parquet")
    pq.write_table(pa.table({"img": [b""], "label": ["cat"]}), tmp_path / "f.parquet")
    for name, words in [
        ("none", "no such file or folder; accepted: a folder"),
        ("empty", "a folder for each class"),
        ("b.parquet", "no readable parquet file"),
        ("c.txt", "accepted: a folder"),
        ("d.parquet", "has columns picture; accepted: img or image, and label"),
        ("f.parquet", "column label is string; accepted: class numbers"),
    ]:
        with pytest.raises(DataSpecError, match=words):
            read_images(str(tmp_path / name), RGB)
    with pytest.raises(DataSpecError, match="image 0 cannot be read"):
        read_images(str(tmp_path / "e.parquet"), RGB)[0]
    with pytest.raises(DataSpecError, match="split 'val'"):
        read_images(str(parquet), RGB, split="val")
    with pytest.raises(DataSpecError, match="1 or 3 channels"):
        Preprocessing(2, 8, 8)
