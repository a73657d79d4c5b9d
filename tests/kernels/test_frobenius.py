"""The Frobenius score of ragged candidates against float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from pyassemble.kernels import frobenius, frobenius_score, frobenius_score_reference
from tests.kernels.backends import BACKENDS, DTYPES, assert_as_good_as_eager, scores

RUN, UNIT = frobenius.RUN, frobenius.UNIT
RAGGED = [(1,), (3,), (7, 5), (16384,), (16385,), (2, 31, 37), (4, 5, 6), (40009,)]


def candidates(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, batch: int = 6
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    clean = [torch.randn(batch, *shape, generator=generator).to(dtype) for shape in shapes]
    noise = [0.1 * torch.randn(c.shape, generator=generator) for c in clean]
    return clean, [(c.float() + n).to(dtype) for c, n in zip(clean, noise, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_eager(backend: str, dtype: torch.dtype) -> None:
    clean, perturbed = candidates(RAGGED, dtype)
    ours = scores(backend, clean, perturbed)
    assert ours.dtype == torch.float32
    exact = frobenius_score_reference([c.double() for c in clean], [p.double() for p in perturbed])
    same = frobenius_score_reference(clean, perturbed)
    assert_as_good_as_eager(ours, same.float(), exact, "scores")


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_of_one_batch(backend: str) -> None:
    both = [torch.randn(10, 3, 5, 7), torch.randn(10, 3, 5, 7).contiguous(memory_format=torch.channels_last)]
    ours = scores(backend, [b[:5] for b in both], [b[5:] for b in both])
    theirs = frobenius_score_reference([b[:5] for b in both], [b[5:] for b in both])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_around_runs_and_units_from_any_address(dtype: torch.dtype) -> None:
    run = RUN // dtype.itemsize
    sizes = [1, 2, 3, 61, run - 1, run, run + 1, 2 * run + 7, 4 * run, UNIT - 1, UNIT, UNIT + 1, UNIT + run + 1, 40009]
    for size in sizes:
        for start in (0, 1, 5):
            held = torch.randn(2, start + 3 * size, generator=torch.Generator().manual_seed(size)).to(dtype)
            c, p = held[:, start:].unflatten(1, (3, size))
            exact = frobenius_score_reference([c.double()], [p.double()])
            torch.testing.assert_close(frobenius_score([c], [p]).double(), exact, rtol=0, atol=2e-6, msg=str(size))


BEHIND_A_TENSOR = """
import ctypes, mmap, torch
from pyassemble.kernels import frobenius_score
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 9 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 8 * page), ctypes.c_size_t(page), 0) == 0
for size in (1, 15, 16, 1023, page, page + 1):
    p = torch.frombuffer(memory, dtype=torch.float32, count=size, offset=8 * page - 4 * size)[None]
    p.fill_(1)
    assert frobenius_score([torch.zeros_like(p)], [p]).exp().square().round().item() == size
