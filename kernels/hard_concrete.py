"""Hard-concrete gates: draw, gate and multiply in one pass over x.

For x of shape (B, C, ...) and loc of shape (C,), one gate per sample and channel (L0: Louizos, Welling, Kingma,
*Learning sparse neural networks through L0 regularization*, ICLR 2018, eq. 10 to 12; as used by Merging: Pašen, Boža,
*Merging of neural networks*, 2022):

    u ~ U(0, 1)
    s = sigmoid((log u - log(1 - u) + loc) / beta) (zeta - gamma) + gamma
    g = min(1, max(0, s))
    y = x g

u is a counter-based draw (see ``philox``) of (seed, sample, channel), so nothing but x, loc and the seed is kept for

    grad x = g grad y        grad loc = sum over samples of [0 <= s <= 1] (ds / dloc) sum over space of x grad y

which are computed in one pass over x and grad y, from gates drawn again. Sums run in an order that the shape alone
decides, without atomics. Arithmetic is in float32, in float64 where x is; the CPU computes the gates themselves (not
the products) in float64.

Under autocast nothing is cast: x keeps the type that it comes in, loc its own, and y has x's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyassemble.errors import OutOfRangeError, TensorError
from pyassemble.kernels import parallel, philox
from pyassemble.kernels.checks import check_integer, check_number_type, check_tensor, describe, split_seed
from pyassemble.kernels.deferred import numba_jit, triton_jit
from pyassemble.kernels.halves import load, store
from pyassemble.kernels.layout import Layout, laid_out_like, layout
from pyassemble.kernels.memory import ELEMENTS, elements
from pyassemble.kernels.operators import differentiable, element, operator
from pyassemble.kernels.philox import numba_uniform, numba_words, triton_uniform
from pyassemble.kernels.streaming import buffer, finish, stream, worthwhile

if TYPE_CHECKING:
    import triton.language as tl

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # L0, section 4; Merging

UNIT = 1024  # elements that one thread of the CPU takes at a time: 4 KiB of float32, a small part of its first cache
LONG = 1024  # elements of channels-last memory that are handled as one row: short rows cost more than their elements
UNITS = 64  # times as much with channels inside, where every unit has sums of its own for all channels
ROWS = 8  # rows of channels summed in float32 before the sum goes on in float64

TILE = 2048  # elements of a Triton program's tile; neither number has been tuned on a GPU
TILES = 8  # tiles along which one program of the backward pass sums


# -- Eager reference ---------------------------------------------------------------------------------------------------


def hard_concrete_gate_reference(
    x: torch.Tensor,
    loc: torch.Tensor,
    u: torch.Tensor,
    *,
    dim: int = 1,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """The same gate in plain PyTorch from given draws, differentiable to any order.

    Args:
        x: (B, ...) with C channels on ``dim``.
        loc: (C,).
        u: (B, C), in (0, 1).
        dim: Dimension of the channels.
        beta: Temperature.
        gamma: Lower end of the stretched interval.
        zeta: Upper end of the stretched interval.

    Returns:
        x times the gates, in the type that PyTorch promotes the three to.
    """
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + loc) / beta) * (zeta - gamma) + gamma
    return x * _over_channels(s.clamp(0, 1), x.ndim, dim)


def _over_channels(gate: torch.Tensor, ndim: int, dim: int) -> torch.Tensor:
    """(C,) or (B, C) with as many dimensions as x, channels on ``dim``."""
    shape = [1] * ndim
    shape[dim] = gate.shape[-1]
    if gate.ndim == 2:
        shape[0] = gate.shape[0]
    return gate.view(shape)


# -- CPU ---------------------------------------------------------------------------------------------------------------


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
def _scale(y: Any, x: Any, gate: Any) -> None:
    for i in range(x.size):
        store(y, i, load(x, i) * gate)


@numba_jit()
def _scale_each(y: Any, x: Any, gates: Any) -> None:
    for i in range(x.size):
        store(y, i, load(x, i) * gates[i])


@numba_jit(reassociate=True)
def _scale_and_dot(dx: Any, dy: Any, x: Any, gate: Any, zero: Any) -> Any:
    total = zero
    for i in range(x.size):
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
def _cpu_forward_rows(
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
        out = elements(staged if streamed else place, high - low, like)
        for r in range(first, last):
            if r // (outer * channels) != drawn:
                drawn = r // (outer * channels)
                _draw_gates(gate, slope, odds, drawn, loc, seed, offset, beta, gamma, zeta)
            i = (r - first) * size
            _scale(out[i : i + size], x[low + i : low + i + size], gate[r % channels])
        if streamed:
            stream(place, staged, (high - low) * like.itemsize)
    finish()


@numba_jit()
def _cpu_forward_channels(
    start: Any, stop: Any, like: Any, wide: Any, y_address: Any, x_address: Any, loc: Any, seed: Any, offset: Any,
    beta: Any, gamma: Any, zeta: Any, samples: Any, outer: Any, together: Any, repeat: Any, streamed: Any,
) -> None:  # fmt: skip
    """Channels inside. Unit: several rows of all channels; some of one sample are handled as one long row."""
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
def _cpu_backward_rows(
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
    zero = wide.dtype.type(0)
    staged = buffer()
    for n in range(start, stop):
        first, last = n // parts * together, min(rows, (n // parts + 1) * together)
        size = min(unit, row - n % parts * unit)
        low = first * row + n % parts * unit
        high = low + (last - first) * size
        place = dx_address + low * like.itemsize
        out = elements(staged if streamed else place, high - low, like)
        for r in range(first, last):
            if r // (outer * channels) != drawn:
                drawn = r // (outer * channels)
                _draw_gates(gate, slope, odds, drawn, loc, seed, offset, beta, gamma, zeta)
            c = r % channels
            i, j = (r - first) * size, (r - first + 1) * size
            total = np.float64(_scale_and_dot(out[i:j], dy[low + i : low + j], x[low + i : low + j], gate[c], zero))
            # Where the gate is cut off, not even NaN in x or dy counts, as in clamp.
            sums[r, n % parts] = slope[c] * total if slope[c] != 0.0 else 0.0
        if streamed:
            stream(place, staged, (high - low) * like.itemsize)
    finish()


@numba_jit()
def _cpu_backward_channels(
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


def _cpu_draw(x: torch.Tensor, loc: torch.Tensor, draw: _Draw) -> tuple[Any, ...]:
    """What the kernels draw gates from."""
    seed = draw.seed if draw.seed_tensor is None else int(draw.seed_tensor)
    values = np.ascontiguousarray(loc.detach().to(torch.float64).numpy())
    return values, seed, draw.sample_offset, draw.beta, draw.gamma, draw.zeta


def _cpu_forward(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: _Draw) -> None:
    units, size, work, cut = _units(shape)
    kernel = _cpu_forward_channels if shape.inner == 1 else _cpu_forward_rows
    parallel.launch(
        kernel, units, work,
        ELEMENTS[x.dtype], _wide(x), y.data_ptr(), x.data_ptr(), *_cpu_draw(x, loc, draw),
        shape.batch, shape.outer, *cut, worthwhile(size, y, x),
    )  # fmt: skip


def _cpu_backward(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: _Draw
) -> torch.Tensor:
    units, size, work, cut = _units(shape)
    streamed = worthwhile(size, dx, dy, x)
    arrays = ELEMENTS[x.dtype], _wide(x), dx.data_ptr(), dy.data_ptr(), x.data_ptr(), *_cpu_draw(x, loc, draw)
    if shape.inner == 1:
        sums = np.zeros((units, shape.channels))
        launch = _cpu_backward_channels, units, work, sums, *arrays, shape.batch, shape.outer, *cut, ROWS, streamed
        parallel.launch(*launch)
        return torch.from_numpy(sums.sum(0))
    sums = np.empty((shape.batch * shape.outer * shape.channels, -(-shape.inner // UNIT)))
    parallel.launch(_cpu_backward_rows, units, work, sums, *arrays, shape.outer, *cut, streamed)
    return torch.from_numpy(sums.reshape(-1, shape.channels, sums.shape[1]).sum((0, 2)))


def _wide(x: torch.Tensor) -> Any:
    """The type that is computed in, as an empty array."""
    return ELEMENTS[torch.promote_types(x.dtype, torch.float32)]


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


# -- CUDA --------------------------------------------------------------------------------------------------------------


@triton_jit()
def _triton_gates(  # type: ignore[no-untyped-def]
    loc_ptr, seed_ptr, seed, sample, channel, inside, BETA: tl.constexpr, GAMMA: tl.constexpr, ZETA: tl.constexpr,
    SEED_IN_MEMORY: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Gates and their derivatives by loc, of the broadcast shape of sample (int64) and channel (int32)."""
    if SEED_IN_MEMORY:
        seed = tl.load(seed_ptr)
    sample = sample.to(tl.int64)
    low = (sample & 0xFFFFFFFF).to(tl.uint32)
    high = (sample >> 32).to(tl.uint32)
    draw, low = tl.broadcast(channel, low)
    u = triton_uniform(seed, draw, low, low * 0 + high, 0).to(DTYPE)
    loc = tl.load(loc_ptr + channel, mask=inside, other=0.0).to(DTYPE)
    s = tl.sigmoid((tl.log(u / (1.0 - u)) + loc) / BETA)
    stretched = s * (ZETA - GAMMA) + GAMMA
    gate = tl.where(stretched < 0.0, 0.0, tl.where(stretched > 1.0, 1.0, stretched))  # NaN stays
    open_between = ((stretched >= 0.0) & (stretched <= 1.0)).to(DTYPE)
    return gate.to(DTYPE), (open_between * s * (1.0 - s) * ((ZETA - GAMMA) / BETA)).to(DTYPE)


