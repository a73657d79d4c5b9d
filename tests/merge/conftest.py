"""Wide students are large, and lie in reference cycles: each test's go before the next one's come."""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _release_memory() -> Iterator[None]:
    yield
    gc.collect()
    # GNU's allocator keeps what was freed in small pieces: over the slow tests, 18 GB of it were measured.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
