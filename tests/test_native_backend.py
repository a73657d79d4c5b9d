"""The choice between the C++ core and its numba twin."""

from __future__ import annotations

import builtins
import importlib
import subprocess
import sys
from typing import Any

import pytest

from pyassemble.errors import NumbaFallbackWarning, UnknownOptionError
from pyassemble.network import backend as backends
from pyassemble.network.layers import Element, Layer, LayerSequence

NETWORK = LayerSequence.of(
    (
        Layer("stem", "Conv2d", (8, 3, 3, 3)),
        Layer("act", None, ()),
        Layer("a.conv", "Conv2d", (8, 8, 1, 1)),
        Layer("a.norm", "BatchNorm2d", (8,)),
        Layer("empty", "Linear", (0, 8)),
        Layer("head", "Linear", (10, 8)),
    ),
    (Element(0, 1, False), Element(1, 2, False), Element(2, 4, True), Element(4, 5, False), Element(5, 6, False)),
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_loaded", {})
    monkeypatch.delenv(backends.VARIABLE, raising=False)


@pytest.mark.parametrize(("name", "module"), backends.MODULES.items())
def test_forced(monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setenv(backends.VARIABLE, name)
    assert backends.backend() is importlib.import_module(module)
    sequence = backends.sequence(NETWORK)
    assert (sequence.num_layers, sequence.num_elements, sequence.num_scored) == (6, 5, 4)
    assert backends.sequence(NETWORK) is sequence
    value, sources, targets = backends.backend().align(sequence, sequence)
    assert value == 4.0
    assert sources.tolist() == targets.tolist() == [0, 2, 3, 5]


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.VARIABLE, "fortran")
    with pytest.raises(UnknownOptionError, match="unknown PYASSEMBLE_BACKEND 'fortran'; known: native, numba"):
        backends.backend()


def test_native_first() -> None:
    assert backends.backend() is importlib.import_module("pyassemble._native")


def _hide_native(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "pyassemble._native", raising=False)
    monkeypatch.setattr(builtins, "__import__", real)

    def find(name: str, *args: Any) -> Any:
        if name == "pyassemble._native":
            raise ImportError("hidden")
        return real_import(name, *args)

    real_import = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", find)


def test_falls_back_on_numba_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_native(monkeypatch)
    with pytest.warns(NumbaFallbackWarning, match="the C\\+\\+ core is missing"):
        module = backends.backend()
    assert module.__name__ == "pyassemble.kernels.recurrence"  # type: ignore[attr-defined]
    assert backends.backend() is module


def test_a_forced_native_does_not_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_native(monkeypatch)
    monkeypatch.setenv(backends.VARIABLE, "native")
    with pytest.raises(ImportError, match="hidden"):
        backends.backend()


def test_empty_network() -> None:
    sequence = backends.sequence(LayerSequence.of((), ()))
    assert backends.backend().align(sequence, backends.sequence(NETWORK))[0] == 0.0


def test_numba_is_not_imported_before_use() -> None:
    code = """
import sys
from pyassemble.network import backend
from pyassemble.network.layers import LayerSequence
backend.sequence(LayerSequence.of((), ()))
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
