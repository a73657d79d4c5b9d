"""Work on several threads: every unit once, on PyTorch's threads and on Python's."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pyassemble.kernels import frobenius_score, hard_concrete_gate, parallel, perturb
from pyassemble.kernels.memory import elements
from pyassemble.kernels.regions import FIRST, PIECES, TAKEN, UNITS, count, cut, like, region, word

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(params=["openmp", "pool"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four threads of either kind."""
    if request.param == "pool":
        monkeypatch.setattr(parallel, "_openmp", lambda: None)
    elif parallel._openmp() is None:
        pytest.skip("PyTorch was built without OpenMP")
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def entry(function: Callable[[Any], None]) -> parallel.Entry:
    """A Python function as machine code."""
    callback = parallel._FUNCTION(function)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    made = parallel.Entry(address)
    made.callback = callback  # type: ignore[attr-defined]  # kept alive with it
    return made


@region("q")
def _mark(block: Any) -> None:
    """One more in the place of each unit."""
    done = elements(word(block, FIRST), word(block, UNITS), like(block, 0))
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        for n in range(cut(block, piece), cut(block, piece + 1)):
            done[n] += 1
        piece = count(block, TAKEN)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("units", [0, 1, 7, 1000])
@pytest.mark.parametrize("number", [1, 4])
def test_every_unit_once(units: int, number: int) -> None:
    done = torch.zeros(units + 1, dtype=torch.float64)
    _mark.run((done.dtype,), units, number, done.data_ptr())
    assert (done[:units] == 1).all()
    assert done[units] == 0


@pytest.mark.usefixtures("threads")
def test_on_several_threads_at_once() -> None:
    at_once = threading.Barrier(4, timeout=60)
    seen = set()

    def wait(_: Any) -> None:  # no thread goes on until all four have started
        seen.add(threading.get_ident())
        at_once.wait()

    parallel.enter(entry(wait), None, 4)
    assert len(seen) == 4


def test_little_work_stays_on_this_thread() -> None:
    assert parallel.threads_for(7, 10) == 1
    calls: list[int] = []
    parallel.enter(entry(lambda _: calls.append(threading.get_ident())), None, 1)
    assert calls == [threading.get_ident()]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_same_bits_as_on_one_thread(memory_format: torch.memory_format) -> None:
    """Large enough for four threads, and to be streamed."""
    x, dy = (torch.randn(31, 70, 33, 31).contiguous(memory_format=memory_format) for _ in range(2))

    def results() -> list[torch.Tensor]:
        leaf, loc = x.clone().requires_grad_(), torch.linspace(-2, 3, 70).requires_grad_()
        y = hard_concrete_gate(leaf, loc, seed=3)
        return [y, *torch.autograd.grad(y, (leaf, loc), dy), perturb(x, 0.1, seed=3), frobenius_score([x], [dy])]

    shared = results()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(shared, results(), strict=True))


@pytest.mark.usefixtures("threads")
def test_several_callers_at_once() -> None:
    """Each thread that calls has threads of its own to wait for."""
    x, loc = torch.randn(16, 64, 32, 32), torch.randn(64)
    expected = [hard_concrete_gate(x, loc, seed=seed) for seed in range(3)]
    equal: list[Any] = [None] * 3

    def call(seed: int) -> None:
        equal[seed] = all(torch.equal(hard_concrete_gate(x, loc, seed=seed), expected[seed]) for _ in range(5))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert equal == [True] * 3


def test_the_threads_are_those_of_pytorch() -> None:
    if parallel._openmp() is None:
        pytest.skip("PyTorch was built without OpenMP")
    inside = ctypes.CDLL(torch._C.__file__).omp_in_parallel
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen: list[int] = []
    parallel.enter(entry(lambda _: seen.append(inside())), None, 2)
    torch.set_num_threads(before)
    assert seen == [1, 1]
