"""pyassemble: reuse pretrained neural networks."""

from pyassemble.errors import (
    BuildCacheError,
    DuplicateNameError,
    EmptyNetworkError,
    HubError,
    IndexFileError,
    MatrixError,
    MissingLibraryError,
    NetworkSpecError,
    NoCommonLayerError,
    NumbaFallbackWarning,
    PyAssembleError,
    ShardError,
    StandardizationWarning,
    TensorError,
    UnknownOptionError,
    UnsupportedNetworkError,
    WeightsFileError,
    WorkerError,
)

# Imported here, not on first use: the functions `transfer` (and later `merge`, `assemble`) share their name with the
# folder they live in, and a submodule imported later would otherwise take the function's place.
from pyassemble.transfer import Alignment, TransferReport, align, similarity, transfer
from pyassemble.zoo import Zoo

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "BuildCacheError",
    "DuplicateNameError",
    "EmptyNetworkError",
    "HubError",
    "IndexFileError",
    "MatrixError",
    "MissingLibraryError",
    "NetworkSpecError",
    "NoCommonLayerError",
    "NumbaFallbackWarning",
    "PyAssembleError",
    "ShardError",
    "StandardizationWarning",
    "TensorError",
    "TransferReport",
    "UnknownOptionError",
    "UnsupportedNetworkError",
    "WeightsFileError",
    "WorkerError",
    "Zoo",
    "__version__",
    "align",
    "similarity",
    "transfer",
]
