"""The package's exceptions. Every message names the module or tensor, its shape, and what would be accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class PyAssembleError(Exception):
    """Base of every error the package raises on purpose."""


class UnknownOptionError(PyAssembleError, ValueError):
    """A strategy name that does not exist; the message lists those that do."""

    def __init__(self, option: str, value: object, known: Iterable[str]) -> None:
        super().__init__(f"unknown {option} {value!r}; known: {', '.join(known)}")


class UnsupportedNetworkError(PyAssembleError, TypeError):
    """A source or target that is not a network the package can read (wrong type, lazy, quantized, sharded)."""


class EmptyNetworkError(PyAssembleError, ValueError):
    """A network without any layer that could be scored."""


class NoCommonLayerError(PyAssembleError, ValueError):
    """Two networks without one pair of layers of the same kind."""


class TensorError(PyAssembleError, ValueError):
    """A tensor that cannot be read or written: on the meta device, non-finite, quantized, of a foreign dtype."""


class ArgumentTypeError(PyAssembleError, TypeError):
    """An argument of a type that is not accepted."""


class OutOfRangeError(PyAssembleError, ValueError):
    """A number outside the range that is accepted."""


class WeightsFileError(PyAssembleError, ValueError):
    """A weights file that is missing, truncated, or not in a format that is read."""


class NetworkSpecError(PyAssembleError, ValueError):
    """A network named in a way that is not understood, or that its library does not know."""


class StandardizationWarning(UserWarning):
    """The execution order of a network could not be traced; definition order was used."""


class NumbaFallbackWarning(UserWarning):
    """The C++ core is missing from this installation; the numba twin computes the alignment."""
