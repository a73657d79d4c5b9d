"""How far a perturbation moves each of several candidates' outputs: one pass over all of them, no tensor in between.

For candidate k with outputs f_k(x) and f_k(x + noise) of shape (B, ...) (PA-DNN: Liu, Lu, Zhao, Zhao, Luo,
*Differentiable neural network for assembling blocks*, eq. 4):

    score_k = log( 1/B  sum over samples i of || f_k(x_i) - f_k(x_i + noise_i) ||_F )

The candidates' shapes may all differ: a table of their addresses and sizes goes to one launch, which cuts every sample
of every candidate into parts of one size. Differences and sums of squares are in float32 (float64 where the outputs
are); the parts' sums are added in an order that the shapes alone decide. The two tensors of a candidate may be the two
halves of one batch: each sample is read where it lies, in any dense layout.
"""

from __future__ import annotations

import importlib
import math
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pyassemble.errors import ArgumentTypeError, TensorError
from pyassemble.kernels import parallel
from pyassemble.kernels.checks import DTYPES, check_tensor, describe
from pyassemble.kernels.deferred import numba_jit, triton_jit
from pyassemble.kernels.halves import load
from pyassemble.kernels.layout import is_dense, same_order
from pyassemble.kernels.memory import elements
from pyassemble.kernels.operators import operator, ordinary
from pyassemble.kernels.regions import ARRIVED, FIRST, PIECES, TAKEN, count, cut, like, region, wide_like, word
from pyassemble.kernels.streaming import LINE, finish, prefetch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import triton.language as tl

UNIT = 16384  # elements that one thread of the CPU takes at a time
RUN = 4096  # bytes of a tensor whose elements are summed in float32 before the sum goes on in float64
# Of the page after the next, 4 KiB further on, the first lines are fetched: processors fetch ahead by themselves, but
# not from one page into another. The kernel alone over 32 candidates, 253 MiB, 2 threads of an AMD EPYC (Zen 5), took
# 3.3 instead of 3.4 ms where a copy of half as many bytes took 3.6, and 5.0 with or without at times when both threads
# together read hardly faster than one and the copy took 5.9. Fetching every line took 3.5 ms in the first case; several
# places read at once, longer units, more and smaller pieces gave nothing.
PAGE_START, AHEAD = 4 * LINE, 2 * RUN  # bytes

BLOCK = 2048  # elements of a Triton program's tile, and of all its tiles; neither has been tuned on a GPU
PART = 8 * BLOCK

_INTEGERS, _DOUBLES = np.empty(0, np.int64), np.empty(0)  # types, for the CPU's regions

# Columns of the table: addresses, elements from one sample to the next in either tensor, elements of a sample, parts
# of a sample, samples to a unit, first unit, place of the first sum.
_CLEAN, _PERTURBED, _CLEAN_STEP, _PERTURBED_STEP, _SIZE, _PARTS, _TOGETHER, _FIRST, _SUMS, _WORDS = range(10)


class Table(NamedTuple):
    """What a launch is told of its candidates.

    Attributes:
        rows: Words of all rows.
        units: Number of all units.
        sums: Number of all sums.
        work: Number of all elements of either side.
    """

    rows: array[int]
    units: int
    sums: int
    work: int


def frobenius_score_reference(clean: Sequence[torch.Tensor], perturbed: Sequence[torch.Tensor]) -> torch.Tensor:
    """The same in plain PyTorch, in the tensors' own types.

    Args:
        clean: Outputs (B, ...) of each candidate.
        perturbed: Outputs of the same shapes for the perturbed inputs.

    Returns:
        (K,).
    """
    distances = [(c - p).flatten(1).norm(dim=1).mean() for c, p in zip(clean, perturbed, strict=True)]
    return torch.stack(distances).log()


# -- The table ---------------------------------------------------------------------------------------------------------


