"""Philox-4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as
1, 2, 3*, SC 2011: the same bits from PyTorch (the reference), numba and Triton.

A key of two 32-bit words and a counter (c0, c1, c2, c3) of four give four words; each of ten rounds computes

    (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))

with M0 = D2511F53, M1 = CD9E8D57 (hexadecimal), and adds (9E3779B9, BB67AE85) to the key after it. In this package

- the key is the seed, its low word first;
- draw n of a stream is word n mod 4 of the block whose c0 is the low word of n div 4;
- c3 tells the operations apart, so that one seed serves several: ``GATE`` or ``NOISE``;
- ``GATE``: n is the channel, (c1, c2) the low and the high word of the sample's number;
- ``NOISE``: n is the element's row-major index, c1 the high word of n div 4, c2 zero.

A word becomes u = (2 (word >> 9) + 1) / 2^24: one of the 2^23 odd multiples of 2^-24 between 0 and 1, symmetric about
1/2. Both u and 1 - u are exact in float32 and never 0, so the logarithms of both are finite (at least -16.64).
"""

# ruff: noqa: D205
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from pyassemble.kernels.deferred import numba_intrinsic, triton_jit

if TYPE_CHECKING:
    import triton.language as tl

GATE = 0
NOISE = 1

_WORD = 0xFFFFFFFF


def words(seed: torch.Tensor | int, counter: tuple[Any, Any, Any, Any]) -> tuple[torch.Tensor, ...]:
    """The four words of each counter, as int64 tensors of the counters' broadcast shape (the eager reference).

    Args:
        seed: 0-d int64 tensor, or int in [0, 2**63).
        counter: Four words each, int64 tensors or ints in [0, 2**32).
    """
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    parts: Any = torch.broadcast_tensors(*(torch.as_tensor(c) for c in counter))  # type: ignore[no-untyped-call]
    c0, c1, c2, c3 = parts
    for _ in range(10):
        # Products wrap as signed numbers; the bits are those of the unsigned product.
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        high0, high1 = (product0 >> 32) & _WORD, (product1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, product1 & _WORD, high0 ^ c3 ^ key1, product0 & _WORD
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniform(word: torch.Tensor) -> torch.Tensor:
    """U in (0, 1) as float32 from 32-bit words held in int64 (the eager reference)."""
    return ((word >> 8) | 1).to(torch.float32) * 2.0**-24


def gate_draws(seed: torch.Tensor | int, samples: torch.Tensor, channels: int) -> torch.Tensor:
    """The draws of gates, float32 of shape (samples, channels) (the eager reference).

    Args:
        seed: 0-d int64 tensor on the samples' device, or int in [0, 2**63).
        samples: Numbers of the samples, 1-d int64.
        channels: Number of channels.
    """
    blocks = torch.arange(-(-channels // 4), device=samples.device)
    counter = (blocks[None, :], (samples & _WORD)[:, None], (samples >> 32)[:, None], GATE)
    drawn = torch.stack(words(seed, counter), dim=-1).flatten(1)
    return uniform(drawn[:, :channels])


def noise_draws(seed: torch.Tensor | int, count: int, device: torch.device) -> torch.Tensor:
    """The first draws of noise, float32 of shape (count,) (the eager reference)."""
    blocks = torch.arange(-(-count // 4), device=device)
    return uniform(torch.stack(words(seed, (blocks & _WORD, blocks >> 32, 0, NOISE)), dim=-1).flatten()[:count])


@numba_intrinsic
def numba_words(context: Any, seed: Any, c0: Any, c1: Any, c2: Any, c3: Any) -> Any:
    """The four words of one counter, as uint64, in LLVM's instructions, as ``elementary``'s functions are."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        mask, half = word(_WORD), word(32)
        seed, c0, c1, c2, c3 = arguments
        key0, key1 = builder.and_(seed, mask), builder.lshr(seed, half)
        for _ in range(10):
            product0, product1 = builder.mul(word(0xD2511F53), c0), builder.mul(word(0xCD9E8D57), c2)
            c0 = builder.xor(builder.xor(builder.lshr(product1, half), c1), key0)
            c2 = builder.xor(builder.xor(builder.lshr(product0, half), c3), key1)
            c1, c3 = builder.and_(product1, mask), builder.and_(product0, mask)
            key0 = builder.and_(builder.add(key0, word(0x9E3779B9)), mask)
            key1 = builder.and_(builder.add(key1, word(0xBB67AE85)), mask)
        return context.make_tuple(builder, signature.return_type, [c0, c1, c2, c3])

    word = types.uint64
    return types.UniTuple(word, 4)(word, word, word, word, word), emit


@numba_intrinsic
def numba_uniform(context: Any, word: Any) -> Any:
    """U as float32 from one word."""
    types = importlib.import_module("numba.core.types")
    ir = importlib.import_module("llvmlite.ir")

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, real = ir.IntType(64), ir.FloatType()
        bits = builder.or_(builder.lshr(arguments[0], integer(8)), integer(1))
        return builder.fmul(builder.sitofp(builder.trunc(bits, ir.IntType(32)), real), real(2.0**-24))

    return types.float32(types.uint64), emit


@triton_jit()
def triton_uniform(seed, draw, c1, c2, c3):  # type: ignore[no-untyped-def]
    """U as float32 of draw numbers whose block number fits one word; the other counter words broadcast."""
    block, _ = tl.broadcast((draw // 4).to(tl.uint32), c1)
    word0, word1, word2, word3 = tl.philox(seed, block, block * 0 + c1, block * 0 + c2, block * 0 + c3)
    place = draw % 4
    word = tl.where(place < 2, tl.where(place == 0, word0, word1), tl.where(place == 2, word2, word3))
    return ((word >> 8) | 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton_jit()
def triton_uniform_run(seed, block, c2, c3):  # type: ignore[no-untyped-def]
    """U as float32 of the four draws of each of a row of int64 block numbers, in order."""
    low = (block & 0xFFFFFFFF).to(tl.uint32)
    high = (block >> 32).to(tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, low, high, low * 0 + c2, low * 0 + c3)
    word = tl.interleave(tl.interleave(word0, word2), tl.interleave(word1, word3))
    return ((word >> 8) | 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
