"""The order of networks in which similar ones stand together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyassemble.report.matrices import checked_similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The time of the best order of leaves grows faster than the square; beyond this many networks the tree's own must do.
_BEST_LEAVES = 1500


def order(similarity: NDArray[np.float64]) -> NDArray[np.intp]:
    """An order of the networks in which those that are similar stand together.

    Hierarchical clustering with average linkage on ``1 - similarity``. Of the orders that the tree allows, it is the
    one with the least sum of distances between neighbours, up to 1 500 networks; beyond, the tree's own.

    Args:
        similarity: Symmetric similarities from 0 to 1, (n, n) with n at least 1.

    Returns:
        The rows in that order, (n,); the same for the same matrix.

    Raises:
        MatrixError: Anything but such a matrix.
    """
    matrix = checked_similarity(similarity)
    if len(matrix) < 3:  # nothing to choose, and one network has no pair to cluster
        return np.arange(len(matrix), dtype=np.intp)

    from scipy.cluster.hierarchy import average, leaves_list, optimal_leaf_ordering

    distances = 1.0 - matrix[np.triu_indices(len(matrix), k=1)]
    tree = average(distances)
    if len(matrix) <= _BEST_LEAVES:
        tree = optimal_leaf_ordering(tree, distances)
    return np.asarray(leaves_list(tree), dtype=np.intp)
