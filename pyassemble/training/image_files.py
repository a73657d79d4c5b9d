"""Labelled images named by a text: a folder of class folders, a parquet file, or one of torchvision's data sets.

Accepted forms: ``FOLDER`` (one folder a class), ``FILE.parquet`` in the layout that Hugging Face ``datasets`` writes
(column ``img`` or ``image`` of {bytes, path}, column ``label``), ``torchvision:NAME:FOLDER`` (already downloaded).
"""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyassemble.errors import DataSpecError, MissingLibraryError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL.Image import Image

ACCEPTED = "a folder with a folder of images for each class, FILE.parquet, or torchvision:NAME:FOLDER"
SPLITS = ("train", "test")
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMN = "label"


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to what a network takes.

    Attributes:
        channels: 3 for RGB, 1 for grey.
        height: Of the result; pictures of another size are resized, bilinear with antialiasing.
        width: The same.
        mean: Of each channel, for pixels in [0, 1].
        std: The same.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or len(self.mean) != self.channels or len(self.std) != self.channels:
            raise DataSpecError(
                f"{self.channels} channels, mean {self.mean}, std {self.std}; accepted: 1 or 3 channels and as many "
                "means and deviations"
            )

    def __call__(self, picture: Image) -> Tensor:
        """(channels, height, width) float32."""
        from torchvision.transforms import functional as TF

        picture = picture.convert("RGB" if self.channels == 3 else "L")
        if picture.size != (self.width, self.height):
            picture = TF.resize(picture, [self.height, self.width], antialias=True)
        pixels: Tensor = TF.normalize(TF.to_tensor(picture), list(self.mean), list(self.std))
        return pixels


class LabelledFiles(Dataset[tuple[Tensor, int]]):
    """Pictures that are decoded when asked for.

    Args:
        open_picture: The i-th picture.
        labels: Class number of each.
        classes: Names of the classes.
        preprocessing: From a picture to a tensor.
    """

    def __init__(
        self,
        open_picture: Callable[[int], Image],
        labels: Sequence[int],
        classes: Sequence[str],
        preprocessing: Preprocessing,
    ) -> None:
        self._open, self._labels, self._preprocessing = open_picture, list(labels), preprocessing
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        try:
            picture = self._preprocessing(self._open(i))
        except (OSError, ValueError) as error:
            raise DataSpecError(f"image {i} cannot be read: {type(error).__name__}: {error}") from error
        return picture, self._labels[i]

    def tensors(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first ``count`` images and labels in memory, all by default: (N, C, H, W) float32 and (N,) int64."""
        items = [self[i] for i in range(len(self) if count is None else min(count, len(self)))]
        return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def read_images(text: str, preprocessing: Preprocessing, *, split: str = "train") -> LabelledFiles:
    """Opens the images that a text names.

    Args:
        text: One of the forms above.
        preprocessing: From a picture to a tensor.
        split: "train" or "test", of torchvision's data sets; the other forms have none.

    Returns:
        A dataset of (image, label).

    Raises:
        DataSpecError: Nothing is there, or something else.
        MissingLibraryError: A parquet file without pyarrow.
    """
    if split not in SPLITS:
        raise DataSpecError(f"split {split!r}; accepted: {', '.join(SPLITS)}")
    if text.startswith("torchvision:"):
        return _from_torchvision(text, preprocessing, split)
    path = Path(text)
    if path.is_dir():
        return _from_folders(path, preprocessing)
    if path.suffix == ".parquet" and path.is_file():
        return _from_parquet(path, preprocessing)
    missing = "" if path.exists() else "no such file or folder; "
    raise DataSpecError(f"data {text!r}: {missing}accepted: {ACCEPTED}")


def _from_folders(folder: Path, preprocessing: Preprocessing) -> LabelledFiles:
    from PIL import Image
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataSpecError(f"{folder}: {str(error).splitlines()[0]} Accepted: a folder for each class") from error

    def opened(i: int) -> Image.Image:
        with Image.open(found.samples[i][0]) as picture:
            picture.load()
            return picture

    return LabelledFiles(opened, found.targets, found.classes, preprocessing)


def _from_parquet(file: Path, preprocessing: Preprocessing) -> LabelledFiles:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingLibraryError(
            f"{file} is read with pyarrow, which is not installed: pip install pyarrow"
        ) from error
    from PIL import Image

    try:
        table = parquet.read_table(file)
    except (ArrowException, OSError) as error:
        raise DataSpecError(f"{file} is no readable parquet file: {str(error).splitlines()[0]}") from error
    column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if column is None or LABEL_COLUMN not in table.column_names:
        raise DataSpecError(
            f"{file} has columns {', '.join(table.column_names)}; accepted: {' or '.join(IMAGE_COLUMNS)}, and "
            f"{LABEL_COLUMN}"
        )
    images, labels = table[column], table[LABEL_COLUMN].to_pylist()
    if not all(isinstance(label, int) for label in labels):
        raise DataSpecError(f"{file}: column {LABEL_COLUMN} is {table[LABEL_COLUMN].type}; accepted: class numbers")

    def opened(i: int) -> Image.Image:
        row = images[i].as_py()
        content = row.get("bytes") if isinstance(row, dict) else row
        if not isinstance(content, bytes):
            raise ValueError(f"column {column} holds no bytes")
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            return picture

    names = [str(number) for number in range(max(labels, default=-1) + 1)]
    return LabelledFiles(opened, labels, names, preprocessing)


def _from_torchvision(text: str, preprocessing: Preprocessing, split: str) -> LabelledFiles:
    from torchvision import datasets

    _, name, folder = (*text.split(":", 2), "", "")[:3]
    kinds = {entry: getattr(datasets, entry) for entry in datasets.__all__}
    known = [entry for entry, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Dataset)]
    if name not in known or not folder:
        raise DataSpecError(f"data {text!r}: accepted: torchvision:NAME:FOLDER with NAME one of {', '.join(known)}")
    kind: Any = kinds[name]
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": folder}
    if "train" in parameters:
        options["train"] = split == "train"
    elif "split" in parameters:
        options["split"] = split
    if "download" in parameters:
        options["download"] = False
    try:
        found = kind(**options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        raise DataSpecError(f"data {text!r}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    labels = getattr(found, "targets", None)
    if labels is None:
        labels = getattr(found, "labels", None)
    if labels is None:
        labels = [found[i][1] for i in range(len(found))]
    labels = [int(label) for label in labels]
    classes = getattr(found, "classes", None) or [str(number) for number in range(max(labels, default=-1) + 1)]
    return LabelledFiles(lambda i: found[i][0], labels, classes, preprocessing)
