"""Which implementation of the recurrence runs: the C++ core, or its numba twin where there was no compiler.

``PYASSEMBLE_BACKEND=native`` or ``=numba`` forces one, without falling back on the other.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from pyassemble.errors import NumbaFallbackWarning, UnknownOptionError

if TYPE_CHECKING:
    from types import ModuleType

    import numpy.typing as npt

    from pyassemble.network.layers import LayerSequence

MODULES = {"native": "pyassemble._native", "numba": "pyassemble.kernels.recurrence"}
VARIABLE = "PYASSEMBLE_BACKEND"


class Sequence(Protocol):
    """One standardized network in the form that a backend computes on; immutable."""

    @property
    def num_layers(self) -> int:
        """Number of layers, blocks flattened."""

    @property
    def num_elements(self) -> int:
        """Number of top-level elements."""

    @property
    def num_scored(self) -> int:
        """Number of layers that carry a weight."""


class Backend(Protocol):
    """What both implementations offer. Pairs are two arrays: source indices and target indices, in target order."""

    def Sequence(  # noqa: N802
        self,
        kinds: npt.NDArray[np.int32],
        size_offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        element_offsets: npt.NDArray[np.int64],
        is_block: npt.NDArray[np.bool_],
    ) -> Sequence:
        """Check and build a sequence from flat arrays."""

    def align(self, source: Any, target: Any) -> tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """D(source, target) and the pairs of layers, in the exact order of operations."""

    def score(self, source: Any, target: Any) -> float:
        """D(source, target) alone, in any order of operations."""

    def score_matrix(self, source: Any, target: Any) -> npt.NDArray[np.float64]:
        """Scores between top-level elements, row = target, in the exact order of operations."""

    def recurrence(self, scores: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """One level of the recurrence on a matrix of scores, row = target."""

    def recurrence_value(self, scores: npt.NDArray[np.float64]) -> float:
        """Its value alone, in any order of operations."""


_loaded: dict[str | None, Backend] = {}


def backend() -> Backend:
    """The implementation in use, imported on first need.

    Raises:
        UnknownOptionError: ``PYASSEMBLE_BACKEND`` names neither implementation.
        ImportError: It names one that cannot be imported.
    """
    name = os.environ.get(VARIABLE) or None
    try:
        return _loaded[name]
    except KeyError:
        _loaded[name] = module = _load(name)
        return module


def _load(name: str | None) -> Backend:
    if name is not None:
        if name not in MODULES:
            raise UnknownOptionError(VARIABLE, name, MODULES)
        return cast("Backend", importlib.import_module(MODULES[name]))
    try:
        return cast("Backend", importlib.import_module(MODULES["native"]))
    except ImportError as error:
        warnings.warn(
            f"the C++ core is missing ({error}); alignment runs on numba, which is slower and compiles on first use",
            NumbaFallbackWarning,
            stacklevel=3,
        )
        return cast("Backend", importlib.import_module(MODULES["numba"]))


def native() -> ModuleType | None:
    """The C++ core if it is the implementation in use, for what only it offers; None on numba."""
    module = backend()
    return cast("ModuleType", module) if cast("ModuleType", module).__name__ == MODULES["native"] else None


_ZERO = np.zeros(1, np.int64)

# Kinds are numbered across the process, so that sequences built at any time can be compared.
_kind_ids: dict[str, int] = {}
_kind_lock = threading.Lock()


def kind_id(kind: str) -> int:
    """Number of a kind of layer, the same in every sequence of this process."""
    try:
        return _kind_ids[kind]
    except KeyError:
        with _kind_lock:
            return _kind_ids.setdefault(kind, len(_kind_ids))


def sequence(layer_sequence: LayerSequence) -> Sequence:
    """The sequence in the form that the backend in use computes on, built once per backend."""
    module = backend()
    built: dict[int, Sequence] | None = layer_sequence.__dict__.get("_backend_sequences")
    if built is None:
        built = {}
        object.__setattr__(layer_sequence, "_backend_sequences", built)  # frozen, but a cache is no change
    found = built.get(id(module))
    if found is None:
        found = built[id(module)] = _build(layer_sequence, module)
    return found


def _build(layer_sequence: LayerSequence, module: Backend) -> Sequence:
    kind_names, shapes, elements = layer_sequence.kinds, layer_sequence.shapes, layer_sequence.elements
    ids = {kind: -1 if kind is None else kind_id(kind) for kind in set(kind_names)}
    kinds = np.fromiter(map(ids.__getitem__, kind_names), np.int32, len(shapes))
    ranks = np.fromiter(map(len, shapes), np.int64, len(shapes))
    sizes = np.fromiter(chain.from_iterable(shapes), np.int64)
    if not sizes.all():  # an empty tensor has nothing to give or take
        kinds[np.repeat(np.arange(len(shapes)), ranks)[sizes == 0]] = -1
    return module.Sequence(
        kinds,
        np.concatenate((_ZERO, np.cumsum(ranks))),
        sizes,
        np.array([0, *[element.stop for element in elements]], np.int64),
        np.array([element.is_block for element in elements], np.bool_),
    )