@triton_jit(do_not_specialize=("seed", "sample_offset"))
def _triton_forward_kernel(  # type: ignore[no-untyped-def]
    y_ptr, x_ptr, loc_ptr, seed_ptr, seed, sample_offset, outer, channels, space,
    BETA: tl.constexpr, GAMMA: tl.constexpr, ZETA: tl.constexpr, SEED_IN_MEMORY: tl.constexpr,
    CHANNELS_INSIDE: tl.constexpr, SAMPLES_IN_SPACE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile (space, channels) of one plane; a plane is what lies in memory for one sample and outer index."""
    program = tl.program_id(0).to(tl.int64)  # planes times their size may exceed 2^31
    space_blocks = tl.cdiv(space, BLOCK_S)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    plane = program // (space_blocks * channel_blocks)
    s = (program % space_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    c = ((program // space_blocks) % channel_blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    sample = (s if SAMPLES_IN_SPACE else plane // outer + tl.zeros((1, 1), tl.int64)) + sample_offset
    gate, _ = _triton_gates(loc_ptr, seed_ptr, seed, sample, c, c < channels, BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE)
    if CHANNELS_INSIDE:
        place = plane * space * channels + s * channels + c
    else:
        place = plane * space * channels + s + c.to(tl.int64) * space
    mask = (s < space) & (c < channels)
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(DTYPE)
    tl.store(y_ptr + place, x * gate, mask=mask)


@triton_jit(do_not_specialize=("seed", "sample_offset"))
def _triton_backward_kernel(  # type: ignore[no-untyped-def]
    dx_ptr, sums_ptr, dy_ptr, x_ptr, loc_ptr, seed_ptr, seed, sample_offset, planes, outer, channels, space,
    planes_together, space_together,
    BETA: tl.constexpr, GAMMA: tl.constexpr, ZETA: tl.constexpr, SEED_IN_MEMORY: tl.constexpr,
    CHANNELS_INSIDE: tl.constexpr, SAMPLES_IN_SPACE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Tiles of one block of channels along space and planes, one after the other; their sums to a row of ``sums``."""
    program = tl.program_id(0).to(tl.int64)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    space_parts = tl.cdiv(space, space_together)
    c = (program % channel_blocks).to(tl.int32) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    part = (program // channel_blocks) % space_parts
    group = program // (channel_blocks * space_parts)
    last_plane = tl.minimum(planes, (group + 1) * planes_together)
    last = tl.minimum(space, (part + 1) * space_together)
    total = tl.zeros((1, BLOCK_C), DTYPE)
    for plane in range(group * planes_together, last_plane):
        tile = tl.zeros((BLOCK_S, BLOCK_C), DTYPE)
        sample = plane // outer + sample_offset + tl.zeros((1, 1), tl.int64)
        if not SAMPLES_IN_SPACE:
            gate, slope = _triton_gates(
                loc_ptr, seed_ptr, seed, sample, c, c < channels, BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE
            )
        for first in range(part * space_together, last, BLOCK_S):
            s = (first + tl.arange(0, BLOCK_S)[:, None]).to(tl.int64)
            if CHANNELS_INSIDE:
                place = plane * space * channels + s * channels + c
            else:
                place = plane * space * channels + s + c.to(tl.int64) * space
            mask = (s < space) & (c < channels)
            x = tl.load(x_ptr + place, mask=mask, other=0.0).to(DTYPE)
            dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(DTYPE)
            if SAMPLES_IN_SPACE:
                gate, slope = _triton_gates(
                    loc_ptr, seed_ptr, seed, s + sample_offset, c, c < channels,
                    BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE,
                )  # fmt: skip
                tile += tl.where((slope != 0.0) & mask, x * dy * slope, 0.0)
            else:
                tile += x * dy
            tl.store(dx_ptr + place, dy * gate, mask=mask)
        column = tl.sum(tile, axis=0)[None, :]
        if SAMPLES_IN_SPACE:
            total += column
        else:  # where the gate is cut off, not even NaN in x or dy counts, as in clamp
            total += tl.where(slope != 0.0, column * slope, 0.0)
    row = group * space_parts + part
    tl.store(sums_ptr + row * channels + c, total, mask=c < channels)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


class _Grid:
    """How a tensor is cut into planes and tiles for Triton."""

    def __init__(self, shape: Layout) -> None:
        self.channels = shape.channels
        self.samples_in_space = shape.outer == shape.inner == 1
        self.channels_inside = shape.inner == 1
        if self.samples_in_space:  # no space: all samples are one plane, and every row has gates of its own
            self.planes, self.outer, self.space = 1, 1, shape.batch
        elif self.channels_inside:
            self.planes, self.outer, self.space = shape.batch, 1, shape.outer
        else:
            self.planes, self.outer, self.space = shape.batch * shape.outer, shape.outer, shape.inner
        if self.channels_inside:
            self.block_c = min(_power_of_two(self.channels), 128)
            self.block_s = min(_power_of_two(self.space), TILE // self.block_c)
        else:
            self.block_s = min(_power_of_two(self.space), 1024)
            self.block_c = min(_power_of_two(self.channels), TILE // self.block_s)

    def constants(self, x: torch.Tensor, draw: _Draw) -> dict[str, Any]:
        tl: Any = __import__("triton.language", fromlist=["float32"])
        return {
            "BETA": draw.beta,
            "GAMMA": draw.gamma,
            "ZETA": draw.zeta,
            "SEED_IN_MEMORY": draw.seed_tensor is not None,
            "CHANNELS_INSIDE": self.channels_inside,
            "SAMPLES_IN_SPACE": self.samples_in_space,
            "DTYPE": tl.float64 if x.dtype is torch.float64 else tl.float32,
            "BLOCK_S": self.block_s,
            "BLOCK_C": self.block_c,
        }


def _triton_forward(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: _Draw) -> None:
    cut = _Grid(shape)
    programs = cut.planes * -(-cut.space // cut.block_s) * -(-cut.channels // cut.block_c)
    _triton_forward_kernel[(programs,)](
        y, x, loc, draw.seed_tensor, draw.seed, draw.sample_offset, cut.outer, cut.channels, cut.space,
        **cut.constants(x, draw), enable_fp_fusion=False,
    )  # fmt: skip


def _triton_backward(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: _Draw
) -> torch.Tensor:
    cut = _Grid(shape)
    space_together = min(cut.space, TILES * cut.block_s)
    planes_together = max(1, TILES * cut.block_s // cut.space)
    rows = -(-cut.planes // planes_together) * -(-cut.space // space_together)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    sums = torch.empty((rows, cut.channels), dtype=wide, device=x.device)
    _triton_backward_kernel[(rows * -(-cut.channels // cut.block_c),)](
        dx, sums, dy, x, loc, draw.seed_tensor, draw.seed, draw.sample_offset,
        cut.planes, cut.outer, cut.channels, cut.space, planes_together, space_together,
        **cut.constants(x, draw), enable_fp_fusion=False,
    )  # fmt: skip
    return sums.sum(0, dtype=torch.float64)


# -- Operators ---------------------------------------------------------------------------------------------------------


class _Draw:
    """What decides the gates beside loc."""

    def __init__(
        self, seed_tensor: torch.Tensor | None, seed: int, sample_offset: int, beta: float, gamma: float, zeta: float
    ) -> None:
        self.seed_tensor, self.seed, self.sample_offset = seed_tensor, seed, sample_offset
        self.beta, self.gamma, self.zeta = beta, gamma, zeta

    def gates(self, samples: int, loc: torch.Tensor) -> torch.Tensor:
        """Gates (samples, C) by the eager reference, for devices without a kernel."""
        numbers = torch.arange(samples, device=loc.device) + self.sample_offset
        seed = self.seed if self.seed_tensor is None else self.seed_tensor
        u = philox.gate_draws(seed, numbers, loc.shape[0]).to(loc.dtype)
        ones = torch.ones_like(u)
        return hard_concrete_gate_reference(ones, loc, u, beta=self.beta, gamma=self.gamma, zeta=self.zeta)


def _forward_into(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, dim: int, draw: _Draw) -> None:
    """Write gated x to a dense y, which may be x itself."""
    if x.numel() == 0:
        return
    if x.device.type not in ("cpu", "cuda"):
        wide = torch.promote_types(x.dtype, torch.float32)
        y.copy_(x * _over_channels(draw.gates(x.shape[0], loc.to(wide)), x.ndim, dim))
        return
    shape = layout(y, dim)
    if shape is None:  # the samples do not lie one after the other: by way of a copy
        plain = torch.empty_like(x, memory_format=torch.contiguous_format)
        _forward_into(plain, x.contiguous(), loc, dim, draw)
        y.copy_(plain)
        return
    x = laid_out_like(x, y)
    if x.device.type == "cpu":
        _cpu_forward(y, x, loc, shape, draw)
    else:
        with torch.cuda.device(x.device):
            _triton_forward(y, x, loc.contiguous(), shape, draw)


def _backward_into(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, dim: int, draw: _Draw
) -> torch.Tensor:
    """Write grad x to a dense dx; grad loc in loc's own type."""
    if x.numel() == 0:
        return torch.zeros_like(loc)
    if x.device.type not in ("cpu", "cuda"):
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.enable_grad():
            inputs = x.detach().to(wide).requires_grad_(), loc.detach().to(wide).requires_grad_()
            y = inputs[0] * _over_channels(draw.gates(x.shape[0], inputs[1]), x.ndim, dim)
        grad_x, grad_loc = torch.autograd.grad(y, inputs, dy.to(wide))
        dx.copy_(grad_x)
        return grad_loc.to(loc.dtype)
    shape = layout(dx, dim)
    if shape is None:
        plain = torch.empty_like(x, memory_format=torch.contiguous_format)
        dloc = _backward_into(plain, dy.contiguous(), x.contiguous(), loc, dim, draw)
        dx.copy_(plain)
        return dloc
    dy, x = laid_out_like(dy, dx), laid_out_like(x, dx)
    if x.device.type == "cpu":
        return _cpu_backward(dx, dy, x, loc, shape, draw).to(loc.dtype)
    with torch.cuda.device(x.device):
        return _triton_backward(dx, dy, x, loc.contiguous(), shape, draw).to(loc.dtype)


def _run(
    x: torch.Tensor, loc: torch.Tensor, seed_tensor: torch.Tensor | None, seed: int, dim: int, *numbers: Any
) -> Any:
    y = torch.empty_like(x)
    _forward_into(y, x, loc, dim, _Draw(seed_tensor, seed, *numbers))
    return y


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _run_backward(
    dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, seed_tensor: torch.Tensor | None, seed: int, dim: int,
    *numbers: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    dx = torch.empty_like(x)
    return dx, _backward_into(dx, dy, x, loc, dim, _Draw(seed_tensor, seed, *numbers))


def _fake_backward(dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), loc.new_empty(loc.shape)


_NUMBERS = "Tensor? seed_tensor, SymInt seed, int dim, SymInt sample_offset, float beta, float gamma, float zeta"
_gate = operator(f"hard_concrete_gate(Tensor x, Tensor loc, {_NUMBERS}) -> Tensor", _run, _fake)
_gate_backward = operator(
    f"hard_concrete_gate_backward(Tensor dy, Tensor x, Tensor loc, {_NUMBERS}) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


@torch.library.custom_op("pyassemble::hard_concrete_gate_", mutates_args=("x",))
def _gate_in_place(
    x: torch.Tensor, loc: torch.Tensor, seed_tensor: torch.Tensor | None, seed: int, dim: int, sample_offset: int,
    beta: float, gamma: float, zeta: float,
) -> None:  # fmt: skip
    draw = _Draw(seed_tensor, seed, sample_offset, beta, gamma, zeta)
    if layout(x, dim) is not None:
        _forward_into(x, x, loc, dim, draw)
    else:
        y = torch.empty_like(x)
        _forward_into(y, x, loc, dim, draw)
        x.copy_(y)


@_gate_in_place.register_fake
def _gate_in_place_fake(x: torch.Tensor, *_: Any) -> None:
    return None


@_gate_in_place.register_vmap
def _gate_in_place_batched(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[None, None]:
    if dims[0] is None:
        raise TensorError(
            f"{describe('x', arguments[0])} is one for all elements of torch.vmap's batch, which would each overwrite "
            "it; accepted: x batched too, or the function without the underscore"
        )
    for v in range(info.batch_size):
        _gate_in_place(*element(arguments, dims, v))
    return None, None


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, loc, seed_tensor, *ctx.numbers = inputs
    needs_loc = ctx.needs_input_grad[1]
    ctx.save_for_backward(x if needs_loc else None, loc, seed_tensor)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    x, loc, seed_tensor = ctx.saved_tensors
    if ctx.needs_input_grad[1]:
        dx, dloc = _gate_backward(dy, x, loc, seed_tensor, *ctx.numbers)
    else:  # the gate is linear in x
        dx, dloc = _gate(dy, loc, seed_tensor, *ctx.numbers), None
    return dx, dloc, *[None] * 7


_differentiable_gate = differentiable(_gate, _differentiate, _keep_for_backward)


# -- Public functions --------------------------------------------------------------------------------------------------


def hard_concrete_gate(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    seed: int | torch.Tensor,
    dim: int = 1,
    sample_offset: int = 0,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """Multiply x by a hard-concrete gate per (sample, channel), drawn anew for every seed (L0, eq. 10 to 12).

    The draw depends on (seed, sample + sample_offset, channel) alone: it is the same on the CPU and on CUDA, for every
    spatial size, layout and type of x. Two places that call with one seed and one loc share their gates. Under
    ``torch.vmap`` each element of the batch is computed as if alone: with one seed for all, all draw alike; with a
    seed each (a batched tensor), each draws its own. torch.compile follows ``vmap``, but not
    ``torch.func.grad``.

    Args:
        x: (B, ...), float32, bfloat16, float16 or float64, with C channels on ``dim``. Any dense layout whose samples
            lie one after the other is read where it is; others are copied first.
        loc: (C,), on x's device.
        seed: int in [0, 2**63), or a 0-d int64 tensor on x's device, which a captured CUDA graph reads at each replay.
            It must keep its value until the backward pass has run.
        dim: Dimension of the channels, not 0.
        sample_offset: Number of the first sample. A batch cut in two, the second part with the size of the first as
            its offset, draws the same gates as the whole.
        beta: Temperature, > 0.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.

    Returns:
        Tensor like x. Differentiable once, by x and loc.

    Raises:
        ArgumentTypeError: An argument of the wrong type.
        OutOfRangeError: A number outside its range.
        TensorError: Tensors whose type, shapes or devices do not go together.
    """
    dim = _check(x, loc, dim, beta, gamma, zeta)
    check_integer("sample_offset", sample_offset, 2**62)
    number, tensor = split_seed(seed, x.device)
    numbers = number, dim, sample_offset, float(beta), float(gamma), float(zeta)
    y: torch.Tensor = _differentiable_gate(x, loc, tensor, *numbers)
    return y


def hard_concrete_gate_(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    seed: int | torch.Tensor,
    dim: int = 1,
    sample_offset: int = 0,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """``hard_concrete_gate`` written over x, for inference: no gradient flows through it. Arguments as there.

    Returns:
        x.

    Raises:
        TensorError: x or loc requires a gradient while gradients are recorded, or as in ``hard_concrete_gate``.
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
    """
    dim = _check(x, loc, dim, beta, gamma, zeta)
    check_integer("sample_offset", sample_offset, 2**62)
    number, tensor = split_seed(seed, x.device)
    _refuse_gradients(x, loc)
    _gate_in_place(x, loc, tensor, number, dim, sample_offset, float(beta), float(gamma), float(zeta))
    return x


def hard_concrete_values(
    loc: torch.Tensor,
    batch: int,
    *,
    seed: int | torch.Tensor,
    sample_offset: int = 0,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """The gates themselves: what ``hard_concrete_gate`` with the same arguments multiplies by.

    Args:
        loc: (C,).
        batch: B, the number of samples.
        seed: As in ``hard_concrete_gate``; a tensor is on loc's device.
        sample_offset: As in ``hard_concrete_gate``.
        beta: As in ``hard_concrete_gate``.
        gamma: As in ``hard_concrete_gate``.
        zeta: As in ``hard_concrete_gate``.

    Returns:
        (B, C), float32, or float64 where loc is. Differentiable once, by loc.

    Raises:
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
        TensorError: As in ``hard_concrete_gate``.
    """
    _check_loc(loc)
    check_integer("batch", batch, 2**31)
    dtype = torch.promote_types(loc.dtype, torch.float32)
    ones = torch.ones(batch, loc.shape[0], dtype=dtype, device=loc.device)
    return hard_concrete_gate(ones, loc, seed=seed, sample_offset=sample_offset, beta=beta, gamma=gamma, zeta=zeta)


def hard_concrete_eval(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    dim: int = 1,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """Multiply x by the gates of evaluation, min(1, max(0, sigmoid(loc) (zeta - gamma) + gamma)) (L0, eq. 13).

    A broadcast multiplication, which PyTorch does in one pass: no kernel of ours runs.

    Args:
        x: As in ``hard_concrete_gate``.
        loc: (C,), on x's device.
        dim: Dimension of the channels, not 0.
        beta: Checked, but without effect in evaluation.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.

    Returns:
        Tensor like x. Differentiable by x and loc.

    Raises:
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
        TensorError: As in ``hard_concrete_gate``.
    """
    dim = _check(x, loc, dim, beta, gamma, zeta)
    return x * _eval_gate(x, loc, dim, gamma, zeta)


def hard_concrete_eval_(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    dim: int = 1,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """``hard_concrete_eval`` written over x, for inference: no gradient flows through it. Arguments as there.

    Returns:
        x.

    Raises:
        TensorError: x or loc requires a gradient while gradients are recorded, or as in ``hard_concrete_gate``.
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
    """
    dim = _check(x, loc, dim, beta, gamma, zeta)
    _refuse_gradients(x, loc)
    return x.mul_(_eval_gate(x, loc, dim, gamma, zeta))


def gate_open_probability(
    loc: torch.Tensor, *, beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA
) -> torch.Tensor:
    """P[g > 0] = sigmoid(loc - beta log(-gamma / zeta)) of each gate (L0, eq. 12): the differentiable L0 norm's terms.

    Args:
        loc: (C,).
        beta: Temperature, > 0.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.

    Returns:
        (C,), of loc's type. Differentiable.

    Raises:
        ArgumentTypeError: An argument of the wrong type.
        OutOfRangeError: A number outside its range.
        TensorError: loc is not a vector of floating-point numbers.
    """
    _check_loc(loc)
    _check_interval(beta, gamma, zeta)
    return torch.sigmoid(loc - beta * math.log(-gamma / zeta))


def _eval_gate(x: torch.Tensor, loc: torch.Tensor, dim: int, gamma: float, zeta: float) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    gate = (torch.sigmoid(loc.to(wide)) * (zeta - gamma) + gamma).clamp(0, 1)
    return _over_channels(gate.to(x.dtype), x.ndim, dim)


def _check(x: torch.Tensor, loc: torch.Tensor, dim: int, beta: float, gamma: float, zeta: float) -> int:
    """Refuse bad arguments; the dimension of the channels, counted from the front."""
    check_tensor("x", x)
    _check_loc(loc)
    _check_interval(beta, gamma, zeta)
    check_number_type("dim", dim, int)
    if x.ndim < 2 or not -x.ndim <= dim < x.ndim or dim % x.ndim == 0:
        raise TensorError(
            f"{describe('x', x)} has no channels on dimension {dim}; accepted: (B, ...), channels on any other than 0"
        )
    dim %= x.ndim
    if x.shape[dim] != loc.shape[0]:
        raise TensorError(
            f"{describe('x', x)} has {x.shape[dim]} channels on dimension {dim}, {describe('loc', loc)} is for "
            f"{loc.shape[0]}; accepted: as many elements of loc as x has channels"
        )
    if x.device != loc.device:
        raise TensorError(f"{describe('x', x)} and {describe('loc', loc)}; accepted: both on one device")
    return dim


def _check_loc(loc: torch.Tensor) -> None:
    check_tensor("loc", loc)
    if loc.ndim != 1:
        raise TensorError(f"{describe('loc', loc)}; accepted: one dimension, one element for each channel")


def _check_interval(beta: float, gamma: float, zeta: float) -> None:
    for name, value in (("beta", beta), ("gamma", gamma), ("zeta", zeta)):
        check_number_type(name, value, int, float)
    if not (0 < beta < math.inf and -math.inf < gamma < 0 and 1 < zeta < math.inf):
        raise OutOfRangeError(
            f"beta {beta}, gamma {gamma}, zeta {zeta}; accepted: finite numbers, beta > 0, gamma < 0, zeta > 1"
        )


def _refuse_gradients(x: torch.Tensor, loc: torch.Tensor) -> None:
    if torch.is_grad_enabled() and (x.requires_grad or loc.requires_grad):
        raise TensorError(
            f"{describe('x', x)} would be overwritten while a gradient is asked for; accepted: under torch.no_grad(), "
            "or the function without the underscore"
        )
