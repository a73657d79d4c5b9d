"""Two or more trained networks of one architecture into one of the same size (Merging: Pašen, Boža, 2022)."""

from pyassemble.merge.gates import GateGroup
from pyassemble.merge.merge import merge
from pyassemble.merge.schedule import SparsitySchedule
from pyassemble.merge.settings import MergeSettings
from pyassemble.merge.student import WideStudent
from pyassemble.merge.train import MergeResult, train_merged

__all__ = [
    "GateGroup",
    "MergeResult",
    "MergeSettings",
    "SparsitySchedule",
    "WideStudent",
    "merge",
    "train_merged",
]
