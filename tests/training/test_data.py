"""Labelled images in all the forms that callers have them in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pyassemble.errors import ArgumentTypeError, MismatchError, OutOfRangeError, PyAssembleError, TensorError
from pyassemble.training.data import Data

CPU = torch.device("cpu")


def tensors(count: int = 10) -> tuple[Tensor, Tensor]:
    return torch.arange(count * 3.0).reshape(count, 3, 1, 1), torch.arange(count) % 4


class Pairs(Dataset[Any]):
    """A dataset of a user's own: items are an image and an int."""

    def __init__(self, count: int = 10) -> None:
        self.images, self.labels = tensors(count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i], int(self.labels[i])


def everything(data: Data, **options: Any) -> list[tuple[list[float], list[int]]]:
    return [(x[:, 0, 0, 0].tolist(), y.tolist()) for x, y in data.batches(4, CPU, **options)]


@pytest.mark.parametrize(
    "data",
    [tensors(), Pairs(), TensorDataset(*tensors()), DataLoader(Pairs(), 4), DataLoader(TensorDataset(*tensors()), 4)],
    ids=["tuple", "dataset", "tensor dataset", "loader", "loader of tensors"],
)
def test_every_form_gives_the_same_batches(data: Any) -> None:
    images, labels = tensors()
    found = Data.of(data, "train", batch_size=4)
    assert (len(found), found.steps()) == (10, 3)
    expected = [(images[i : i + 4, 0, 0, 0].tolist(), labels[i : i + 4].tolist()) for i in (0, 4, 8)]
    assert everything(found) == expected
    shuffled = [everything(found, shuffle=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert sorted(v for batch, _ in shuffled[0] for v in batch) == images[:, 0, 0, 0].tolist()
    one, other = found.halves(torch.Generator().manual_seed(0))
    parts = [v for half in (one, other) for batch, _ in everything(half) for v in batch]
    assert (len(one), len(other)) == (5, 5)
    assert sorted(parts) == images[:, 0, 0, 0].tolist() != parts
    assert len(one.first(3)) == 3
    assert everything(one.first(3))[0][0] == everything(one)[0][0][:3]


def test_a_loader_keeps_its_collation_and_size() -> None:
    def collate(items: list[Any]) -> tuple[Tensor, Tensor]:
        return -torch.stack([x for x, _ in items]), torch.tensor([y for _, y in items])

    found = Data.of(DataLoader(Pairs(), 3, collate_fn=collate), "train")
    assert found.batch_size == 3
    assert everything(found)[0][0] == [0.0, -3.0, -6.0]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([])


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        ([1, 2], ArgumentTypeError, "train is a list; accepted: a tuple"),
        ((torch.zeros(2), [1, 2]), ArgumentTypeError, r"tuple of \(Tensor, list\)"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(3)), TensorError, r"images \(2, 3, 4, 4\), labels \(3,\)"),
        ((torch.zeros(0, 3, 4, 4), torch.zeros(0).long()), TensorError, "train is empty"),
        (Pairs(0), TensorError, "train is empty"),
        (Endless(), ArgumentTypeError, r"train \(Endless\) has no length"),
    ],
)
def test_refused_at_once(data: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        Data.of(data, "train")
    assert isinstance(caught.value, PyAssembleError)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((torch.zeros(2, 3, 4, 4), torch.tensor([0, 4])), r"validation: label 4.*accepted: 0 to 3, for num_classes=4"),
        ((torch.zeros(2, 3, 4, 4), torch.tensor([0, -1])), "label -1"),
        ((torch.zeros(2, 3, 4, 4), torch.tensor([0.0, 1.0])), "one class number an image"),
        ((torch.zeros(2, 3, 4), torch.tensor([0, 1])), r"images \(2, 3, 4\)"),
        ((torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])), "torch.uint8; accepted: floating-point"),
        (torch.utils.data.TensorDataset(torch.zeros(3, 3, 4, 4)), "pairs of images and labels"),
    ],
)
def test_refused_when_read(data: Any, words: str) -> None:
    with pytest.raises(TensorError, match=words):
        everything(Data.of(data, "validation"))


def test_too_few() -> None:
    with pytest.raises(TensorError, match="train has 1 image; accepted: at least two"):
        Data.of(tensors(1), "train").halves(torch.Generator())
    with pytest.raises(OutOfRangeError, match="batch_size 0"):
        Data.of(tensors(1), "train", batch_size=0)


class _Named(TensorDataset):
    """Two images, and names for what their labels mean."""

    def __init__(self, *classes: str) -> None:
        super().__init__(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
        self.classes = list(classes)


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        (_Named("cat", "dog", "owl"), _Named("cat", "owl"), "train has 3 classes and validation 2; only train has dog"),
        (_Named("cat", "owl"), _Named("ant", "cat"), "only train has owl"),
        (_Named("cat"), Subset(_Named("cat", "dog"), [0]), "only validation has dog"),
        (_Named("cat", "owl"), _Named("owl", "cat"), "label 0 is cat in train and owl in validation"),
        (_Named("cat", "owl", "cat"), _Named("cat", "owl"), "train has 3 classes and validation 2, some of one name"),
    ],
)
def test_other_classes_are_refused(train: Any, validation: Any, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        Data.of(train, "train").check_classes(Data.of(validation, "validation"))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (_Named("cat", "owl"), DataLoader(Subset(_Named("cat", "owl"), [1]))),
        (_Named("cat", "owl"), (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))),
    ],
)
def test_the_same_classes_or_none_named_are_taken(train: Any, validation: Any) -> None:
    Data.of(train, "train").check_classes(Data.of(validation, "validation"))
