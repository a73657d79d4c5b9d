"""Work on several threads: every unit once, on PyTorch's threads and on Python's."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pyassemble.kernels import frobenius_score, hard_concrete_gate, parallel, perturb

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@pytest.mark.usefixtures("threads")
def test_every_unit_once_and_on_several_threads() -> None:
    done = np.zeros(1000, np.int64)
    at_once = threading.Barrier(4, timeout=60)
    seen = set()

    def kernel(start: int, stop: int, by: int) -> None:
        if threading.get_ident() not in seen:  # no thread goes on until all four have started
            seen.add(threading.get_ident())
            at_once.wait()
        done[start:stop] += by

    parallel.launch(kernel, 1000, 10**6, 3)
    assert (done == 3).all()
    assert len(seen) == 4


@pytest.mark.usefixtures("threads")
def test_an_exception_ends_the_work_and_reaches_the_caller() -> None:
    for error in (ValueError("of one piece"), KeyboardInterrupt()):

        def kernel(start: int, stop: int, error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)):
            parallel.launch(kernel, 1000, 10**6)
    test_every_unit_once_and_on_several_threads()


def test_little_work_stays_on_this_thread() -> None:
    calls = []
    parallel.launch(lambda *arguments: calls.append((threading.get_ident(), *arguments)), 7, 10, "a", "b")
    assert calls == [(threading.get_ident(), 0, 7, "a", "b")]


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
    seen = []
    parallel.launch(lambda start, stop: seen.append(inside()), 1000, 10**6)
    torch.set_num_threads(before)
    assert seen
    assert all(seen)
