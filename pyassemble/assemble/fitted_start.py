"""Where the stitches and heads of a search begin when they are fitted to images in place of drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyassemble.assemble.head_start import fit_head
from pyassemble.assemble.initialization import fit_stitch
from pyassemble.assemble.prefixes import refuse_non_finite, segment_steps
from pyassemble.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyassemble.assemble.assembly_network import Joint
    from pyassemble.assemble.head import Head
    from pyassemble.assemble.prefixes import Step
    from pyassemble.assemble.repository import Repository
    from pyassemble.training.data import Data

ITERATIONS = 20
"""Of conjugate gradients: a search meets many stitches and trains them on."""


class FittedStart:
    """Fits stitches and heads to what the repository's networks make of some images, in full precision.

    Args:
        repository: The networks.
        images: With labels, which only heads are fitted to; read once, when first needed, and kept.
        count: How many of them, drawn without replacement: whole datasets are often sorted by class.
        num_classes: Of the heads.
        generator: Of the draw.
    """

    def __init__(
        self, repository: Repository, images: Data, count: int, num_classes: int, generator: torch.Generator
    ) -> None:
        self._repository, self._num_classes = repository, num_classes
        self._images = images.drawn(count, generator)
        self._read: list[tuple[Tensor, Tensor]] | None = None

    def stitch(self, joint: Joint, stitch: nn.Module) -> None:
        """Least squares from what one network has behind its segment to what the other has before its.

        Raises:
            TensorError: A block returns NaN or infinity; the message names it and its source.
        """
        if not any(True for _ in stitch.parameters()):
            return
        source, last, target, first = joint
        names = self._repository.names
        images = [images for images, _ in self._batches()]
        with self._full_precision():
            try:
                fit_stitch(
                    stitch,
                    nn.Sequential(*self._repository[names[source]].segments[: last + 1]),
                    nn.Sequential(*self._repository[names[target]].segments[:first]),
                    images,
                    iterations=ITERATIONS,
                )
            except TensorError:
                for name, end in ((names[source], last + 1), (names[target], first)):
                    refuse_non_finite(segment_steps(self._repository[name], name, 0, end), images[0])
                raise

    def own_head(self, name: str, head: Head) -> None:
        """Logistic regression from the features that a network has behind its last segment itself.

        Raises:
            TensorError: A block returns NaN or infinity; the message names it and its source.
        """
        network = self._repository[name]
        self.head(head, network.features, segment_steps(network, name, 0, len(network)))

    @torch.no_grad()
    def head(self, head: Head, features: Callable[[Tensor], Tensor], chain: Sequence[Step]) -> None:
        """Logistic regression from the features that something makes of the images.

        Args:
            head: Changed in place.
            features: Images to what comes into the head.
            chain: The steps to these features, for the message where they are not finite.

        Raises:
            TensorError: A block returns NaN or infinity; the message names it and its source.
        """
        batches = self._batches()
        with self._full_precision():
            try:
                fit_head(head, [features(images) for images, _ in batches], torch.cat([y for _, y in batches]))
            except TensorError:
                refuse_non_finite(chain, batches[0][0])
                raise

    def _full_precision(self) -> torch.autocast:
        # Autocast keeps a copy of a weight that it has cast: a stitch changed in its context goes on as it was.
        return torch.autocast(self._repository.device.type, enabled=False)

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        if self._read is None:
            self._read = list(self._images.batches(self._num_classes, self._repository.device))
        return self._read
