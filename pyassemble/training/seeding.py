"""Seeds of the parts of a run, so that a run that is resumed draws what an uninterrupted one would have drawn.

Every epoch's generators are seeded from the run's seed, the epoch and their purpose; none carries its state over from
one epoch to the next, so a checkpoint at an epoch's end has no generator's state to keep.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def derived_seed(seed: int, *purpose: int | str) -> int:
    """A seed for one purpose of a run.

    Args:
        seed: The run's, in [0, 2**63).
        *purpose: Numbers and words that tell it from the run's other purposes.

    Returns:
        In [0, 2**63); unrelated seeds for different purposes and neighbouring run seeds.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def derived_generator(seed: int, *purpose: int | str) -> torch.Generator:
    """A generator on the CPU with :func:`derived_seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator for the block's time, and puts its state back.

    Args:
        seed: In [0, 2**63).
    """
    state = np.random.get_state()  # noqa: NPY002 (this is about the legacy generator)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextmanager
def global_seeds(seed: int) -> Iterator[None]:
    """Seeds the global generators of torch, numpy and Python for the block's time, and puts their states back.

    For what reads them and cannot be told otherwise: dropout, transforms inside a caller's dataset.

    Args:
        seed: In [0, 2**63).
    """
    state = random.getstate()
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else ()
    with torch.random.fork_rng(devices=devices), numpy_seed(seed):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
