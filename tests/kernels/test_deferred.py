"""Both ways to numba's machine code: the quick one, and the one of versions that are not known."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numba
import pytest

from pyassemble.kernels import deferred

if TYPE_CHECKING:
    from collections.abc import Callable


def _twice(x: float) -> float:
    return 2 * x


@pytest.mark.parametrize("load", [deferred._loaded, deferred._quickly_loaded])
def test_code_is_loaded_and_loaded_again(load: Callable[..., Any]) -> None:
    for _ in range(2):  # the second time from the cache on disk
        code = load(_twice, numba.float64(numba.float64))
        assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_double)(code.address)(1.5) == 3.0


@pytest.mark.parametrize(
    ("known", "taken"),
    [(((0, 61), (99, 0)), "_quickly_loaded"), (((0, 1), (0, 2)), "_loaded"), (((99, 0), (99, 1)), "_loaded")],
)
def test_only_known_versions_are_loaded_quickly(
    known: tuple[tuple[int, int], tuple[int, int]], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def called(name: str) -> Callable[..., Any]:
        class Code:
            address = 7

        return lambda *_: calls.append(name) or Code

    monkeypatch.setattr(deferred, "_KNOWN_NUMBA", known)
    for name in ("_loaded", "_quickly_loaded"):
        monkeypatch.setattr(deferred, name, called(name))
    assert deferred.numba_region(_twice)(numba.float64(numba.float64)) == 7
    assert calls == [taken]
