"""Batch normalization by the statistics of the batch at hand, for scoring networks whose stored ones do not fit.

The statistics of a network that was never trained are 0 and 1, so that its normalization does nothing and the score
(PA-DNN, eq. 4) measures how much the network amplifies: over 54 cells its rank correlation with the output's norm is
0.91 (bench/results/score_correlation/variants.md). Behind a random stitch the statistics of a pretrained block are off
in the same way.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch.nn.modules.batchnorm import _BatchNorm

from pyassemble.errors import UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

STATISTICS = ("stored", "batch")


def check_statistics(statistics: str) -> None:
    """Refuses a name that is not one of STATISTICS.

    Raises:
        UnknownOptionError: It is another.
    """
    if statistics not in STATISTICS:
        raise UnknownOptionError("statistics", statistics, STATISTICS)


@contextmanager
def normalizing_by(networks: Iterable[nn.Module], statistics: str) -> Iterator[None]:
    """For the block's time, batch normalization by the batch's statistics, or by the stored ones as in eval mode.

    Stored statistics are not updated. Instance normalization, which shares the base class, is by sample either way.

    Args:
        networks: In eval mode; what normalizes in them is changed and put back.
        statistics: One of STATISTICS.

    Raises:
        UnknownOptionError: Other statistics.
    """
    check_statistics(statistics)
    layers = {
        module
        for network in networks
        for module in network.modules()
        if statistics == "batch" and isinstance(module, _BatchNorm)
    }
    before = [(layer, layer.training, layer.track_running_stats) for layer in layers]
    for layer in layers:
        # In training without tracking, a layer takes the batch's statistics and leaves its buffers alone.
        layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer, training, tracking in before:
            layer.training, layer.track_running_stats = training, tracking
