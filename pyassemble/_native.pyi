from collections.abc import Sequence as Sequence_
from typing import Any, final

import numpy as np
import numpy.typing as npt

__version__: str

@final
class Sequence:
    def __init__(
        self,
        kinds: npt.NDArray[np.int32],
        size_offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        element_offsets: npt.NDArray[np.int64],
        is_block: npt.NDArray[np.bool_] | npt.NDArray[np.uint8],
    ) -> None: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_elements(self) -> int: ...
    @property
    def num_scored(self) -> int: ...

def align(source: Any, target: Any) -> tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...
def score(source: Any, target: Any) -> float: ...
def score_matrix(source: Any, target: Any) -> npt.NDArray[np.float64]: ...
def recurrence(scores: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.int32], npt.NDArray[np.int32]]: ...
def recurrence_value(scores: npt.NDArray[np.float64]) -> float: ...

@final
class Zoo:
    def __init__(self) -> None: ...
    def extend(
        self,
        layer_kinds: npt.NDArray[np.int32],
        size_offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
        block_offsets: npt.NDArray[np.int64],
        block_layers: npt.NDArray[np.int32],
        network_offsets: npt.NDArray[np.int64],
        network_elements: npt.NDArray[np.int32],
    ) -> None: ...
    def __len__(self) -> int: ...
    def scored(self, network: int) -> int: ...
    def directed_rows(
        self, first: int, last: int, out: npt.NDArray[np.float64], memory: int, workers: int
    ) -> None: ...
    def nearest(
        self, query: Sequence, k: int, symmetric: bool, workers: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64], int]: ...

@final
class Crop:
    def __init__(
        self,
        source_shape: Sequence_[int],
        target_shape: Sequence_[int],
        source_starts: Sequence_[int],
        target_starts: Sequence_[int],
        extents: Sequence_[int],
    ) -> None: ...
    @property
    def elements(self) -> int: ...

def save_and_copy(
    crops: list[Crop],
    sources: list[int],
    targets: list[int],
    saved: list[int],
    itemsizes: list[int],
    done: list[bool],
) -> None: ...
def first_nonfinite(addresses: list[int], counts: list[int], dtype: str) -> int: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def fma_rate(seconds: float = 0.2) -> float: ...
def recurrence_rate(n: int, m: int, exact: bool, seconds: float = 0.2) -> float: ...
