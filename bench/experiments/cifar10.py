"""CIFAR-10 as a user may have it on disk, read into one tensor: parquet, torchvision's folder, or image folders."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

Encoded = TypeVar("Encoded", bytes, Path)
SIZE = 32
SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Images:
    """Pixels as they are on disk and their classes."""

    pixels: Tensor
    """(N, 3, 32, 32) uint8, channels-last in memory."""
    labels: Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> Images:
        if count > len(self):
            raise ValueError(f"{count} images wanted, {len(self)} there")
        return Images(self.pixels[:count], self.labels[:count])

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))


class Normalize:
    """uint8 pixels to float32 with the given mean and deviation of each channel in [0, 1]."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.scale = torch.tensor([1 / (255 * s) for s in std])[:, None, None]
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale.to(pixels.device) + self.shift.to(pixels.device)


@lru_cache(maxsize=8)
def read(folder: Path, split: str, limit: int | None = None) -> Images:
    """Reads ``limit`` images of the split ("train" or "test") found in a folder, all of them by default.

    Parquet rows are taken in file order (Hugging Face's and ours are shuffled); folders, which are sorted by class,
    in a fixed random order.
    """
    for reader in (_read_parquet, _read_torchvision, _read_folders):
        found = reader(folder, split, limit)
        if found is not None:
            return found
    raise FileNotFoundError(
        f"{folder}: no CIFAR-10 {split} images here. Accepted: {split}*.parquet with columns img or image (bytes) and "
        f"label; torchvision's cifar-10-batches-py; {split}/CLASS/*.png"
    )


def _read_parquet(folder: Path, split: str, limit: int | None) -> Images | None:
    files = sorted(path for name in SPLIT_NAMES[split] for path in folder.glob(f"{name}*.parquet"))
    if not files:
        return None
    from pyarrow import parquet

    encoded: list[bytes] = []
    labels: list[int] = []
    for file in files:
        table = parquet.read_table(file)
        image_column = _column(table.column_names, ("img", "image"), file)
        label_column = _column(table.column_names, ("label", "labels"), file)
        encoded += [row["bytes"] for row in table.slice(0, limit)[image_column].to_pylist()]
        labels += table.slice(0, limit)[label_column].to_pylist()
    return _decoded(encoded[:limit], labels[:limit], _from_bytes)


def _column(names: list[str], known: tuple[str, ...], file: Path) -> str:
    for name in known:
        if name in names:
            return name
    raise ValueError(f"{file}: columns {names}, none of {known} among them")


def _read_torchvision(folder: Path, split: str, limit: int | None) -> Images | None:
    root = folder.parent if folder.name == "cifar-10-batches-py" else folder
    if not (root / "cifar-10-batches-py").is_dir():
        return None
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(root), train=split == "train", download=False)
    order = _fixed_order(len(data.targets), limit)
    return Images(_channels_last(data.data[order]), torch.tensor(data.targets)[order])


def _read_folders(folder: Path, split: str, limit: int | None) -> Images | None:
    root = next((folder / name for name in SPLIT_NAMES[split] if (folder / name).is_dir()), None)
    if root is None:
        return None
    classes = sorted(path for path in root.iterdir() if path.is_dir())
    found = [
        (file, number)
        for number, path in enumerate(classes)
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        return None
    chosen = [found[i] for i in _fixed_order(len(found), limit)]
    return _decoded([file for file, _ in chosen], [number for _, number in chosen], _from_file)


def _fixed_order(count: int, limit: int | None) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(count)[:limit]


def _decoded(encoded: Sequence[Encoded], labels: Sequence[int], decode: Callable[[Encoded], Pixels]) -> Images:
    pixels = np.empty((len(encoded), SIZE, SIZE, 3), np.uint8)
    for row, one in zip(pixels, encoded, strict=True):
        row[:] = decode(one)
    return Images(_channels_last(pixels), torch.tensor(labels, dtype=torch.int64))


def _from_bytes(encoded: bytes) -> Pixels:
    with Image.open(io.BytesIO(encoded)) as image:
        return _as_array(image)


def _from_file(path: Path) -> Pixels:
    with Image.open(path) as image:
        return _as_array(image)


def _as_array(image: Image.Image) -> Pixels:
    rgb = image.convert("RGB")
    # An image folder may hold any size; the networks here are made for 32×32.
    return np.asarray(rgb if rgb.size == (SIZE, SIZE) else rgb.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _channels_last(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)
