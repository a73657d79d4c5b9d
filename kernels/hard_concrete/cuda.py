"""The gate on CUDA: Triton's kernels, and how memory is cut into their tiles."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch

from pyassemble.kernels.deferred import triton_jit
from pyassemble.kernels.philox import triton_uniform

if TYPE_CHECKING:
    import triton.language as tl

    from pyassemble.kernels.hard_concrete.reference import Draw
    from pyassemble.kernels.layout import Layout

# Elements of a tile of either pass, and tiles along which one program of the backward pass sums. Gates cost as much as
# many elements, so tiles are as large as registers allow. None has been tuned on a GPU.
FORWARD_TILE, BACKWARD_TILE = 4096, 2048
TILES = 8


@triton_jit()
def _gates(  # type: ignore[no-untyped-def]
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


@triton_jit()
def _clamp(  # type: ignore[no-untyped-def]
    value, x, at_low: tl.constexpr, at_high: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr
):  # fmt: skip
    """The value, or others where x is at or beyond the bounds, of which infinite ones bound nothing; NaN stays.

    Numbers are made of x's type: compared or chosen by themselves they would be rounded to float32, also among float64.
    """
    if float("-inf") < LOW:
        value = tl.where(x <= tl.full(x.shape, LOW, x.dtype), tl.full(x.shape, at_low, x.dtype), value)
    if float("inf") > HIGH:
        value = tl.where(x >= tl.full(x.shape, HIGH, x.dtype), tl.full(x.shape, at_high, x.dtype), value)
    return value


@triton_jit()
def _row_of_gates(  # type: ignore[no-untyped-def]
    loc_ptr, seed_ptr, seed, sample, first_channel, channels, BETA: tl.constexpr, GAMMA: tl.constexpr,
    ZETA: tl.constexpr, SEED_IN_MEMORY: tl.constexpr, DTYPE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The same of one sample, (1, BLOCK_C).

    Without the sums, over an axis of one, the compiler would have each thread compute the gates of all channels that it
    multiplies, which are the same in many threads; so they are shared out, and then exchanged.
    """
    c = first_channel + tl.arange(0, BLOCK_C)[:, None]
    samples = sample + tl.zeros((1, 1), tl.int64)
    gate, slope = _gates(loc_ptr, seed_ptr, seed, samples, c, c < channels, BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE)
    return tl.sum(gate, axis=1)[None, :], tl.sum(slope, axis=1)[None, :]


