"""Labelled images as callers have them: a tuple of tensors, a Dataset, or a DataLoader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)
from torch.utils.data import TensorDataset as _Tensors

from pyassemble.errors import ArgumentTypeError, MismatchError, OutOfRangeError, TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

LabelledImages = Dataset[Any] | DataLoader[Any] | tuple[Tensor, Tensor]
"""What yields (image, label): images float (C, H, W), labels a class number."""

BATCH = 64


@dataclass(frozen=True)
class Data:
    """A map-style dataset and how to read batches of it.

    Attributes:
        name: What messages call it, "train" or "validation".
        dataset: Of (image, label).
        batch_size: Images a batch.
        collate: The caller's way to make a batch of items, if any.
        workers: Processes that read.
        worker_init: The caller's function for them, if any.
    """

    name: str
    dataset: Dataset[Any]
    batch_size: int = BATCH
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0
    worker_init: Callable[[int], None] | None = None

    @classmethod
    def of(cls, data: LabelledImages, name: str, *, batch_size: int | None = None) -> Data:
        """Takes what a caller passed.

        Args:
            data: A tuple (images, labels) of tensors, a map-style Dataset, or a DataLoader over one, of which batch
                size, collation and workers are kept; the order is drawn anew.
            name: What messages call it.
            batch_size: Images a batch; the DataLoader's own, or 64, by default.

        Returns:
            The data.

        Raises:
            ArgumentTypeError: Something else, or without a length.
            TensorError: Nothing in it, or tensors that do not belong together.
        """
        if batch_size is not None and batch_size < 1:
            raise OutOfRangeError(f"batch_size {batch_size}; accepted: at least 1")
        if isinstance(data, DataLoader):
            found = cls(name, data.dataset, data.batch_size or BATCH, data.collate_fn, data.num_workers)
            found = replace(found, worker_init=data.worker_init_fn)
        elif isinstance(data, tuple):
            found = cls(name, _tensors(data, name))
        elif isinstance(data, Dataset):
            found = cls(name, data)
        else:
            raise ArgumentTypeError(
                f"{name} is a {type(data).__name__}; accepted: a tuple (images, labels) of tensors, a Dataset or a "
                "DataLoader that yields (image, label)"
            )
        if isinstance(found.dataset, IterableDataset) or not hasattr(found.dataset, "__len__"):
            raise ArgumentTypeError(
                f"{name} ({type(found.dataset).__name__}) has no length; accepted: a map-style Dataset"
            )
        if len(found) == 0:
            raise TensorError(f"{name} is empty; accepted: at least one image")
        return found if batch_size is None else replace(found, batch_size=batch_size)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def halves(self, generator: torch.Generator) -> tuple[Data, Data]:
        """Two random halves, the first one larger by one where the number is odd.

        Args:
            generator: On the CPU.

        Returns:
            Training half and validation half.

        Raises:
            TensorError: Fewer than two images.
        """
        if len(self) < 2:
            raise TensorError(f"{self.name} has {len(self)} image; accepted: at least two, one for each half")
        order = torch.randperm(len(self), generator=generator).tolist()
        middle = (len(order) + 1) // 2
        return (
            replace(self, dataset=Subset(self.dataset, order[:middle])),
            replace(self, name=f"half of {self.name}", dataset=Subset(self.dataset, order[middle:])),
        )

    def check_classes(self, other: Data) -> None:
        """Refuse data whose labels name other classes than these, where both datasets name theirs (``classes``).

        Two image folders of which one lacks a class have labels that look alike and mean different things. Where the
        names differ and the labels do not, a dataset without ``classes`` is taken by its numbers.

        Raises:
            MismatchError: They do; the message names what only one of them has, or the first that stands elsewhere.
        """
        mine, theirs = _class_names(self.dataset), _class_names(other.dataset)
        if mine is None or theirs is None or mine == theirs:
            return
        for one, names, without in ((self, mine, theirs), (other, theirs, mine)):
            lacking = [name for name in names if name not in without]
            if lacking:
                rest = other if one is self else self
                raise MismatchError(
                    f"{one.name} has {len(names)} classes and {rest.name} {len(without)}; only {one.name} has "
                    f"{', '.join(lacking[:5])}{', …' if len(lacking) > 5 else ''} "
                    "(datasets without `classes` are taken by the numbers of their labels)"
                )
        for at, (name, its) in enumerate(zip(mine, theirs, strict=False)):
            if name != its:
                raise MismatchError(f"label {at} is {name} in {self.name} and {its} in {other.name}")
        raise MismatchError(f"{self.name} has {len(mine)} classes and {other.name} {len(theirs)}, some of one name")

    def first(self, count: int) -> Data:
        """The first ``count`` images, all if there are fewer."""
        return replace(self, dataset=Subset(self.dataset, range(min(count, len(self)))))

    def drawn(self, count: int, generator: torch.Generator) -> Data:
        """``count`` random images without replacement, all if there are fewer; in the order of the dataset.

        Datasets are often sorted by class, so that their first images are no sample of them.
        """
        chosen = torch.randperm(len(self), generator=generator)[:count].sort().values.tolist()
        return replace(self, dataset=Subset(self.dataset, chosen))

    def batches(
        self,
        num_classes: int,
        device: torch.device,
        *,
        shuffle: torch.Generator | None = None,
        accelerator: Accelerator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Goes once through the images.

        Args:
            num_classes: Labels must lie in 0..num_classes-1.
            device: Where the batches go.
            shuffle: Generator of the order; the dataset's own order without.
            accelerator: Where several processes share the images.

        Yields:
            Images (B, C, H, W) and labels (B,) int64 on the device.

        Raises:
            TensorError: A batch that is no images and class numbers, or a label that is no class; the message says how
                many classes were expected.
        """
        for batch in self._loader(shuffle, accelerator):
            images, labels = _checked(batch, self.name, num_classes)
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    def steps(self, accelerator: Accelerator | None = None) -> int:
        """Batches that :meth:`batches` yields in each process."""
        processes = 1 if accelerator is None else accelerator.num_processes
        batches = -(-len(self) // self.batch_size)
        return -(-batches // processes)

    def _loader(self, shuffle: torch.Generator | None, accelerator: Accelerator | None) -> Any:
        order = (
            SequentialSampler(range(len(self)))
            if shuffle is None
            else RandomSampler(range(len(self)), generator=shuffle)
        )
        # Without a generator of its own a loader draws from the global one, even in order.
        own = torch.Generator().manual_seed(0) if shuffle is None else shuffle
        whole = _as_tensors(self.dataset)
        loader: DataLoader[Any]
        if whole is not None and self.collate is None:
            # One indexing a batch, in place of one an image and a copy of them together.
            batches = BatchSampler(order, self.batch_size, drop_last=False)
            loader = DataLoader(whole, sampler=batches, batch_size=None, generator=own)
        else:
            loader = DataLoader(
                self.dataset,
                self.batch_size,
                sampler=order,
                collate_fn=self.collate,
                num_workers=self.workers,
                worker_init_fn=self.worker_init,
                generator=own,
            )
        if accelerator is None or accelerator.num_processes == 1:
            return loader
        return accelerator.prepare_data_loader(loader, device_placement=False)


class _Chosen(Dataset[Any]):
    """Rows of tensors; takes a list of row numbers, as a sampler of batches gives."""

    def __init__(self, tensors: tuple[Tensor, ...], rows: Tensor | None) -> None:
        self._tensors, self._rows = tensors, rows

    def __len__(self) -> int:
        return len(self._tensors[0] if self._rows is None else self._rows)

    def __getitem__(self, chosen: list[int]) -> tuple[Tensor, ...]:
        rows = torch.tensor(chosen)
        if self._rows is not None:
            rows = self._rows[rows]
        return tuple(tensor[rows.to(tensor.device)] for tensor in self._tensors)


def _as_tensors(dataset: Dataset[Any]) -> _Chosen | None:
    """A dataset of whole tensors, or a part of one, for reading a batch at a time."""
    rows: Tensor | None = None
    while isinstance(dataset, Subset):
        inner = torch.tensor(list(dataset.indices))
        rows = inner if rows is None else inner[rows]
        dataset = dataset.dataset
    return _Chosen(dataset.tensors, rows) if type(dataset) is _Tensors else None


def _tensors(data: tuple[Any, ...], name: str) -> _Tensors:
    if len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        kinds = ", ".join(type(part).__name__ for part in data)
        raise ArgumentTypeError(f"{name} is a tuple of ({kinds}); accepted: (images, labels), two tensors")
    images, labels = data
    if images.ndim == 0 or labels.ndim != 1 or len(images) != len(labels):
        raise TensorError(
            f"{name}: images {tuple(images.shape)}, labels {tuple(labels.shape)}; accepted: (N, C, H, W) and (N,)"
        )
    return _Tensors(images, labels)


def _checked(batch: Any, name: str, num_classes: int) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise TensorError(f"{name} yields {type(batch).__name__}; accepted: pairs of images and labels")
    images, labels = batch
    if images.ndim != 4 or not images.is_floating_point():
        raise TensorError(
            f"{name}: images {tuple(images.shape)} of {images.dtype}; accepted: floating-point (B, C, H, W)"
        )
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise TensorError(
            f"{name}: labels {tuple(labels.shape)} of {labels.dtype} for {len(images)} images; accepted: one class "
            "number an image"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise TensorError(
            f"{name}: label {low if low < 0 else high} among labels {tuple(labels.shape)}; accepted: 0 to "
            f"{num_classes - 1}, for num_classes={num_classes}"
        )
    return images, labels.long()


def _class_names(dataset: Any) -> list[str] | None:
    """Names of the classes in the order of their labels, as torchvision's datasets give them; None without any."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    return [str(name) for name in names] if isinstance(names, list | tuple) else None
