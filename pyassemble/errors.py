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


class CutError(PyAssembleError, ValueError):
    """A network that cannot be cut into segments, or not into as many, or segments that it does not have."""


class EmptyNetworkError(PyAssembleError, ValueError):
    """A network without any layer that could be scored."""


class NoCommonLayerError(PyAssembleError, ValueError):
    """Two networks without one pair of layers of the same kind."""


class UntraceableError(PyAssembleError, ValueError):
    """A network whose forward pass torch.fx cannot follow."""


class UnsupportedOperationError(PyAssembleError, TypeError):
    """An operation in a network's graph that is not known, or that cannot be done to several networks at once."""


class MismatchError(PyAssembleError, ValueError):
    """Networks that were to be of one architecture, or data of the same classes, and are not.

    The message names the first difference.
    """


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


class RecipeError(PyAssembleError, ValueError):
    """A recipe that is damaged, or whose sources are missing, have changed, or cannot be rebuilt."""


class DuplicateNameError(PyAssembleError, ValueError):
    """Networks of one zoo that go by the same name."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(f"each name may occur once; given more than once: {', '.join(map(repr, sorted(names)))}")


class IndexFileError(PyAssembleError, ValueError):
    """A zoo's index file that is missing, damaged, or of another version of the format."""


class MatrixError(PyAssembleError, ValueError):
    """An array that cannot be a matrix of similarities, or take one: another shape, type, layout or range of values."""


class ShardError(PyAssembleError, ValueError):
    """A folder that cannot keep the shards of a matrix: something else, or shards of other networks."""


class HubError(PyAssembleError, OSError):
    """A Hub repository that cannot be reached or read, or whose answer makes no sense."""


class BuildCacheError(PyAssembleError, OSError):
    """A file that cannot serve as cache of a zoo's build: something else, in use, or not writable."""


class CheckpointError(PyAssembleError, ValueError):
    """A checkpoint that is damaged, of another version, or of another run."""


class ResultFileError(PyAssembleError, ValueError):
    """A file that does not hold the result of a command, or not all of it."""


class DataSpecError(PyAssembleError, ValueError):
    """Images named in a way that is not understood, or that cannot be read."""


class WorkerError(PyAssembleError, RuntimeError):
    """Worker processes that cannot be started, or that would compute something else."""


class MissingLibraryError(PyAssembleError, ImportError):
    """What was asked for needs a library that is not installed."""


class StandardizationWarning(UserWarning):
    """The execution order of a network could not be traced; definition order was used."""


class NumbaFallbackWarning(UserWarning):
    """The C++ core is missing from this installation; the numba twin computes the alignment."""
