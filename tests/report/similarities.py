"""Matrices of similarities to draw, with clusters that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def planted(sizes: list[int], seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Similarities (n, n) with clusters of these sizes, shuffled, and the cluster of each row (n,)."""
    random = np.random.default_rng(seed)
    cluster = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    noise = random.random((len(cluster), len(cluster))) * 0.3
    matrix = np.where(cluster[:, None] == cluster[None, :], 0.6, 0.1) + (noise + noise.T) / 2
    np.fill_diagonal(matrix, 1.0)
    return matrix, cluster
