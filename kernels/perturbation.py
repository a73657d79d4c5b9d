"""Uniform noise added in one pass.

    y = x + alpha u,  u ~ U(0, 1)

(PA-DNN: Liu, Lu, Zhao, Zhao, Luo, *Differentiable neural network for assembling blocks*, eq. 4, the perturbed input).
u is a counter-based draw (see ``philox``) of the seed and the element's row-major index: the same on the CPU and on
CUDA, for every type and layout. Product and sum are rounded in float32 (float64 where x is), then once to x's type, so
that float32 results are the same bits on both.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyassemble.errors import ArgumentTypeError, OutOfRangeError
from pyassemble.kernels import parallel, philox
from pyassemble.kernels.checks import check_tensor, split_seed
from pyassemble.kernels.deferred import numba_jit, triton_jit
from pyassemble.kernels.halves import load, store
from pyassemble.kernels.layout import laid_out_like, layout
from pyassemble.kernels.memory import ELEMENTS, elements
from pyassemble.kernels.operators import differentiable, operator
from pyassemble.kernels.philox import numba_uniform, numba_words, triton_uniform_run
from pyassemble.kernels.regions import ARRIVED, FIRST, PIECES, TAKEN, count, cut, like, real, region, wide_like, word
from pyassemble.kernels.streaming import buffer, finish, stream, worthwhile

if TYPE_CHECKING:
    import triton.language as tl

UNIT = 512  # blocks of four draws that one thread of the CPU takes at a time
BLOCK = 512  # the same for a Triton program; not tuned on a GPU


def perturb_reference(x: torch.Tensor, alpha: float, u: torch.Tensor) -> torch.Tensor:
    """The same in plain PyTorch from given draws of x's shape, in the type that PyTorch promotes both to."""
    return x + alpha * u


# -- CPU ---------------------------------------------------------------------------------------------------------------


_Y, _X, _SIZE, _SEED, _CHANNELS, _SPACE, _STREAMED, _SCRATCH, _ALPHA = range(FIRST, FIRST + 9)

_single = ELEMENTS[torch.float32]


