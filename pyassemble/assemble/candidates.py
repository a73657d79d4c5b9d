"""Assemblies that a search has found: their blocks, how they did, and the weights they did it with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyassemble.assemble.repository import Block

if TYPE_CHECKING:
    from torch import Tensor

SELECTIONS = ("validation", "score")


@dataclass(frozen=True)
class Candidate:
    """An assembly with its learned parts.

    Attributes:
        path: Its blocks.
        factors: What each block's output is multiplied by: the router's mean probability, or 1.
        accuracy: On the selection images of the validation half.
        auroc: On the same.
        loss: On the same.
        score: Training-free, stitches at initialization.
        parameters: Its size, stitches and head included.
        epoch: In which it was found, from 1.
        weights: Its stitches (``0.``, ``1.``, ... in order) and head (``head.``), copied.
    """

    path: tuple[Block, ...]
    factors: tuple[float, ...]
    accuracy: float
    auroc: float
    loss: float
    score: float
    parameters: int
    epoch: int
    weights: dict[str, Tensor] = field(repr=False, compare=False)

    def value(self, select: str) -> float:
        """What candidates are compared by."""
        return self.accuracy if select == "validation" else self.score

    def document(self) -> dict[str, Any]:
        """Everything but the weights, for JSON."""
        return {
            "blocks": [[block.network, block.first, block.last] for block in self.path],
            "factors": list(self.factors),
            "accuracy": self.accuracy,
            "auroc": self.auroc,
            "loss": self.loss,
            "score": self.score,
            "parameters": self.parameters,
            "epoch": self.epoch,
        }

    @classmethod
    def of(cls, document: dict[str, Any], weights: dict[str, Tensor]) -> Candidate:
        """From what :meth:`document` gave."""
        rest = {name: value for name, value in document.items() if name not in ("blocks", "factors")}
        path = tuple(Block(name, first, last) for name, first, last in document["blocks"])
        return cls(path=path, factors=tuple(document["factors"]), weights=weights, **rest)
