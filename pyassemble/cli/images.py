"""The labelled images that a command line names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pyassemble.errors import DataSpecError

if TYPE_CHECKING:
    from torch import nn

    from pyassemble.training.image_files import Preprocessing


def preprocessing_for(network: nn.Module, size: int | None) -> Preprocessing:
    """What pictures go through for a network: what its configuration says, as timm's networks have one.

    Args:
        network: Any network.
        size: Height and width; the configuration's by default.

    Raises:
        DataSpecError: No size is given, and the network does not say.
    """
    from pyassemble.training.image_files import Preprocessing

    config = getattr(network, "pretrained_cfg", None)
    found = config if isinstance(config, Mapping) else {}
    shape = found.get("input_size")
    if size is not None:
        if size < 1:
            raise DataSpecError(f"--size {size}; accepted: at least 1")
        height = width = size
    elif shape is not None:
        height, width = int(shape[1]), int(shape[2])
    else:
        raise DataSpecError(f"{type(network).__name__} does not say which size of images it takes; give it with --size")
    statistics = {name: tuple(map(float, found[name])) for name in ("mean", "std") if found.get(name) is not None}
    channels = 3 if shape is None else int(shape[0])
    return Preprocessing(channels, height, width, **statistics)
