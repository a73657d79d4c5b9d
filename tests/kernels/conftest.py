"""Triton runs in its interpreter where there is no GPU; the choice is made when Triton is first imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _quiet_interpreter() -> Iterator[None]:
    """The interpreter computes with NumPy, which warns of what a GPU does in silence: NaN, infinity, wrapping."""
    with np.errstate(all="ignore"):
        yield
