"""What importing the package means: little at first, and the public names whatever was imported before."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pyassemble as pa


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("first", ["pyassemble", "pyassemble.transfer.alignment", "pyassemble.transfer"])
def test_a_function_keeps_its_name_beside_the_folder_of_that_name(first: str) -> None:
    code = f"import {first}\nimport pyassemble\nfrom pyassemble import transfer\n"
    code += "print(type(transfer).__name__, type(pyassemble.transfer).__name__, transfer is pyassemble.transfer)"
    assert run(code) == "function function True"


def test_the_kernels_load_nothing_of_the_rest() -> None:
    code = "import sys, pyassemble.kernels\nprint(*sorted(m for m in sys.modules if m.startswith('pyassemble')))"
    assert run(code) == "pyassemble pyassemble.errors pyassemble.kernels"


def test_importing_takes_no_backend_and_no_device() -> None:
    code = "import sys, pyassemble as pa, torch\npa.Zoo, pa.transfer\n"
    code += "print([m for m in ('numba', 'triton', 'timm', 'torchvision', 'joblib') if m in sys.modules], "
    code += "torch.cuda.is_initialized())"
    assert run(code) == "[] False"


def test_every_public_name_is_there() -> None:
    assert [name for name in pa.__all__ if not hasattr(pa, name)] == []
    assert set(pa.__all__) <= set(dir(pa))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pa.nothing  # noqa: B018