def _table(clean: list[torch.Tensor], perturbed: list[torch.Tensor], unit: int, least_together: int) -> Table:
    """The rows, one per candidate, of tensors that can be read as they are."""
    rows = array("q")
    units = sums = work = 0
    samples = clean[0].shape[0]
    for c, p in zip(clean, perturbed, strict=True):
        numel = c.numel()
        size = numel // samples
        parts = -(-size // unit)
        together = max(1, least_together // size) if size else samples
        rows.extend((c.data_ptr(), p.data_ptr(), c.stride(0), p.stride(0), size, parts, together, units, sums))
        units += -(-samples // together) * parts
        sums += samples * parts
        work += numel
    return Table(rows, units, sums, work)


def _readable(c: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two tensors, or copies whose samples are dense and alike in layout."""
    return (c, p) if _alike(c, p) else (c.contiguous(), p.contiguous())


def _alike(c: torch.Tensor, p: torch.Tensor) -> bool:
    """Whether samples, of which there are some, are dense and alike in layout."""
    if c.is_contiguous() and p.is_contiguous():  # the quick answer for nearly all
        return True
    sample = c[0]
    return is_dense(sample) and same_order(sample, p[0])


# -- CPU ---------------------------------------------------------------------------------------------------------------


@numba_jit(inline=True, reassociate=True)
def _squares(clean: Any, perturbed: Any, zero: Any) -> Any:
    total = zero
    for i in range(clean.size):
        d = load(clean, i) - load(perturbed, i)
        total += d * d
    return total


_OF_SUMS, _OF_SCORES, _TABLE, _CANDIDATES, _SAMPLES = range(FIRST, FIRST + 5)


@region("5q")
def _cpu_scores(block: Any) -> None:
    """Unit: a part of one sample, or several small samples of one candidate.

    ``ARRIVED`` counts the pieces that are done: whoever is done with the last one makes the scores.
    """
    of_x, zero = like(block, 0), wide_like(block).dtype.type(0)
    candidates, samples, item = word(block, _CANDIDATES), word(block, _SAMPLES), of_x.itemsize
    table = elements(word(block, _TABLE), candidates * _WORDS, _INTEGERS).reshape((candidates, _WORDS))
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        k = 0
        for n in range(cut(block, piece), cut(block, piece + 1)):
            while k + 1 < candidates and table[k + 1, _FIRST] <= n:
                k += 1
            parts, together = table[k, _PARTS], table[k, _TOGETHER]
            first = (n - table[k, _FIRST]) // parts * together
            part = (n - table[k, _FIRST]) % parts
            low = part * UNIT
            high = min(table[k, _SIZE], low + UNIT)
            for sample in range(first, min(samples, first + together)):
                clean = table[k, _CLEAN] + sample * table[k, _CLEAN_STEP] * item
                perturbed = table[k, _PERTURBED] + sample * table[k, _PERTURBED_STEP] * item
                total = 0.0
                for i in range(low * item, high * item, RUN):
                    size = min(high * item - i, RUN)
                    for line in range(0, PAGE_START, LINE):
                        prefetch(clean + i + AHEAD + line)
                        prefetch(perturbed + i + AHEAD + line)
                    a, b = elements(clean + i, size // item, of_x), elements(perturbed + i, size // item, of_x)
                    total += np.float64(_squares(a, b, zero))
                place = word(block, _OF_SUMS) + 8 * (table[k, _SUMS] + sample * parts + part)
                elements(place, 1, _DOUBLES)[0] = total
        finish()  # the sums are there before they are counted
        if count(block, ARRIVED) == word(block, PIECES) - 1:
            finish()
            _make_scores(block, table, samples)
        piece = count(block, TAKEN)


@numba_jit(inline=True)
def _make_scores(block: Any, table: Any, samples: Any) -> None:
    scores = elements(word(block, _OF_SCORES), table.shape[0], like(block, 1))
    for k in range(scores.size):
        total = 0.0
        parts = table[k, _PARTS]
        sums = elements(word(block, _OF_SUMS) + 8 * table[k, _SUMS], samples * parts, _DOUBLES)
        for sample in range(samples):
            square = 0.0
            for part in range(parts):
                square += sums[sample * parts + part]
            total += math.sqrt(square)
        scores[k] = math.log(total / samples) if total != 0.0 else -math.inf


def _cpu(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> torch.Tensor:
    rows, units, places, work = _table(clean, perturbed, UNIT, UNIT)
    sums = torch.empty(places, dtype=torch.float64)
    scores = torch.empty(len(clean), dtype=torch.float32)
    threads = parallel.threads_for(units, work // max(1, units))
    _cpu_scores.run(
        (clean[0].dtype, torch.float32), units, threads,
        sums.data_ptr(), scores.data_ptr(), rows.buffer_info()[0], len(clean), clean[0].shape[0],
    )  # fmt: skip
    return scores


# -- CUDA --------------------------------------------------------------------------------------------------------------


@triton_jit()
def _triton_squares_kernel(  # type: ignore[no-untyped-def]
    sums_ptr, table_ptr, candidates, COLUMNS: tl.constexpr, CANDIDATES: tl.constexpr, SOURCE: tl.constexpr,
    ITEM: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One part of one sample; the table's rows tell which, columns in the order named at the top of the file."""
    program = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, CANDIDATES)
    first = tl.load(table_ptr + k * COLUMNS + 7, mask=k < candidates, other=0)
    row_ptr = table_ptr + (tl.sum(((first <= program) & (k < candidates)).to(tl.int32), axis=0) - 1) * COLUMNS
    size = tl.load(row_ptr + 4)
    parts = tl.load(row_ptr + 5)
    unit = program - tl.load(row_ptr + 7)
    sample = unit // parts
    clean_address = tl.load(row_ptr) + sample * tl.load(row_ptr + 2) * ITEM
    perturbed_address = tl.load(row_ptr + 1) + sample * tl.load(row_ptr + 3) * ITEM
    low = unit % parts * PART
    count = tl.minimum(size - low, PART)
    whole = count // BLOCK * BLOCK  # without a mask, whose end nothing tells to be a multiple of a load's width
    total = tl.zeros((BLOCK,), DTYPE)
    if (clean_address | perturbed_address) % 16 == 0:
        # Said in this branch, of pointers of its own: loads may be 16 bytes wide.
        clean_ptr = tl.multiple_of(clean_address.to(tl.pointer_type(SOURCE)), 16)
        perturbed_ptr = tl.multiple_of(perturbed_address.to(tl.pointer_type(SOURCE)), 16)
        for start in range(0, whole, BLOCK):
            i = low + start + tl.arange(0, BLOCK)
            difference = tl.load(clean_ptr + i).to(DTYPE) - tl.load(perturbed_ptr + i).to(DTYPE)
            total += difference * difference
    else:
        clean_ptr = clean_address.to(tl.pointer_type(SOURCE))
        perturbed_ptr = perturbed_address.to(tl.pointer_type(SOURCE))
        for start in range(0, whole, BLOCK):
            i = low + start + tl.arange(0, BLOCK)
            difference = tl.load(clean_ptr + i).to(DTYPE) - tl.load(perturbed_ptr + i).to(DTYPE)
            total += difference * difference
    if whole < count:
        i = low + whole + tl.arange(0, BLOCK)
        clean = tl.load(clean_address.to(tl.pointer_type(SOURCE)) + i, mask=i < size, other=0.0).to(DTYPE)
        perturbed = tl.load(perturbed_address.to(tl.pointer_type(SOURCE)) + i, mask=i < size, other=0.0).to(DTYPE)
        total += (clean - perturbed) * (clean - perturbed)
    tl.store(sums_ptr + tl.load(row_ptr + 8) + unit, tl.sum(total, axis=0))


@triton_jit()
def _triton_scores_kernel(  # type: ignore[no-untyped-def]
    scores_ptr, sums_ptr, table_ptr, samples, COLUMNS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One candidate: root of each sample's sum, their mean, its logarithm."""
    row_ptr = table_ptr + tl.program_id(0) * COLUMNS
    parts = tl.load(row_ptr + 5)
    sums_ptr += tl.load(row_ptr + 8)
    total = tl.zeros((BLOCK,), DTYPE)
    for start in range(0, samples, BLOCK):
        sample = start + tl.arange(0, BLOCK)
        square = tl.zeros((BLOCK,), DTYPE)
        for part in range(0, parts):
            square += tl.load(sums_ptr + sample.to(tl.int64) * parts + part, mask=sample < samples, other=0.0)
        total += tl.sqrt(square)
    tl.store(scores_ptr + tl.program_id(0), tl.log(tl.sum(total, axis=0) / samples).to(tl.float32))


@triton_jit(do_not_specialize=("place", "w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7", "w8"))
def _triton_write_row_kernel(table_ptr, place, w0, w1, w2, w3, w4, w5, w6, w7, w8):  # type: ignore[no-untyped-def]
    row_ptr = table_ptr + place
    tl.store(row_ptr, w0.to(tl.int64))
    tl.store(row_ptr + 1, w1.to(tl.int64))
    tl.store(row_ptr + 2, w2.to(tl.int64))
    tl.store(row_ptr + 3, w3.to(tl.int64))
    tl.store(row_ptr + 4, w4.to(tl.int64))
    tl.store(row_ptr + 5, w5.to(tl.int64))
    tl.store(row_ptr + 6, w6.to(tl.int64))
    tl.store(row_ptr + 7, w7.to(tl.int64))
    tl.store(row_ptr + 8, w8.to(tl.int64))


def _on_device(rows: torch.Tensor, device: torch.device, by_value: bool) -> torch.Tensor:
    """The table on the device.

    By value, its words are arguments of kernels: a CUDA graph must not remember an address of the host's memory, which
    will hold something else when it is replayed.
    """
    if not by_value:
        return rows.to(device)
    written = torch.empty(rows.shape, dtype=torch.int64, device=device)
    for k, row in enumerate(rows.tolist()):
        _triton_write_row_kernel[(1,)](written, k * _WORDS, *row, enable_fp_fusion=False)
    return written


def _triton(clean: list[torch.Tensor], perturbed: list[torch.Tensor], *, by_value: bool = False) -> torch.Tensor:
    tl: Any = importlib.import_module("triton.language")
    like = clean[0]
    rows, units, places, _ = _table(clean, perturbed, PART, 1)
    table = torch.tensor(rows, dtype=torch.int64).view(len(clean), _WORDS)
    double = like.dtype is torch.float64
    wide = tl.float64 if double else tl.float32
    sums = torch.empty(places, dtype=torch.float64 if double else torch.float32, device=like.device)
    scores = torch.empty(len(clean), dtype=torch.float32, device=like.device)
    on_device = _on_device(table, like.device, by_value)
    if units:
        source = getattr(tl, str(like.dtype).removeprefix("torch."))
        _triton_squares_kernel[(units,)](
            sums, on_device, len(clean), _WORDS, 1 << (len(clean) - 1).bit_length(), source,
            like.element_size(), wide, BLOCK, PART,
            enable_fp_fusion=False,
        )  # fmt: skip
    _triton_scores_kernel[(len(clean),)](
        scores, sums, on_device, like.shape[0], _WORDS, wide, 128, enable_fp_fusion=False
    )
    return scores


# -- Operator ----------------------------------------------------------------------------------------------------------


def _run(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> torch.Tensor:
    device = clean[0].device
    if clean[0].shape[0] == 0:  # the mean of nothing
        return torch.full((len(clean),), math.nan, device=device)
    if device.type not in ("cpu", "cuda"):
        wide = [torch.promote_types(c.dtype, torch.float32) for c in clean]
        pairs = [(c.to(w), p.to(w)) for c, p, w in zip(clean, perturbed, wide, strict=True)]
        return frobenius_score_reference(*zip(*pairs, strict=True)).to(torch.float32)
    pairs = [_readable(c, p) for c, p in zip(clean, perturbed, strict=True)]
    dtypes = dict.fromkeys(c.dtype for c in clean)
    if len(dtypes) == 1:
        return _score([c for c, _ in pairs], [p for _, p in pairs])
    scores = torch.empty(len(clean), dtype=torch.float32, device=device)
    for dtype in dtypes:  # one launch for each
        chosen = [k for k, c in enumerate(clean) if c.dtype is dtype]
        part = _score([pairs[k][0] for k in chosen], [pairs[k][1] for k in chosen])
        for place, k in enumerate(chosen):  # not by a tensor of indices, which would come from the host
            scores[k] = part[place]
    return scores


def _score(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> torch.Tensor:
    device = clean[0].device
    if device.type == "cpu":
        return _cpu(clean, perturbed)
    with torch.cuda.device(device):
        return _triton(clean, perturbed, by_value=torch.cuda.is_current_stream_capturing())


def _fake(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> torch.Tensor:
    return clean[0].new_empty((len(clean),), dtype=torch.float32)


_frobenius = operator("frobenius_score(Tensor[] clean, Tensor[] perturbed) -> Tensor", _run, _fake)


def frobenius_score(clean: Sequence[torch.Tensor], perturbed: Sequence[torch.Tensor]) -> torch.Tensor:
    """Logarithm of the mean distance between each candidate's clean and perturbed outputs (PA-DNN, eq. 4).

    On CUDA, one launch reads everything and a second, of one small program per candidate, makes the scores; on the CPU
    the same work is shared by PyTorch's number of threads. Candidates of several types take one launch for each type.

    Args:
        clean: K tensors (B, ...), one per candidate, of any shapes with the same B; float32, bfloat16, float16 or
            float64.
        perturbed: K tensors of the same shapes and types. ``batch[:B]`` and ``batch[B:]`` of one output will do.

    Returns:
        (K,), float32, higher for larger distances. A distance of zero gives -inf, NaN or infinity in an output give
        NaN or infinity, B = 0 gives NaN: none of these is an error. Not differentiable.

    Raises:
        ArgumentTypeError: Not two sequences of tensors.
        TensorError: Numbers, shapes, types or devices that do not go together.
    """
    clean, perturbed = _listed("clean", clean), _listed("perturbed", perturbed)
    if len(clean) != len(perturbed):
        raise TensorError(f"{len(clean)} clean and {len(perturbed)} perturbed tensors; accepted: as many of both")
    if not clean:
        return torch.empty(0)
    if _ordinary(clean, perturbed):
        return _cpu(clean, perturbed)
    _check(clean, perturbed)
    scores: torch.Tensor = _frobenius([c.detach() for c in clean], [p.detach() for p in perturbed])
    return scores


def _ordinary(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> bool:
    """Whether these are ordinary CPU tensors of one type that would be accepted, each to be read where it lies.

    They go past the dispatcher, and no message, view or copy is made for each: with cold caches, 32 candidates took
    0.4 ms before and after a kernel of 3.4 ms, and now take 0.25.
    """
    if not ordinary(*clean, *perturbed):
        return False
    shape, dtype = clean[0].shape, clean[0].dtype
    if not shape or not shape[0] or dtype not in DTYPES:
        return False
    samples = shape[0]
    for c, p in zip(clean, perturbed, strict=True):
        shape = c.shape
        if p.shape != shape or c.dtype is not dtype or p.dtype is not dtype or not shape or shape[0] != samples:
            return False
        if not _alike(c, p):
            return False
    return True


def _listed(name: str, tensors: Any) -> list[torch.Tensor]:
    if isinstance(tensors, torch.Tensor) or not isinstance(tensors, (list, tuple)):
        raise ArgumentTypeError(f"{name} must be a list of tensors, one per candidate, not {type(tensors).__name__}")
    return list(tensors)


def _check(clean: list[torch.Tensor], perturbed: list[torch.Tensor]) -> None:
    for k, (c, p) in enumerate(zip(clean, perturbed, strict=True)):
        check_tensor(f"clean[{k}]", c)
        check_tensor(f"perturbed[{k}]", p)
        if c.shape != p.shape or c.dtype != p.dtype or c.device != p.device or not c.ndim:
            raise TensorError(
                f"{describe(f'clean[{k}]', c)} and {describe(f'perturbed[{k}]', p)}; accepted: one shape (B, ...), "
                "type and device for both"
            )
        if c.shape[0] != clean[0].shape[0] or c.device != clean[0].device:
            raise TensorError(
                f"{describe(f'clean[{k}]', c)} beside {describe('clean[0]', clean[0])}; accepted: one batch size and "
                "device for all candidates"
            )
