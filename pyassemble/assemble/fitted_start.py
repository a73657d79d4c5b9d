"""Where the stitches and heads of a search begin when they are fitted to images in place of drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyassemble.assemble.head_start import fit_head
from pyassemble.assemble.initialization import fit_stitch

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyassemble.assemble.assembly_network import Joint
    from pyassemble.assemble.head import Head
    from pyassemble.assemble.repository import Repository
    from pyassemble.training.data import Data

ITERATIONS = 20
"""Of conjugate gradients: a search meets many stitches and trains them on."""


class FittedStart:
    """Fits stitches and heads to what the repository's networks make of some images.

    Args:
        repository: The networks.
        images: With labels, which only heads are fitted to.
        num_classes: Of the heads.
    """

    def __init__(self, repository: Repository, images: Data, num_classes: int) -> None:
        self._repository, self._images, self._num_classes = repository, images, num_classes

    def stitch(self, joint: Joint, stitch: nn.Module) -> None:
        """Least squares from what one network has behind its segment to what the other has before its."""
        if not any(True for _ in stitch.parameters()):
            return
        source, last, target, first = joint
        names = self._repository.names
        fit_stitch(
            stitch,
            nn.Sequential(*self._repository[names[source]].segments[: last + 1]),
            nn.Sequential(*self._repository[names[target]].segments[:first]),
            [images for images, _ in self._batches()],
            iterations=ITERATIONS,
        )

    def own_head(self, name: str, head: Head) -> None:
        """Logistic regression from the features that a network has behind its last segment itself."""
        self.head(head, self._repository[name].features)

    @torch.no_grad()
    def head(self, head: Head, features: Callable[[Tensor], Tensor]) -> None:
        """Logistic regression from the features that something makes of the images."""
        batches = self._batches()
        fit_head(head, [features(images) for images, _ in batches], torch.cat([labels for _, labels in batches]))

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._images.batches(self._num_classes, self._repository.device))
