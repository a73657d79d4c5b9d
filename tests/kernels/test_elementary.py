"""Logarithm and exponential of the CPU's kernels against the system's."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.elementary import exp, log


@numba_jit()
def logs(y: Any, x: Any) -> None:
    for i in range(x.size):
        y[i] = log(x[i])


@numba_jit()
def exps(y: Any, x: Any) -> None:
    for i in range(x.size):
        y[i] = exp(x[i])


def computed(function: Any, x: Any) -> Any:
    y = np.empty_like(x)
    function(y, x)
    return y


def test_logarithm() -> None:
    generator = np.random.default_rng(0)
    u = (np.arange(1, 2**24, 2) / 2**24)[:: 2**7]  # as gates draw them, and their odds
    wide = np.exp(generator.uniform(-700, 700, 10**5))
    for x in (u, u / (1 - u), wide, 1 + generator.uniform(-1e-6, 1e-6, 10**5)):
        np.testing.assert_allclose(computed(logs, x), np.log(x), rtol=4e-16, atol=1e-30)
    assert computed(logs, np.ones(1)) == 0


def test_exponential() -> None:
    x = np.random.default_rng(0).uniform(-708, 708, 10**6)
    np.testing.assert_allclose(computed(exps, x), np.exp(x), rtol=5e-16)
    x = np.array([0.0, -np.inf, np.inf, 1e300, np.nan])
    np.testing.assert_allclose(computed(exps, x), [1, np.exp(-708), np.exp(708), np.exp(708), np.nan], rtol=5e-16)
