"""The gate on the CPU: numba's regions, for space inside and for channels inside, and how memory is cut for them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from pyassemble.kernels import parallel, philox
from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.elementary import exp, log
from pyassemble.kernels.halves import load, store
from pyassemble.kernels.memory import ELEMENTS, elements
from pyassemble.kernels.philox import numba_uniform, numba_words
from pyassemble.kernels.regions import ARRIVED, FIRST, PIECES, TAKEN, count, cut, like, real, region, wide_like, word
from pyassemble.kernels.streaming import buffer, finish, stream, worthwhile

if TYPE_CHECKING:
    from pyassemble.kernels.hard_concrete.reference import Draw
    from pyassemble.kernels.layout import Layout

UNIT = 1024  # elements that one thread of the CPU takes at a time: 4 KiB of float32, a small part of its first cache
LONG = 1024  # elements of channels-last memory that are handled as one row: short rows cost more than their elements
LARGE = 64  # times as much with channels inside, where every unit has sums of its own for all channels
LEAST = 16  # units with channels inside, where there are as many rows
RUN = 8  # rows of channels summed in float32 before the sum goes on in float64
GATE = 16  # elements that take as long as a gate

# The words of all four regions: addresses, the draw, the layout, how it is cut.
_WORDS = "16q5d"
_Y, _DY, _X, _LOC, _SUMS, _SCRATCH, _SEED, _OFFSET, _SAMPLES, _OUTER, _CHANNELS, _ROW, _TOGETHER, _REPEAT, _STREAMED = (
    range(FIRST, FIRST + 15)
)
_SLOTS, _BETA, _GAMMA, _ZETA, _LOW, _HIGH = range(FIRST + 15, FIRST + 21)

_double = ELEMENTS[torch.float64]


@numba_jit(inline=True)
def _scratch(block: Any, wide: Any) -> Any:
    """This thread's odds, slopes, sums in float64, gates and sums in the type that is computed in."""
    channels, repeat, slots = word(block, _CHANNELS), word(block, _REPEAT), word(block, _SLOTS)
    start = word(block, _SCRATCH) + count(block, ARRIVED) * slots * 8
    blocks = (channels + 3) // 4 * 4
    odds, slope = elements(start, blocks, _double), elements(start + 8 * blocks, channels, _double)
    totals = elements(start + 8 * (blocks + channels), channels, _double)
    first = start + 8 * (blocks + 2 * channels)
    gates = elements(first, repeat * channels, wide)
    sums = elements(first + 8 * repeat * channels, repeat * channels, wide)
    return odds, slope, totals, gates, sums


