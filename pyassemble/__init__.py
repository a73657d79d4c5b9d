"""pyassemble: reuse pretrained neural networks."""

from pyassemble.errors import (
    EmptyNetworkError,
    NetworkSpecError,
    NoCommonLayerError,
    NumbaFallbackWarning,
    PyAssembleError,
    StandardizationWarning,
    TensorError,
    UnknownOptionError,
    UnsupportedNetworkError,
    WeightsFileError,
)

# Imported here, not on first use: the functions `transfer` (and later `merge`, `assemble`) share their name with the
# folder they live in, and a submodule imported later would otherwise take the function's place.
from pyassemble.transfer import Alignment, TransferReport, align, similarity, transfer

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "EmptyNetworkError",
    "NetworkSpecError",
    "NoCommonLayerError",
    "NumbaFallbackWarning",
    "PyAssembleError",
    "StandardizationWarning",
    "TensorError",
    "TransferReport",
    "UnknownOptionError",
    "UnsupportedNetworkError",
    "WeightsFileError",
    "__version__",
    "align",
    "similarity",
    "transfer",
]
