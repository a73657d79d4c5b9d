"""What tests of Triton's kernels need of its interpreter, which tests/conftest.py chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _quiet_interpreter() -> Iterator[None]:
    """The interpreter computes with NumPy, which warns of what a GPU does in silence: NaN, infinity, wrapping."""
    with np.errstate(all="ignore"):
        yield
