"""pyassemble: reuse pretrained neural networks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pyassemble.errors import (
    ArgumentTypeError,
    BuildCacheError,
    CheckpointError,
    CutError,
    DataSpecError,
    DuplicateNameError,
    EmptyNetworkError,
    HubError,
    IndexFileError,
    MatrixError,
    MismatchError,
    MissingLibraryError,
    NetworkSpecError,
    NoCommonLayerError,
    NumbaFallbackWarning,
    OutOfRangeError,
    PyAssembleError,
    RecipeError,
    ResultFileError,
    ShardError,
    StandardizationWarning,
    TensorError,
    UnknownOptionError,
    UnsupportedNetworkError,
    UnsupportedOperationError,
    UntraceableError,
    WeightsFileError,
    WorkerError,
)

if TYPE_CHECKING:
    from pyassemble.assemble import Assembly, Block, Repository, SearchSettings
    from pyassemble.assemble.assemble import assemble
    from pyassemble.assemble.score import score, score_batch, score_table
    from pyassemble.merge import (
        GateGroup,
        MergeResult,
        MergeSettings,
        SparsitySchedule,
        WideStudent,
        merge,
        train_merged,
    )
    from pyassemble.transfer import Alignment, TransferReport, align, similarity, transfer
    from pyassemble.zoo import Zoo

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "ArgumentTypeError",
    "Assembly",
    "Block",
    "BuildCacheError",
    "CheckpointError",
    "CutError",
    "DataSpecError",
    "DuplicateNameError",
    "EmptyNetworkError",
    "GateGroup",
    "HubError",
    "IndexFileError",
    "MatrixError",
    "MergeResult",
    "MergeSettings",
    "MismatchError",
    "MissingLibraryError",
    "NetworkSpecError",
    "NoCommonLayerError",
    "NumbaFallbackWarning",
    "OutOfRangeError",
    "PyAssembleError",
    "RecipeError",
    "Repository",
    "ResultFileError",
    "SearchSettings",
    "ShardError",
    "SparsitySchedule",
    "StandardizationWarning",
    "TensorError",
    "TransferReport",
    "UnknownOptionError",
    "UnsupportedNetworkError",
    "UnsupportedOperationError",
    "UntraceableError",
    "WeightsFileError",
    "WideStudent",
    "WorkerError",
    "Zoo",
    "__version__",
    "align",
    "assemble",
    "merge",
    "score",
    "score_batch",
    "score_table",
    "similarity",
    "train_merged",
    "transfer",
]

# Imported on first use: `import pyassemble.kernels` alone takes nothing of the rest.
_HOMES = {
    "Alignment": "pyassemble.transfer",
    "Assembly": "pyassemble.assemble",
    "Block": "pyassemble.assemble",
    "GateGroup": "pyassemble.merge",
    "MergeResult": "pyassemble.merge",
    "MergeSettings": "pyassemble.merge",
    "Repository": "pyassemble.assemble",
    "SearchSettings": "pyassemble.assemble",
    "SparsitySchedule": "pyassemble.merge",
    "TransferReport": "pyassemble.transfer",
    "WideStudent": "pyassemble.merge",
    "Zoo": "pyassemble.zoo",
    "align": "pyassemble.transfer",
    "assemble": "pyassemble.assemble",
    "merge": "pyassemble.merge",
    "score": "pyassemble.assemble",
    "score_batch": "pyassemble.assemble",
    "score_table": "pyassemble.assemble",
    "similarity": "pyassemble.transfer",
    "train_merged": "pyassemble.merge",
    "transfer": "pyassemble.transfer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose functions keep their names although folders have the same (``pa.transfer``).

    Importing a submodule binds it to its name in the package; where that is a function's name, it stays the function's.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and _HOMES.get(name) == f"{__name__}.{name}"):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
