"""16-bit floats in numba, which has none on the CPU: arrays of bits, converted on the way to and from float32.

bfloat16 travels as uint16 and float16 as int16, so that the element type says which of the two it is. Rounding is to
the nearest, ties to even, as in PyTorch; overflow gives infinity. The conversions are integer arithmetic without
branches, which compilers vectorize on any processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyassemble.kernels.deferred import numba_overload


@numba_overload
def load(array: Any, index: Any) -> Any:
    """Element of an array of float32, float64 or bits of a 16-bit float, the latter widened to float32."""

    def plain(array: Any, index: Any) -> Any:
        return array[index]

    def bfloat16(array: Any, index: Any) -> Any:
        return np.uint32(np.uint32(array[index]) << 16).view(np.float32)

    def float16(array: Any, index: Any) -> Any:
        bits = np.uint32(np.uint16(array[index]))
        magnitude = np.uint32((bits & 0x7FFF) << 13)
        # The exponent fields differ by 112; the product is exact and normalizes subnormal numbers.
        value = np.float32(magnitude.view(np.float32) * np.float32(2.0**112))
        special = np.uint32(0x7F800000) if magnitude >= np.uint32(0x0F800000) else np.uint32(0)
        return np.uint32(value.view(np.uint32) | special | ((bits & 0x8000) << 16)).view(np.float32)

    return {"uint16": bfloat16, "int16": float16}.get(array.dtype.name, plain)


@numba_overload
def store(array: Any, index: Any, value: Any) -> Any:
    """Write one element, narrowed to the array's own format."""

    def plain(array: Any, index: Any, value: Any) -> None:
        array[index] = value

    def bfloat16(array: Any, index: Any, value: Any) -> None:
        bits = np.float32(value).view(np.uint32)
        rounded = np.uint32(np.uint32(bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)
        array[index] = np.uint16(rounded if value == value else np.uint32(0x7FC0))

    def float16(array: Any, index: Any, value: Any) -> None:
        bits = np.float32(value).view(np.uint32)
        sign = np.uint32(bits & np.uint32(0x80000000))
        magnitude = np.uint32(bits ^ sign)
        # Below 2^-14 the sum with 0.5 has the subnormal's unit as its last place, so the addition rounds.
        lifted = np.float32(magnitude.view(np.float32) + np.float32(0.5))
        small = np.uint32(lifted.view(np.uint32) - np.uint32(0x3F000000))
        shifted = np.uint32(magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + ((magnitude >> 13) & 1))
        rounded = small if magnitude < np.uint32(0x38800000) else np.uint32(shifted >> 13)
        rounded = np.uint32(0x7C00) if magnitude >= np.uint32(0x47800000) else rounded
        rounded = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else rounded
        array[index] = np.int16(rounded | (sign >> 16))

    return {"uint16": bfloat16, "int16": float16}.get(array.dtype.name, plain)
