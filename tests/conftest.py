"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
import torch

# A shell that runs the tests in the background may have them ignore Ctrl-C, and so the processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton runs in its interpreter where there is no GPU. It chooses when it is first imported, which other libraries may
# do while their tests are collected.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_finish() -> None:
    # What importing left, some million objects, stays; each full collection would look through it again, for a third
    # of a second. Training collects at the end of each of its stages.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the real data and reference results, beside the project or where PYASSEMBLE_SHARED says."""
    folder = Path(os.environ.get("PYASSEMBLE_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared data and reference results; {folder} does not exist (set PYASSEMBLE_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
