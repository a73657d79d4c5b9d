"""What a matrix of similarities must be before it is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyassemble.errors import MatrixError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

# Rounding in the caller's arithmetic is no reason to refuse a matrix.
_TOLERANCE = 1e-9
_ACCEPTED = "accepted is a square symmetric matrix of finite numbers from 0 to 1"


def checked_similarity(similarity: ArrayLike, names: Sequence[str] | None = None) -> NDArray[np.float64]:
    """A matrix of symmetric similarities, once it is known to be one.

    Args:
        similarity: Numbers from 0 to 1, (n, n) with n at least 1, equal to its transpose.
        names: One for each row, where there are names.

    Returns:
        The same as float64 (n, n), without the excess that rounding leaves beyond 0 and 1.

    Raises:
        MatrixError: Another shape or type, a number that is not finite or not from 0 to 1, unequal halves,
            or another number of names. The message names the place.
    """
    given = np.asarray(similarity)
    if given.dtype.kind not in "fiu":
        raise MatrixError(f"a matrix of dtype {given.dtype}; {_ACCEPTED}")
    if given.ndim != 2 or given.shape[0] != given.shape[1] or given.shape[0] == 0:
        raise MatrixError(f"a matrix of shape {given.shape}; {_ACCEPTED}, with at least one row")
    if names is not None and len(names) != len(given):
        raise MatrixError(f"{len(names)} names for a matrix of shape {given.shape}; accepted is one name for each row")
    matrix = given.astype(np.float64)
    # Written so that NaN, which compares false with everything, counts as outside.
    _refuse(~((matrix >= -_TOLERANCE) & (matrix <= 1 + _TOLERANCE)), matrix, _ACCEPTED)
    _refuse(
        np.abs(matrix - matrix.T) > _TOLERANCE,
        matrix,
        f"{_ACCEPTED}; of directed similarities d, the symmetric ones are sqrt(d * d.T)",
    )
    return np.clip(matrix, 0.0, 1.0)


def _refuse(wrong: NDArray[np.bool_], matrix: NDArray[np.float64], accepted: str) -> None:
    """Raises the error that names the first wrong entry and its mirror image, if there is a wrong one."""
    if wrong.any():
        row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
        value, mirrored = matrix[row, column], matrix[column, row]
        raise MatrixError(f"entry [{row}, {column}] is {value!s} and [{column}, {row}] is {mirrored!s}; {accepted}")
