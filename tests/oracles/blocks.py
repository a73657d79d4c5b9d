"""DPIAT's block standardization, written straight from SPEC 1.1 over modules; slow and literal on purpose."""

from __future__ import annotations

from torch import nn

SCORED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
          nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def blocks(network: nn.Module) -> list[nn.Module | list[nn.Module]]:
    """Top-level sequence of layers and lists of layers."""
    content = walk(network, 0)[2]
    return content if isinstance(content, list) else [content]


def walk(module: nn.Module, level: int) -> tuple[int, int, object]:
    """(depth, count, content) as SPEC 1.1 names them."""
    children = list(module.children())
    if isinstance(module, SCORED):
        return 0, 0 if isinstance(module, NORMS) else 1, module
    if not children:
        return 0, 0, module
    items: list[object] = []
    count = 0
    for child in children:
        depth, child_count, content = walk(child, level if len(children) == 1 else level + 1)
        count += child_count
        if isinstance(content, list) and (depth > 1 or child_count < 2):
            for element in content:
                items.append(element)
        else:
            items.append(content)
    lists = len([item for item in items if isinstance(item, list)])
    singles = len(items) - lists
    if singles > lists and level > 0:
        depth = 1
        flat: list[object] = []
        for item in items:
            flat += item if isinstance(item, list) else [item]
        items = flat
    else:
        depth = 2
    if len(items) == 1:
        return 1, count, items[0]
    return depth, count, items