@triton_jit()
def _multiples(channels, space, CHANNELS_INSIDE: tl.constexpr, MULTIPLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both, the compiler told what divides the one that lies in a row in memory: loads may be that wide."""
    if MULTIPLE > 1:
        if CHANNELS_INSIDE:
            channels = channels // MULTIPLE * MULTIPLE
        else:
            space = space // MULTIPLE * MULTIPLE
    return channels, space


@triton_jit()
def _places(  # type: ignore[no-untyped-def]
    s, c, channels, space, CHANNELS_INSIDE: tl.constexpr, PLACE: tl.constexpr
):  # fmt: skip
    """Where in a plane elements lie."""
    if CHANNELS_INSIDE:
        return s.to(PLACE) * channels + c
    return s.to(PLACE) + c.to(PLACE) * space


@triton_jit(do_not_specialize=("seed", "sample_offset"))
def _forward_kernel(  # type: ignore[no-untyped-def]
    y_ptr, x_ptr, loc_ptr, seed_ptr, seed, sample_offset, outer, channels, space,
    BETA: tl.constexpr, GAMMA: tl.constexpr, ZETA: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    SEED_IN_MEMORY: tl.constexpr, CHANNELS_INSIDE: tl.constexpr, SAMPLES_IN_SPACE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, PLACE: tl.constexpr, MULTIPLE: tl.constexpr,
):  # fmt: skip
    """One tile (space, channels) of one plane; a plane is what lies in memory for one sample and outer index."""
    program = tl.program_id(0).to(tl.int64)  # planes times their size may exceed 2^31
    channels, space = _multiples(channels, space, CHANNELS_INSIDE, MULTIPLE)
    space_blocks = tl.cdiv(space, BLOCK_S)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    plane = program // (space_blocks * channel_blocks)
    s = (program % space_blocks) * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    first_c = ((program // space_blocks) % channel_blocks).to(tl.int32) * BLOCK_C
    c = first_c + tl.arange(0, BLOCK_C)[None, :]
    x_ptr += plane * space * channels
    y_ptr += plane * space * channels
    place = _places(s, c, channels, space, CHANNELS_INSIDE, PLACE)
    mask = (s < space) & (c < channels)
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(DTYPE)  # under way while the gates are drawn
    if SAMPLES_IN_SPACE:
        gate, _ = _gates(
            loc_ptr, seed_ptr, seed, s + sample_offset, c, c < channels,
            BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE,
        )  # fmt: skip
    else:
        gate, _ = _row_of_gates(
            loc_ptr, seed_ptr, seed, plane // outer + sample_offset, first_c, channels,
            BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE, BLOCK_C,
        )  # fmt: skip
    tl.store(y_ptr + place, _clamp(x, x, LOW, HIGH, LOW, HIGH) * gate, mask=mask)


@triton_jit(do_not_specialize=("seed", "sample_offset"))
def _backward_kernel(  # type: ignore[no-untyped-def]
    dx_ptr, sums_ptr, dy_ptr, x_ptr, loc_ptr, seed_ptr, seed, sample_offset, planes, outer, channels, space,
    planes_together, space_together,
    BETA: tl.constexpr, GAMMA: tl.constexpr, ZETA: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    SEED_IN_MEMORY: tl.constexpr, CHANNELS_INSIDE: tl.constexpr, SAMPLES_IN_SPACE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, PLACE: tl.constexpr, MULTIPLE: tl.constexpr,
):  # fmt: skip
    """Tiles of one block of channels along space and planes, one after the other; their sums to a row of ``sums``."""
    program = tl.program_id(0).to(tl.int64)
    channels, space = _multiples(channels, space, CHANNELS_INSIDE, MULTIPLE)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    space_parts = tl.cdiv(space, space_together)
    first_c = (program % channel_blocks).to(tl.int32) * BLOCK_C
    c = first_c + tl.arange(0, BLOCK_C)[None, :]
    part = (program // channel_blocks) % space_parts
    group = program // (channel_blocks * space_parts)
    last_plane = tl.minimum(planes, (group + 1) * planes_together)
    last = tl.minimum(space, (part + 1) * space_together)
    total = tl.zeros((1, BLOCK_C), DTYPE)
    plane_size = tl.cast(space, tl.int64) * channels
    x_ptr += group * planes_together * plane_size
    dy_ptr += group * planes_together * plane_size
    dx_ptr += group * planes_together * plane_size
    for plane in range(group * planes_together, last_plane):
        tile = tl.zeros((BLOCK_S, BLOCK_C), DTYPE)
        if not SAMPLES_IN_SPACE:
            gate, slope = _row_of_gates(
                loc_ptr, seed_ptr, seed, plane // outer + sample_offset, first_c, channels,
                BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE, BLOCK_C,
            )  # fmt: skip
        for first in range(part * space_together, last, BLOCK_S):
            s = (first + tl.arange(0, BLOCK_S)[:, None]).to(tl.int64)
            place = _places(s, c, channels, space, CHANNELS_INSIDE, PLACE)
            mask = (s < space) & (c < channels)
            x = tl.load(x_ptr + place, mask=mask, other=0.0).to(DTYPE)
            dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(DTYPE)
            kept = _clamp(x, x, LOW, HIGH, LOW, HIGH)
            if SAMPLES_IN_SPACE:
                gate, slope = _gates(
                    loc_ptr, seed_ptr, seed, s + sample_offset, c, c < channels,
                    BETA, GAMMA, ZETA, SEED_IN_MEMORY, DTYPE,
                )  # fmt: skip
                tile += tl.where((slope != 0.0) & mask, kept * dy * slope, 0.0)
            else:
                tile += kept * dy
            tl.store(dx_ptr + place, _clamp(dy * gate, x, 0.0, 0.0, LOW, HIGH), mask=mask)
        column = tl.sum(tile, axis=0)[None, :]
        if SAMPLES_IN_SPACE:
            total += column
        else:  # where the gate is cut off, not even NaN in x or dy counts, as in clamp
            total += tl.where(slope != 0.0, column * slope, 0.0)
        x_ptr += plane_size
        dy_ptr += plane_size
        dx_ptr += plane_size
    row = group * space_parts + part
    tl.store(sums_ptr + row * channels + c, total, mask=c < channels)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


class _Grid:
    """How a tensor is cut into planes and tiles for Triton."""

    def __init__(self, shape: Layout, tile: int, itemsize: int) -> None:
        self.channels = shape.channels
        self.samples_in_space = shape.outer == shape.inner == 1
        self.channels_inside = shape.inner == 1
        self.multiple = math.gcd(16, shape.channels if self.channels_inside else shape.inner)
        if self.samples_in_space:  # as many gates as elements
            tile = 1024
        elif tile == FORWARD_TILE and itemsize == 2 and self.multiple >= 8:  # one load of 16 bytes takes eight
            tile *= 2
        if self.samples_in_space:  # no space: all samples are one plane, and every row has gates of its own
            self.planes, self.outer, self.space = 1, 1, shape.batch
        elif self.channels_inside:
            self.planes, self.outer, self.space = shape.batch, 1, shape.outer
        else:
            self.planes, self.outer, self.space = shape.batch * shape.outer, shape.outer, shape.inner
        if self.channels_inside:
            self.block_c = min(_power_of_two(self.channels), 128)
            self.block_s = min(_power_of_two(self.space), tile // self.block_c)
        else:
            self.block_s = min(_power_of_two(self.space), 1024)
            self.block_c = min(_power_of_two(self.channels), tile // self.block_s)

    def constants(self, x: torch.Tensor, draw: Draw) -> dict[str, Any]:
        tl: Any = importlib.import_module("triton.language")
        padded = (self.space + self.block_s) * (self.channels + self.block_c)
        return {
            "BETA": draw.beta,
            "GAMMA": draw.gamma,
            "ZETA": draw.zeta,
            "LOW": draw.low,
            "HIGH": draw.high,
            "SEED_IN_MEMORY": draw.seed_tensor is not None,
            "CHANNELS_INSIDE": self.channels_inside,
            "SAMPLES_IN_SPACE": self.samples_in_space,
            "DTYPE": tl.float64 if x.dtype is torch.float64 else tl.float32,
            "BLOCK_S": self.block_s,
            "BLOCK_C": self.block_c,
            "PLACE": tl.int32 if padded < 2**31 else tl.int64,
            "MULTIPLE": self.multiple,
        }


def forward(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw) -> None:
    """Write gated x to y, which lies as x does and may be x."""
    cut = _Grid(shape, FORWARD_TILE, x.element_size())
    programs = cut.planes * -(-cut.space // cut.block_s) * -(-cut.channels // cut.block_c)
    _forward_kernel[(programs,)](
        y, x, loc, draw.seed_tensor, draw.seed, draw.sample_offset, cut.outer, cut.channels, cut.space,
        **cut.constants(x, draw), enable_fp_fusion=False,
    )  # fmt: skip


def backward(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, shape: Layout, draw: Draw
) -> torch.Tensor:
    """Write grad x to dx, which lies as dy and x do; grad loc, float64."""
    cut = _Grid(shape, BACKWARD_TILE, x.element_size())
    space_together = TILES * cut.block_s  # not cut to the space: that the compiler knows its divisors widens loads
    planes_together = max(1, TILES * cut.block_s // cut.space)
    rows = -(-cut.planes // planes_together) * -(-cut.space // space_together)
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    sums = torch.empty((rows, cut.channels), dtype=wide, device=x.device)
    _backward_kernel[(rows * -(-cut.channels // cut.block_c),)](
        dx, sums, dy, x, loc, draw.seed_tensor, draw.seed, draw.sample_offset,
        cut.planes, cut.outer, cut.channels, cut.space, planes_together, space_together,
        **cut.constants(x, draw), enable_fp_fusion=False,
    )  # fmt: skip
    return sums.sum(0, dtype=torch.float64)
