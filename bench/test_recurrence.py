"""The recurrence's inner loop against a bare loop of multiply-adds, measured in the same run on one core.

The share is evaluated cells per second (one multiply-add counted per cell) over multiply-adds per second.
"""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

import pytest

from pyassemble import _native as native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

SIZE = 48


@pytest.fixture(params=native.instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.instruction_set()
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(before)


@pytest.mark.parametrize("exact", [False, True], ids=["values", "exact"])
@pytest.mark.benchmark(group="recurrence, n = m = 48")
def test_share_of_the_multiply_add_rate(
    benchmark: BenchmarkFixture, record: Any, instruction_set: str, exact: bool
) -> None:
    fma, cells = [], []

    def measure() -> None:  # both in turn, so that they see the same machine
        fma.append(native.fma_rate(0.1))
        cells.append(native.recurrence_rate(SIZE, SIZE, exact, 0.1))

    benchmark.pedantic(measure, rounds=5)
    shares = sorted(c / f for c, f in zip(cells, fma, strict=True))
    share = shares[len(shares) // 2]
    benchmark.extra_info.update(
        instruction_set=instruction_set,
        exact=exact,
        fma_per_second=max(fma),
        cells_per_second=max(cells),
        share_of_fma_rate=share,
        shares=shares,
        processor=platform.processor() or platform.machine(),
        cores=os.cpu_count(),
    )
    name = "exact order" if exact else "values only"
    record(f"recurrence n = m = 48, {instruction_set}, {name}", 100 * share, "% of the float64 FMA rate")
