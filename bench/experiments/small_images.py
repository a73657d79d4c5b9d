"""Making a network written for 224×224 images useful on 32×32 ones, whatever its architecture."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

POOLS = (nn.MaxPool2d, nn.AvgPool2d)


def keep_resolution(network: nn.Module, size: int = 32, final: int = 4) -> nn.Module:
    """Sets the earliest strides to 1 until the last feature map is at least ``final`` pixels wide.

    Which layers halve the image, and at which resolution, is seen in one forward pass: layers that halve the same
    resolution (a block and its shortcut) change together. The network is changed in place and returned.
    """
    halving: dict[int, list[nn.Module]] = {}
    handles = [
        module.register_forward_hook(_note_into(halving))
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, *POOLS))
    ]
    flags = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in flags:
            module.training = flag
    resolutions = sorted(halving, reverse=True)
    width = size // 2 ** len(resolutions)
    for resolution in resolutions:
        if width >= final:
            break
        for module in halving[resolution]:
            one = (1, 1) if isinstance(module.stride, tuple) else 1
            module.stride = one  # type: ignore[assignment]
        width *= 2
    return network


def _note_into(halving: dict[int, list[nn.Module]]) -> Any:
    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A stride is asked for, not only a smaller output: squeeze-excite pools to one pixel too, and must.
        stride = module.stride[0] if isinstance(module.stride, tuple) else module.stride
        if stride == 2 and inputs[0].shape[-1] > 1:
            halving.setdefault(inputs[0].shape[-1], []).append(module)

    return note
