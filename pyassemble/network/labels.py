"""Labels of channels: which elements along a tensor's dimensions are the same channel, and which live and die together.

The labels of a tensor are an int64 tensor with as many dimensions, of size 1 along dimensions on which they do not
depend. Two relations grow between labels while a graph is walked: *the same channel* (two tensors that are added) and
*the same unit* (the channels of an attention head, of a group of a grouped convolution): what can only be kept or
dropped as a whole. Moving elements moves their labels, so the moving operations of torch are applied to the labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

#: Label of a number that all channels of a network share, for instance the mean over channels.
SHARED = -2


class Relation:
    """An equivalence relation on labels 0, 1, 2, …, given pair by pair and closed at the end."""

    def __init__(self) -> None:
        self._left: list[npt.NDArray[np.int64]] = []
        self._right: list[npt.NDArray[np.int64]] = []

    def relate(self, left: Tensor, right: Tensor) -> None:
        """Element by element, with broadcasting; SHARED is related to nothing."""
        a, b = (side.reshape(-1).numpy() for side in torch.broadcast_tensors(left, right))  # type: ignore[no-untyped-call]
        proper = (a >= 0) & (b >= 0) & (a != b)
        if proper.any():
            pairs = np.unique(np.stack((a[proper], b[proper])), axis=1)
            self._left.append(pairs[0])
            self._right.append(pairs[1])

    def include(self, other: Relation) -> None:
        """What the other relates is related here as well."""
        self._left += other._left
        self._right += other._right

    def classes(self, count: int) -> npt.NDArray[np.int64]:
        """Class of each of the labels below ``count``; classes are numbered by their smallest label."""
        left = np.concatenate([np.zeros(0, np.int64), *self._left])
        right = np.concatenate([np.zeros(0, np.int64), *self._right])
        graph = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
        _, component = connected_components(graph, directed=False)
        _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
        return first[inverse].astype(np.int64)


def full(labels: Tensor, shape: torch.Size) -> Tensor:
    """The labels of every element."""
    return labels.expand(shape)


def compact(labels: Tensor) -> Tensor:
    """The same labels with size 1 along every dimension on which they do not depend."""
    for dim in range(labels.ndim):
        if labels.shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            if labels.stride(dim) == 0 or bool((labels == first).all()):
                labels = first
    return labels.contiguous()


def varying(labels: Tensor) -> list[int]:
    """Dimensions along which labels differ."""
    return [dim for dim, size in enumerate(labels.shape) if size > 1]


def on_dim(labels: Tensor, dim: int, ndim: int) -> Tensor:
    """Labels in a row as those of a tensor that runs over them along one dimension."""
    shape = [1] * ndim
    shape[dim] = len(labels)
    return labels.reshape(shape)