@numba_jit(inline=True)
def _draw_noise(u: Any, seed: Any, first: Any) -> None:
    for k in range(u.size // 4):
        block = first + k
        words = numba_words(seed, block & 0xFFFFFFFF, np.uint64(block) >> np.uint64(32), 0, philox.NOISE)
        u[4 * k] = numba_uniform(words[0])
        u[4 * k + 1] = numba_uniform(words[1])
        u[4 * k + 2] = numba_uniform(words[2])
        u[4 * k + 3] = numba_uniform(words[3])


@numba_jit(inline=True)
def _add(y: Any, x: Any, alpha: Any, u: Any) -> None:
    for i in range(x.size):
        store(y, i, load(x, i) + alpha * u[i])


@region("8qd")
def _cpu_perturb(block: Any) -> None:
    """Unit: some blocks of four draws. Memory is (samples, space, channels), row-major order (samples, channels,
    space); where they agree, both are given as 1.
    """  # noqa: D205
    of_x, alpha = like(block, 0), wide_like(block).dtype.type(real(block, _ALPHA))
    size, seed, streamed = word(block, _SIZE), word(block, _SEED), word(block, _STREAMED)
    channels, space, item = word(block, _CHANNELS), word(block, _SPACE), of_x.itemsize
    y, x = elements(word(block, _Y), size, of_x), elements(word(block, _X), size, of_x)
    u = elements(word(block, _SCRATCH) + count(block, ARRIVED) * 16 * UNIT, 4 * UNIT, _single)
    staged = buffer()
    piece = count(block, TAKEN)
    while piece < word(block, PIECES):
        for n in range(cut(block, piece), cut(block, piece + 1)):
            _draw_noise(u, seed, n * UNIT)
            low = n * 4 * UNIT
            high = min(size, low + 4 * UNIT)
            if channels == 1:
                place = word(block, _Y) + low * item
                _add(elements(staged if streamed else place, high - low, of_x), x[low:high], alpha, u)
                if streamed:
                    stream(place, staged, (high - low) * item)
            else:
                s, c = low % space, low // space % channels
                i = low // (space * channels) * space * channels + s * channels + c
                for k in range(high - low):
                    store(y, i, load(x, i) + alpha * u[k])
                    s += 1
                    i += channels
                    if s == space:  # the next channel's first place, or the next sample's
                        s = 0
                        c += 1
                        i -= space * channels - 1
                        if c == channels:
                            c = 0
                            i += (space - 1) * channels
        piece = count(block, TAKEN)
    finish()


def _cpu(y: torch.Tensor, x: torch.Tensor, alpha: float, seed: int, channels: int, space: int) -> None:
    units = -(-x.numel() // (4 * UNIT))
    threads = parallel.threads_for(units, 16 * UNIT)  # a draw costs several times what an element does elsewhere
    scratch = torch.empty(threads * 4 * UNIT, dtype=torch.float32)
    streamed = channels == 1 and worthwhile(4 * UNIT, y, x)
    _cpu_perturb.run(
        (x.dtype,), units, threads,
        y.data_ptr(), x.data_ptr(), x.numel(), seed, channels, space, streamed, scratch.data_ptr(), alpha,
    )  # fmt: skip


# -- CUDA --------------------------------------------------------------------------------------------------------------


@triton_jit(do_not_specialize=("seed",))
def _triton_perturb_kernel(  # type: ignore[no-untyped-def]
    y_ptr, x_ptr, seed_ptr, seed, size, channels, space, ALPHA: tl.constexpr, SEED_IN_MEMORY: tl.constexpr,
    PERMUTED: tl.constexpr, TAG: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some blocks of four draws; orders of memory as on the CPU."""
    if SEED_IN_MEMORY:
        seed = tl.load(seed_ptr)
    program = tl.program_id(0).to(tl.int64)  # indices may exceed 2^31
    u = triton_uniform_run(seed, program * BLOCK + tl.arange(0, BLOCK), 0, TAG).to(DTYPE)
    i = program * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    mask = i < size
    if PERMUTED:
        i += (i % space) * (channels - 1) - (i // space % channels) * (space - 1)
    x = tl.load(x_ptr + i, mask=mask, other=0.0).to(DTYPE)
    tl.store(y_ptr + i, x + u * ALPHA, mask=mask)


def _triton(
    y: torch.Tensor,
    x: torch.Tensor,
    alpha: float,
    seed_tensor: torch.Tensor | None,
    seed: int,
    channels: int,
    space: int,
) -> None:
    tl: Any = importlib.import_module("triton.language")
    dtype = tl.float64 if x.dtype is torch.float64 else tl.float32
    _triton_perturb_kernel[(-(-x.numel() // (4 * BLOCK)),)](
        y, x, seed_tensor, seed, x.numel(), channels, space, alpha, seed_tensor is not None, channels > 1,
        philox.NOISE, dtype, BLOCK, enable_fp_fusion=False,  # product and sum are rounded one by one, as on the CPU
    )  # fmt: skip


# -- Operator ----------------------------------------------------------------------------------------------------------


def _run(x: torch.Tensor, alpha: float, seed_tensor: torch.Tensor | None, seed: int) -> torch.Tensor:
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    if x.device.type not in ("cpu", "cuda"):
        held = seed if seed_tensor is None else seed_tensor
        u = philox.noise_draws(held, x.numel(), x.device).view(x.shape)
        return y.copy_(perturb_reference(x, alpha, u.to(torch.promote_types(x.dtype, torch.float32))))
    order = _order(y)
    if order is None:
        return y.copy_(_run(x.contiguous(), alpha, seed_tensor, seed))
    x = laid_out_like(x, y)
    if x.device.type == "cpu":
        _cpu(y, x, alpha, seed if seed_tensor is None else int(seed_tensor), *order)
    else:
        with torch.cuda.device(x.device):
            _triton(y, x, alpha, seed_tensor, seed, *order)
    return y


def _order(y: torch.Tensor) -> tuple[int, int] | None:
    """(channels, space) of a dense tensor that is contiguous (then 1, 1) or channels-last, else None."""
    if y.is_contiguous():
        return 1, 1
    shape = layout(y, 1) if y.ndim > 2 else None
    if shape is None or shape.inner != 1 or not y.movedim(1, -1).is_contiguous():
        return None
    return shape.channels, shape.outer


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


_perturb = differentiable(
    operator("perturb(Tensor x, float alpha, Tensor? seed_tensor, SymInt seed) -> Tensor", _run, _fake),
    lambda _, dy: (dy, None, None, None),
    lambda ctx, inputs, output: None,
)


def perturb(x: torch.Tensor, alpha: float, *, seed: int | torch.Tensor) -> torch.Tensor:
    """Noise added: x + alpha u with u ~ U(0, 1) drawn for each element (PA-DNN, eq. 4).

    Args:
        x: Any shape, float32, bfloat16, float16 or float64. Contiguous and channels-last are read where they are.
        alpha: Amplitude, finite; 0.01 in the publication. On CUDA, a kernel is compiled for each value.
        seed: int in [0, 2**63), or a 0-d int64 tensor on x's device.

    Returns:
        Tensor like x. Its gradient goes to x unchanged.

    Raises:
        ArgumentTypeError: An argument of the wrong type.
        OutOfRangeError: alpha is not finite, or the seed is outside its range.
        TensorError: x or the seed is not such a tensor.
    """
    check_tensor("x", x)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ArgumentTypeError(f"alpha must be a number, not {type(alpha).__name__}")
    if not math.isfinite(alpha):
        raise OutOfRangeError(f"alpha must be finite, not {alpha}")
    number, tensor = split_seed(seed, x.device)
    y: torch.Tensor = _perturb(x, float(alpha), tensor, number)
    return y
