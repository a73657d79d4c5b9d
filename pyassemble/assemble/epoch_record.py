"""What one epoch of a search did, as its history and checkpoints keep it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of a search did.

    Attributes:
        epoch: From 1.
        weights_loss: Mean loss of the steps of stitches and heads.
        router_loss: Mean loss of the routers' steps.
        accuracy: Of the best assembly evaluated in this epoch, on the selection images.
        score: Best score among the epoch's candidates.
        mean_score: Mean of them.
        stitches: Stitches met so far.
        blocks_requested: Block executions that scoring each candidate by itself would have taken.
        blocks_executed: Those it took, shared prefixes run once.
        scores: Of all candidates, in the order in which they were scored.
        parameters: Their sizes.
    """

    epoch: int
    weights_loss: float
    router_loss: float
    accuracy: float
    score: float
    mean_score: float
    stitches: int
    blocks_requested: int
    blocks_executed: int
    scores: tuple[float, ...]
    parameters: tuple[int, ...]

    @property
    def blocks_saved(self) -> int:
        """Block executions that sharing prefixes saved."""
        return self.blocks_requested - self.blocks_executed

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"scores": list(self.scores), "parameters": list(self.parameters)}

    @classmethod
    def of(cls, document: dict[str, Any]) -> EpochRecord:
        """From what :meth:`document` gave."""
        values = {field.name: document[field.name] for field in fields(cls)}
        return cls(**values | {"scores": tuple(values["scores"]), "parameters": tuple(values["parameters"])})