@numba_jit(inline=True)
def _draw(block: Any, gate: Any, slope: Any, odds: Any, sample: Any, loc_like: Any) -> None:
    """Gates of one sample, and their derivatives by loc unless ``slope`` is empty: zero where a gate is cut off.

    Step by step along ``odds``, which has room for whole blocks of draws, and without branches: nobody predicts which
    gates are cut off, and loops are vectorized.
    """
    channels = word(block, _CHANNELS)
    loc = elements(word(block, _LOC), channels, loc_like)
    seed, beta, gamma, zeta = word(block, _SEED), real(block, _BETA), real(block, _GAMMA), real(block, _ZETA)
    number = np.uint64(sample) + np.uint64(word(block, _OFFSET))
    low, high = number & np.uint64(0xFFFFFFFF), number >> np.uint64(32)
    for n in range(odds.size // 4):
        words = numba_words(seed, n, low, high, philox.GATE)
        odds[4 * n] = numba_uniform(words[0])
        odds[4 * n + 1] = numba_uniform(words[1])
        odds[4 * n + 2] = numba_uniform(words[2])
        odds[4 * n + 3] = numba_uniform(words[3])
    for c in range(channels):
        odds[c] = exp(-(log(odds[c] / (1.0 - odds[c])) + load(loc, c)) / beta)
    for c in range(channels):
        stretched = 1.0 / (1.0 + odds[c]) * (zeta - gamma) + gamma
        g = 0.0 if stretched < 0.0 else stretched  # NaN stays
        gate[c] = 1.0 if g > 1.0 else g
    for c in range(slope.size):
        s = 1.0 / (1.0 + odds[c])
        stretched = s * (zeta - gamma) + gamma
        slope[c] = (1.0 if 0.0 <= stretched <= 1.0 else 0.0) * s * (1.0 - s) * (zeta - gamma) / beta


# A bound that is NaN bounds nothing, and NaN in x stays: both make every comparison false.


@numba_jit(inline=True)
def _clamp(x: Any, low: Any, high: Any) -> Any:
    above = low if x <= low else x
    return high if above >= high else above


@numba_jit(inline=True)
def _scale(y: Any, x: Any, gate: Any, low: Any, high: Any) -> None:
    for k in range(x.size):
        store(y, k, _clamp(load(x, k), low, high) * gate)


@numba_jit(inline=True)
def _scale_each(y: Any, x: Any, gates: Any, low: Any, high: Any) -> None:
    for k in range(x.size):
        store(y, k, _clamp(load(x, k), low, high) * gates[k])


@numba_jit(inline=True, reassociate=True)
def _scale_and_dot(dx: Any, dy: Any, x: Any, gate: Any, low: Any, high: Any, zero: Any) -> Any:
    total = zero
    for k in range(x.size):
        d, v = load(dy, k), load(x, k)
        total += d * _clamp(v, low, high)
        store(dx, k, zero if v <= low or v >= high else d * gate)
    return total


@numba_jit(inline=True)
def _scale_and_multiply_add(dx: Any, sums: Any, dy: Any, x: Any, gates: Any, low: Any, high: Any, zero: Any) -> None:
    for k in range(x.size):
        d, v = load(dy, k), load(x, k)
        sums[k] += d * _clamp(v, low, high)
        store(dx, k, zero if v <= low or v >= high else d * gates[k])


@region(_WORDS)
def _forward_rows(block: Any) -> None:
    """Space inside: rows of one channel each. Unit: several rows, or a part of one."""
    of_x, of_loc = like(block, 0), like(block, 1)
    odds, _, _, gate, _ = _scratch(block, wide_like(block))
    none = elements(0, 0, _double)
    channels, row, together = word(block, _CHANNELS), word(block, _ROW), word(block, _TOGETHER)
    sample_rows = word(block, _OUTER) * channels
    rows = word(block, _SAMPLES) * sample_rows
    x, item = word(block, _X), of_x.itemsize
    streamed = word(block, _STREAMED)
    low, high = gate.dtype.type(real(block, _LOW)), gate.dtype.type(real(block, _HIGH))
    parts = (row + UNIT - 1) // UNIT
    drawn = -1
    staged = buffer()
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        for n in range(cut(block, piece), cut(block, piece + 1)):
            r, part = n // parts * together, n % parts
            end = min(rows, r + together)
            size = min(UNIT, row - part * UNIT)
            start = r * row + part * UNIT
            place = word(block, _Y) + start * item
            target = staged if streamed else place
            c = r % sample_rows % channels
            left = sample_rows - r % sample_rows  # of the sample
            if r // sample_rows != drawn:
                drawn = r // sample_rows
                _draw(block, gate, none, odds, drawn, of_loc)
            for i in range(0, (end - r) * size * item, size * item):
                if left == 0:
                    drawn += 1
                    _draw(block, gate, none, odds, drawn, of_loc)
                    left = sample_rows
                _scale(elements(target + i, size, of_x), elements(x + start * item + i, size, of_x), gate[c], low, high)
                left -= 1
                c = c + 1 if c + 1 < channels else 0
            if streamed:
                stream(place, staged, (end - r) * size * item)
        piece = count(block, TAKEN)
    finish()


@region(_WORDS)
def _backward_rows(block: Any) -> None:
    """Sums over space times the slopes, (rows, parts of a row). Units as in the forward pass."""
    of_x, of_loc = like(block, 0), like(block, 1)
    odds, slope, _, gate, _ = _scratch(block, wide_like(block))
    channels, row, together = word(block, _CHANNELS), word(block, _ROW), word(block, _TOGETHER)
    sample_rows = word(block, _OUTER) * channels
    rows = word(block, _SAMPLES) * sample_rows
    dy, x, item = word(block, _DY), word(block, _X), of_x.itemsize
    streamed = word(block, _STREAMED)
    low, high = gate.dtype.type(real(block, _LOW)), gate.dtype.type(real(block, _HIGH))
    zero = gate.dtype.type(0)
    parts = (row + UNIT - 1) // UNIT
    sums = elements(word(block, _SUMS), rows * parts, _double)
    drawn = -1
    staged = buffer()
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        for n in range(cut(block, piece), cut(block, piece + 1)):
            r, part = n // parts * together, n % parts
            end = min(rows, r + together)
            size = min(UNIT, row - part * UNIT)
            start = r * row + part * UNIT
            place = word(block, _Y) + start * item
            bytes_of_all = (end - r) * size * item
            target = staged if streamed else place
            c = r % sample_rows % channels
            left = sample_rows - r % sample_rows
            if r // sample_rows != drawn:
                drawn = r // sample_rows
                _draw(block, gate, slope, odds, drawn, of_loc)
            for i in range(0, bytes_of_all, size * item):
                if left == 0:
                    drawn += 1
                    _draw(block, gate, slope, odds, drawn, of_loc)
                    left = sample_rows
                dx = elements(target + i, size, of_x)
                d, e = elements(dy + start * item + i, size, of_x), elements(x + start * item + i, size, of_x)
                total = np.float64(_scale_and_dot(dx, d, e, gate[c], low, high, zero))
                # Where the gate is cut off, not even NaN in x or dy counts, as in clamp.
                sums[r * parts + part] = slope[c] * total if slope[c] != 0.0 else 0.0
                r += 1
                left -= 1
                c = c + 1 if c + 1 < channels else 0
            if streamed:
                stream(place, staged, bytes_of_all)
        piece = count(block, TAKEN)
    finish()


@region(_WORDS)
def _forward_channels(block: Any) -> None:
    """Channels inside. Unit: several rows of all channels; some of one sample are handled as one long row."""
    of_x, of_loc = like(block, 0), like(block, 1)
    odds, _, _, gates, _ = _scratch(block, wide_like(block))
    none = elements(0, 0, _double)
    channels, outer, together = word(block, _CHANNELS), word(block, _OUTER), word(block, _TOGETHER)
    rows, repeat = word(block, _SAMPLES) * outer, word(block, _REPEAT)
    item = of_x.itemsize
    streamed = word(block, _STREAMED)
    low, high = gates.dtype.type(real(block, _LOW)), gates.dtype.type(real(block, _HIGH))
    drawn = -1
    staged = buffer()
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        for n in range(cut(block, piece), cut(block, piece + 1)):
            first, end = n * together, min(rows, (n + 1) * together)
            while first < end:
                last = min(end, (first // outer + 1) * outer)
                if first // outer != drawn:
                    drawn = first // outer
                    _draw(block, gates, none, odds, drawn, of_loc)
                    _repeat(gates, channels)
                for r in range(first, last, repeat):
                    i, size = r * channels * item, min(last - r, repeat) * channels
                    place = word(block, _Y) + i
                    x = elements(word(block, _X) + i, size, of_x)
                    _scale_each(elements(staged if streamed else place, size, of_x), x, gates, low, high)
                    if streamed:
                        stream(place, staged, size * item)
                first = last
        piece = count(block, TAKEN)
    finish()


@region(_WORDS)
def _backward_channels(block: Any) -> None:
    """Sums over space times the slopes, (units, C). Units as in the forward pass."""
    of_x, of_loc = like(block, 0), like(block, 1)
    odds, slope, totals, gates, short = _scratch(block, wide_like(block))
    channels, outer, together = word(block, _CHANNELS), word(block, _OUTER), word(block, _TOGETHER)
    rows, repeat = word(block, _SAMPLES) * outer, word(block, _REPEAT)
    item = of_x.itemsize
    streamed = word(block, _STREAMED)
    low, high = gates.dtype.type(real(block, _LOW)), gates.dtype.type(real(block, _HIGH))
    zero = gates.dtype.type(0)
    totals[:] = 0.0
    short[:] = 0.0
    drawn = -1
    staged = buffer()
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        for n in range(cut(block, piece), cut(block, piece + 1)):
            sums = elements(word(block, _SUMS) + 8 * n * channels, channels, _double)
            sums[:] = 0.0
            first, end = n * together, min(rows, (n + 1) * together)
            while first < end:
                last = min(end, (first // outer + 1) * outer)
                if first // outer != drawn:
                    drawn = first // outer
                    _draw(block, gates, slope, odds, drawn, of_loc)
                    _repeat(gates, channels)
                for begin in range(first, last, repeat * RUN):
                    for r in range(begin, min(last, begin + repeat * RUN), repeat):
                        i, size = r * channels * item, min(last - r, repeat) * channels
                        place = word(block, _Y) + i
                        dx = elements(staged if streamed else place, size, of_x)
                        dy, x = elements(word(block, _DY) + i, size, of_x), elements(word(block, _X) + i, size, of_x)
                        _scale_and_multiply_add(dx, short, dy, x, gates, low, high, zero)
                        if streamed:
                            stream(place, staged, size * item)
                    _move_sums(totals, short)
                for c in range(channels):
                    sums[c] += slope[c] * totals[c] if slope[c] != 0.0 else 0.0
                    totals[c] = 0.0
                first = last
        piece = count(block, TAKEN)
    finish()


@numba_jit(inline=True)
def _repeat(gates: Any, period: Any) -> None:
    for i in range(period, gates.size):
        gates[i] = gates[i - period]


@numba_jit(inline=True)
def _move_sums(totals: Any, short: Any) -> None:
    for low in range(0, short.size, totals.size):
        for c in range(totals.size):
            totals[c] += short[low + c]
            short[low + c] = 0


@region("6q")
def _add_up(block: Any) -> None:
    """Grad loc from its parts, (outer, C, inner), in one order."""
    channels, inner = word(block, FIRST + 3), word(block, FIRST + 4)
    outer = word(block, FIRST + 2)
    parts = elements(word(block, FIRST + 1), outer * channels * inner, _double)
    total = elements(word(block, FIRST + 5), channels, _double)
    total[:] = 0.0
    for n in range(outer):
        for c in range(channels):
            for i in range(inner):
                total[c] += parts[(n * channels + c) * inner + i]
    dloc = elements(word(block, FIRST), channels, like(block, 0))
    for c in range(channels):
        store(dloc, c, total[c])


class Cut(NamedTuple):
    """How the work on one layout is cut.

    Attributes:
        units: Number of units.
        work: A unit's work, in elements.
        together: Rows to a unit.
        repeat: With channels inside, rows that are handled as one.
        staged: Elements that are handled at once.
        parts: Sums to a channel: of how many in front of the channels, of how many after them.
        slots: float64 numbers of scratch memory to a thread.
    """

    units: int
    work: int
    together: int
    repeat: int
    staged: int
    parts: tuple[int, int]
    slots: int


@functools.lru_cache(maxsize=1024)  # as for layouts
def _cut_of(shape: Layout) -> Cut:
    gate = GATE / (shape.outer * shape.inner)  # per element
    channels = shape.channels
    if shape.inner == 1:
        rows = shape.batch * shape.outer
        together = max(1, min(LARGE * UNIT // channels, -(-rows // LEAST)))
        repeat = max(1, min(LONG // channels, shape.outer, together))
        units = -(-rows // together)
        work, staged, parts = together * channels, repeat * channels, (units, 1)
    else:
        together, repeat = max(1, UNIT // shape.inner), 1
        rows, pieces = shape.batch * shape.outer * channels, -(-shape.inner // UNIT)
        units = -(-rows // together) * pieces
        work, staged, parts = UNIT, UNIT, (shape.batch * shape.outer, pieces)
    slots = -(-channels // 4) * 4 + 2 * channels + 2 * repeat * channels
    return Cut(units, round(work * (1 + gate)), together, repeat, staged, parts, slots)


def _run(
    kernel: Any, y: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw,
    sums: int, plan: Cut,
) -> None:  # fmt: skip
    threads = parallel.threads_for(plan.units, plan.work)
    scratch = torch.empty(threads * plan.slots, dtype=torch.float64)
    kernel.run(
        (x.dtype, loc.dtype), plan.units, threads,
        y.data_ptr(), dy.data_ptr(), x.data_ptr(), loc.data_ptr(), sums, scratch.data_ptr(),
        draw.seed if draw.seed_tensor is None else int(draw.seed_tensor), draw.sample_offset,
        shape.batch, shape.outer, shape.channels, shape.inner, plan.together, plan.repeat,
        worthwhile(plan.staged, y, dy, x), plan.slots, draw.beta, draw.gamma, draw.zeta,
        draw.low if draw.low > -math.inf else math.nan, draw.high if draw.high < math.inf else math.nan,
    )  # fmt: skip


def forward(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw) -> None:
    """Write gated x to y, which lies as x does and may be x. loc is contiguous."""
    _run(_forward_channels if shape.inner == 1 else _forward_rows, y, x, x, loc, shape, draw, 0, _cut_of(shape))


def backward(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw
) -> torch.Tensor:
    """Write grad x to dx, which lies as dy and x do; grad loc, of loc's type. loc is contiguous."""
    plan = _cut_of(shape)
    outer, inner = plan.parts
    sums = torch.empty((outer * inner + 1) * shape.channels, dtype=torch.float64)
    start = sums.data_ptr()
    _run(_backward_channels if shape.inner == 1 else _backward_rows, dx, dy, x, loc, shape, draw, start, plan)
    dloc = torch.empty_like(loc)
    total = start + 8 * outer * inner * shape.channels
    _add_up.run((loc.dtype,), 1, 1, dloc.data_ptr(), start, outer, shape.channels, inner, total)
    return dloc
