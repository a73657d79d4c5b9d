"""The gate on the CPU: numba's kernels, for space inside and for channels inside, and how memory is cut for them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyassemble.kernels import parallel, philox
from pyassemble.kernels.deferred import numba_jit
from pyassemble.kernels.halves import load, store
from pyassemble.kernels.lines import LINE, are_lines, in_whole_lines, scale_and_add_line, scale_line
from pyassemble.kernels.memory import ELEMENTS, elements
from pyassemble.kernels.philox import numba_uniform, numba_words
from pyassemble.kernels.streaming import buffer, finish, stream, worthwhile

if TYPE_CHECKING:
    from pyassemble.kernels.hard_concrete.reference import Draw
    from pyassemble.kernels.layout import Layout

UNIT = 1024  # elements that one thread of the CPU takes at a time: 4 KiB of float32, a small part of its first cache
LONG = 1024  # elements of channels-last memory that are handled as one row: short rows cost more than their elements
UNITS = 64  # times as much with channels inside, where every unit has sums of its own for all channels
ROWS = 8  # rows of channels summed in float32 before the sum goes on in float64


@numba_jit()
def _draw_gates(
    gate: Any, slope: Any, odds: Any, sample: Any, loc: Any, seed: Any, offset: Any, beta: Any, gamma: Any, zeta: Any
) -> None:
    """Gates (C,) of one sample, and their derivatives by loc unless ``slope`` is empty: zero where a gate is cut off.

    Step by step along ``odds``, which has room for whole blocks of draws, and without branches: nobody predicts which
    gates are cut off.
    """
    number = np.uint64(sample) + np.uint64(offset)
    low, high = number & np.uint64(0xFFFFFFFF), number >> np.uint64(32)
    for block in range(odds.size // 4):
        words = numba_words(seed, block, low, high, philox.GATE)
        odds[4 * block] = numba_uniform(words[0])
        odds[4 * block + 1] = numba_uniform(words[1])
        odds[4 * block + 2] = numba_uniform(words[2])
        odds[4 * block + 3] = numba_uniform(words[3])
    for c in range(gate.size):
        odds[c] = math.log(odds[c] / (1.0 - odds[c]))
    for c in range(gate.size):
        odds[c] = math.exp(-(odds[c] + loc[c]) / beta)
    for c in range(gate.size):
        stretched = 1.0 / (1.0 + odds[c]) * (zeta - gamma) + gamma
        g = 0.0 if stretched < 0.0 else stretched  # NaN stays
        gate[c] = 1.0 if g > 1.0 else g
    for c in range(slope.size):
        s = 1.0 / (1.0 + odds[c])
        stretched = s * (zeta - gamma) + gamma
        slope[c] = (1.0 if 0.0 <= stretched <= 1.0 else 0.0) * s * (1.0 - s) * (zeta - gamma) / beta


@numba_jit()
def _scale(y: Any, x: Any, gate: Any, past: Any) -> None:
    """One gate for all; ``past``: y is whole lines, each at a multiple of its size, and stored past the caches."""
    done = in_whole_lines(x.size, x)
    for i in range(0, done, LINE // x.itemsize):
        scale_line(y, x, gate, i, past)
    for i in range(done, x.size):
        store(y, i, load(x, i) * gate)


@numba_jit()
def _scale_each(y: Any, x: Any, gates: Any) -> None:
    for i in range(x.size):
        store(y, i, load(x, i) * gates[i])


@numba_jit(reassociate=True)
def _scale_and_dot(dx: Any, dy: Any, x: Any, gate: Any, lanes: Any, past: Any) -> Any:
    """Sums along lanes, which ``lanes`` has room for: so their order is the same wherever dx is stored."""
    lanes[:] = 0
    done = in_whole_lines(x.size, x)
    for i in range(0, done, lanes.size):
        scale_and_add_line(dx, lanes, dy, x, gate, i, past)
    total = lanes.sum()
    for i in range(done, x.size):
        d = load(dy, i)
        total += d * load(x, i)
        store(dx, i, d * gate)
    return total


@numba_jit()
def _scale_and_multiply_add(dx: Any, sums: Any, dy: Any, x: Any, gates: Any) -> None:
    for i in range(x.size):
        d = load(dy, i)
        sums[i] += d * load(x, i)
        store(dx, i, d * gates[i])


@numba_jit()
def _forward_rows(
    start: Any, stop: Any, like: Any, wide: Any, y_address: Any, x_address: Any, loc: Any, seed: Any, offset: Any,
    beta: Any, gamma: Any, zeta: Any, samples: Any, outer: Any, row: Any, together: Any, unit: Any, streamed: Any,
) -> None:  # fmt: skip
    """Space inside: rows of one channel each. Unit: several rows, or a part of one."""
    channels = loc.size
    rows = samples * outer * channels
    x = elements(x_address, rows * row, like)
    gate, slope, odds = np.empty(channels, wide.dtype), np.empty(0), np.empty((channels + 3) // 4 * 4)
    drawn = -1
    parts = (row + unit - 1) // unit
    staged = buffer()
    for n in range(start, stop):
        first, last = n // parts * together, min(rows, (n // parts + 1) * together)
        size = min(unit, row - n % parts * unit)
        low = first * row + n % parts * unit
        high = low + (last - first) * size
        place = y_address + low * like.itemsize
        past = streamed and are_lines(place, size, like)  # every row of the unit
        staging = streamed and not past
        out = elements(staged if staging else place, high - low, like)
        for r in range(first, last):
            if r // (outer * channels) != drawn:
                drawn = r // (outer * channels)
                _draw_gates(gate, slope, odds, drawn, loc, seed, offset, beta, gamma, zeta)
            i = (r - first) * size
            _scale(out[i : i + size], x[low + i : low + i + size], gate[r % channels], past)
        if staging:
            stream(place, staged, (high - low) * like.itemsize)
    finish()


@numba_jit()
def _forward_channels(
    start: Any, stop: Any, like: Any, wide: Any, y_address: Any, x_address: Any, loc: Any, seed: Any, offset: Any,
    beta: Any, gamma: Any, zeta: Any, samples: Any, outer: Any, together: Any, repeat: Any, streamed: Any,
) -> None:  # fmt: skip
    """Channels inside. Unit: several rows of all channels; some of one sample are handled as one long row.

    Always by way of the buffer when streamed: line by line, each with other gates, took longer.
    """
    channels = loc.size
    x = elements(x_address, samples * outer * channels, like)
    gates, slope, odds = np.empty(repeat * channels, wide.dtype), np.empty(0), np.empty((channels + 3) // 4 * 4)
    drawn = -1
    staged = buffer()
    for n in range(start, stop):
        first, end = n * together, min(samples * outer, (n + 1) * together)
        while first < end:
            last = min(end, (first // outer + 1) * outer)
            if first // outer != drawn:
                drawn = first // outer
                _draw_gates(gates[:channels], slope, odds, drawn, loc, seed, offset, beta, gamma, zeta)
                _repeat(gates, channels)
            for r in range(first, last, repeat):
                i, j = r * channels, min(last, r + repeat) * channels
                place = y_address + i * like.itemsize
                _scale_each(elements(staged if streamed else place, j - i, like), x[i:j], gates)
                if streamed:
                    stream(place, staged, (j - i) * like.itemsize)
            first = last
    finish()


@numba_jit()
def _repeat(gates: Any, period: Any) -> None:
    for i in range(period, gates.size):
        gates[i] = gates[i - period]


@numba_jit()
def _backward_rows(
    start: Any, stop: Any, sums: Any, like: Any, wide: Any, dx_address: Any, dy_address: Any, x_address: Any,
    loc: Any, seed: Any, offset: Any, beta: Any, gamma: Any, zeta: Any,
    outer: Any, row: Any, together: Any, unit: Any, streamed: Any,
) -> None:  # fmt: skip
    """Sums over space times the slopes, (rows, parts of a row). Units as in the forward pass."""
    channels = loc.size
    rows, parts = sums.shape
    dy, x = elements(dy_address, rows * row, like), elements(x_address, rows * row, like)
    gate, slope, odds = np.empty(channels, wide.dtype), np.empty(channels), np.empty((channels + 3) // 4 * 4)
    drawn = -1
    lanes = np.empty(LINE // wide.itemsize, wide.dtype)
    staged = buffer()
    for n in range(start, stop):
        first, last = n // parts * together, min(rows, (n // parts + 1) * together)
        size = min(unit, row - n % parts * unit)
        low = first * row + n % parts * unit
        high = low + (last - first) * size
        place = dx_address + low * like.itemsize
        past = streamed and are_lines(place, size, like)  # every row of the unit
        staging = streamed and not past
        out = elements(staged if staging else place, high - low, like)
        for r in range(first, last):
            if r // (outer * channels) != drawn:
                drawn = r // (outer * channels)
                _draw_gates(gate, slope, odds, drawn, loc, seed, offset, beta, gamma, zeta)
            c = r % channels
            i, j = (r - first) * size, (r - first + 1) * size
            y = _scale_and_dot(out[i:j], dy[low + i : low + j], x[low + i : low + j], gate[c], lanes, past)
            total = np.float64(y)
            # Where the gate is cut off, not even NaN in x or dy counts, as in clamp.
            sums[r, n % parts] = slope[c] * total if slope[c] != 0.0 else 0.0
        if staging:
            stream(place, staged, (high - low) * like.itemsize)
    finish()


@numba_jit()
def _backward_channels(
    start: Any, stop: Any, sums: Any, like: Any, wide: Any, dx_address: Any, dy_address: Any, x_address: Any,
    loc: Any, seed: Any, offset: Any, beta: Any, gamma: Any, zeta: Any, samples: Any, outer: Any, together: Any,
    repeat: Any, most: Any, streamed: Any,
) -> None:  # fmt: skip
    """Sums over space times the slopes, (units, C). Units as in the forward pass."""
    channels = loc.size
    size = samples * outer * channels
    dy, x = elements(dy_address, size, like), elements(x_address, size, like)
    gates, slope, odds = np.empty(repeat * channels, wide.dtype), np.empty(channels), np.empty((channels + 3) // 4 * 4)
    drawn = -1
    short = np.zeros(repeat * channels, wide.dtype)
    totals = np.zeros(channels)
    staged = buffer()
    for n in range(start, stop):
        first, end = n * together, min(samples * outer, (n + 1) * together)
        while first < end:
            last = min(end, (first // outer + 1) * outer)
            if first // outer != drawn:
                drawn = first // outer
                _draw_gates(gates[:channels], slope, odds, drawn, loc, seed, offset, beta, gamma, zeta)
                _repeat(gates, channels)
            for begin in range(first, last, repeat * most):
                for r in range(begin, min(last, begin + repeat * most), repeat):
                    i, j = r * channels, min(last, r + repeat) * channels
                    place = dx_address + i * like.itemsize
                    out = elements(staged if streamed else place, j - i, like)
                    _scale_and_multiply_add(out, short, dy[i:j], x[i:j], gates)
                    if streamed:
                        stream(place, staged, (j - i) * like.itemsize)
                _move_sums(totals, short)
            for c in range(channels):
                sums[n, c] += slope[c] * totals[c] if slope[c] != 0.0 else 0.0
                totals[c] = 0.0
            first = last
    finish()


@numba_jit()
def _move_sums(totals: Any, short: Any) -> None:
    for low in range(0, short.size, totals.size):
        for c in range(totals.size):
            totals[c] += short[low + c]
            short[low + c] = 0


def _draw(x: torch.Tensor, loc: torch.Tensor, draw: Draw) -> tuple[Any, ...]:
    """What the kernels draw gates from."""
    seed = draw.seed if draw.seed_tensor is None else int(draw.seed_tensor)
    known = loc.detach() if loc.dtype is not torch.bfloat16 else loc.detach().to(torch.float32)  # NumPy has none
    values = known.numpy().astype(np.float64)
    return values, seed, draw.sample_offset, draw.beta, draw.gamma, draw.zeta


def forward(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw) -> None:
    """Write gated x to y, which lies as x does and may be x."""
    units, size, work, cut = _units(shape)
    kernel = _forward_channels if shape.inner == 1 else _forward_rows
    parallel.launch(
        kernel, units, work,
        ELEMENTS[x.dtype], _wide(x), y.data_ptr(), x.data_ptr(), *_draw(x, loc, draw),
        shape.batch, shape.outer, *cut, worthwhile(size, y, x),
    )  # fmt: skip


def backward(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw
) -> torch.Tensor:
    """Write grad x to dx, which lies as dy and x do; grad loc, float64."""
    units, size, work, cut = _units(shape)
    streamed = worthwhile(size, dx, dy, x)
    arrays = ELEMENTS[x.dtype], _wide(x), dx.data_ptr(), dy.data_ptr(), x.data_ptr(), *_draw(x, loc, draw)
    if shape.inner == 1:
        sums = np.zeros((units, shape.channels))
        launch = _backward_channels, units, work, sums, *arrays, shape.batch, shape.outer, *cut, ROWS, streamed
        parallel.launch(*launch)
        return torch.from_numpy(sums.sum(0))
    sums = np.empty((shape.batch * shape.outer * shape.channels, -(-shape.inner // UNIT)))
    parallel.launch(_backward_rows, units, work, sums, *arrays, shape.outer, *cut, streamed)
    return torch.from_numpy(sums.reshape(-1, shape.channels, sums.shape[1]).sum((0, 2)))


def _wide(x: torch.Tensor) -> Any:
    """The type that is computed in, as an empty array."""
    return ELEMENTS[torch.promote_types(x.dtype, torch.float32)]


@functools.lru_cache(maxsize=1024)  # as for layouts
def _units(shape: Layout) -> tuple[int, int, int, tuple[int, ...]]:
    """Number of units, the elements that are handled at once, a unit's work in elements, and how units are cut.

    With channels inside, that is rows of all channels to a unit, and rows of one sample handled as one; with space
    inside, a row's length, rows to a unit, and elements to a unit: a long row is several units.
    """
    gate = 4 / (shape.outer * shape.inner)  # per element; a gate costs as much as some elements
    if shape.inner == 1:
        together = max(1, UNITS * UNIT // shape.channels)
        repeat = max(1, min(LONG // shape.channels, shape.outer, together))
        work = round(together * shape.channels * (1 + gate))
        return -(-shape.batch * shape.outer // together), repeat * shape.channels, work, (together, repeat)
    together = max(1, UNIT // shape.inner)
    rows = shape.batch * shape.outer * shape.channels
    units = -(-rows // together) * -(-shape.inner // UNIT)
    return units, UNIT, round(UNIT * (1 + gate)), (shape.inner, together, UNIT)
