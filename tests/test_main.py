"""``python -m pyassemble`` runs the command line."""

from __future__ import annotations

import subprocess
import sys

import pyassemble as pa


def test_version() -> None:
    done = subprocess.run([sys.executable, "-m", "pyassemble", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pyassemble {pa.__version__}\n"