"""


@pytest.mark.skipif(sys.platform == "win32", reason="protects memory by POSIX's mprotect")
def test_nothing_behind_a_tensor_is_read() -> None:
    """What is fetched ahead may lie there, and nobody may be allowed to read it."""
    subprocess.run([sys.executable, "-c", BEHIND_A_TENSOR], check=True)


def test_ordinary_candidates_are_scored_as_the_operator_scores_them() -> None:
    clean, perturbed = candidates([(7, 5), (3, 8, 8), (UNIT + 3,), (0,)], torch.float32)
    clean[1], perturbed[1] = (t.contiguous(memory_format=torch.channels_last) for t in (clean[1], perturbed[1]))
    clean[2] = torch.nn.Parameter(clean[2])
    assert frobenius._ordinary(clean, perturbed)
    ours = frobenius_score(clean, perturbed)
    assert not ours.requires_grad
    assert torch.equal(ours, frobenius._frobenius([c.detach() for c in clean], perturbed))


def test_what_is_not_ordinary_is_left_to_the_operator() -> None:
    c, p = torch.randn(2, 4, 3, 5, 6).unbind()
    negative = torch.view_as_complex(torch.stack([p, -c], -1)).conj().imag  # c, stored as -c with a mark
    assert negative.is_neg()
    others = {
        "layout": ([c], [p.contiguous(memory_format=torch.channels_last)]),
        "gaps": ([torch.zeros(4, 3, 5, 12)[..., ::2].copy_(c)], [p]),
        "types": ([c, c.double()], [p, p.double()]),
        "type of one": ([c.half()], [p]),
        "integers": ([c.long()], [p.long()]),
        "samples": ([c, c[:2]], [p, p[:2]]),
        "shapes": ([c], [p.flatten(1)]),
        "no samples": ([c[:0]], [p[:0]]),
        "no dimensions": ([c.sum()], [p.sum()]),
        "mark": ([negative], [p]),
        "device": ([c.to("meta")], [p.to("meta")]),
    }
    for name, (clean, perturbed) in others.items():
        assert not frobenius._ordinary(clean, perturbed), name
    expected = frobenius_score_reference([c], [p])
    for name in ("layout", "gaps", "mark"):
        torch.testing.assert_close(frobenius_score(*others[name]), expected, rtol=0, atol=1e-6, msg=name)


def test_halves_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    both = torch.randn(8, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    wide = torch.randn(8, 2, 3, 4)[:, 0]  # each sample dense, gaps between samples
    for c, p in ((both[:4], both[4:]), (wide[:4], wide[4:])):
        read = frobenius._readable(c, p)
        assert [t.data_ptr() for t in read] == [c.data_ptr(), p.data_ptr()]
        torch.testing.assert_close(frobenius_score([c], [p]), frobenius_score_reference([c], [p]), rtol=0, atol=1e-6)


def test_layouts_that_differ() -> None:
    c, p = torch.randn(2, 4, 3, 5, 6).unbind()
    expected = frobenius_score_reference([c], [p])
    last = p.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(frobenius_score([c], [last]), expected, rtol=0, atol=1e-6)
    gaps = [torch.zeros(4, 3, 5, 12)[..., ::2].copy_(t) for t in (c, p)]
    torch.testing.assert_close(frobenius_score(gaps[:1], gaps[1:]), expected, rtol=0, atol=1e-6)


def test_types_may_differ_between_candidates() -> None:
    clean, perturbed = candidates([(7, 5), (33,), (8,)], torch.float32)
    clean[1], perturbed[1] = clean[1].bfloat16(), perturbed[1].bfloat16()
    expected = frobenius_score_reference([c.double() for c in clean], [p.double() for p in perturbed])
    torch.testing.assert_close(frobenius_score(clean, perturbed).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_distance_nan_and_infinity(backend: str) -> None:
    clean, perturbed = candidates([(9,)] * 5, torch.float32)
    perturbed[1] = clean[1].clone()
    clean[2][0, 0] = math.nan
    clean[3][0, 0] = math.inf
    clean[4][0, 0] = perturbed[4][0, 0] = math.inf  # their difference is NaN
    ours = scores(backend, clean, perturbed)
    theirs = frobenius_score_reference(clean, perturbed)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=0, atol=1e-6)
    assert ours[1] == -math.inf
    assert ours[3] == math.inf


def test_empty() -> None:
    assert frobenius_score([], []).shape == (0,)
    nothing = torch.empty(4, 0)
    assert frobenius_score([nothing], [nothing]).item() == -math.inf
    assert math.isnan(frobenius_score([nothing.T], [nothing.T]).item())
    some = torch.randn(4, 3)
    both = frobenius_score([nothing, some], [nothing, 2 * some])
    torch.testing.assert_close(both[1:], frobenius_score_reference([some], [2 * some]))


def test_scores_do_not_depend_on_the_number_of_threads() -> None:
    clean, perturbed = candidates([(200003,), (5,), (64, 31, 31)], torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(frobenius_score(clean, perturbed))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_table_written_by_value() -> None:
    """What a captured CUDA graph remembers instead of an address in the host's memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clean, perturbed = ([t.to(device) for t in ts] for ts in candidates([(7, 5), (20000,)], torch.float32))
    assert torch.equal(frobenius._triton(clean, perturbed, by_value=True), frobenius._triton(clean, perturbed))


def test_no_gradient() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    assert not frobenius_score([x], [x + 1]).requires_grad


@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    size = 2**31 + 2**16
    clean = torch.zeros(1, size, dtype=torch.bfloat16)
    perturbed = torch.zeros(1, size, dtype=torch.bfloat16)
    perturbed[0, -4:] = 1.0
    assert frobenius_score([clean], [perturbed]).item() == pytest.approx(math.log(2.0))
