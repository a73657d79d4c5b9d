"""What is written into the target where the source's values cannot be copied as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from pyassemble.errors import TensorError
from pyassemble.transfer.methods import output_variance_ratio, take
from pyassemble.transfer.parametrized import inverted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyassemble.transfer.plan import Claims, Copy
    from pyassemble.transfer.tensors import Held


class Write(NamedTuple):
    """New content for a region of one stored tensor."""

    held: Held
    region: tuple[slice, ...]
    content: torch.Tensor


def contents(copies: Sequence[Copy], claims: Claims) -> tuple[list[Write], dict[str, float]]:
    """New values, on the target's device and in its dtype, before anything is written; and each weight's scale.

    Args:
        copies: Copies that are not direct, or whose source shares memory with the target.
        claims: All memory that will be written.

    Raises:
        TensorError: A value that the target cannot take.
    """
    writes: list[Write] = []
    scales: dict[str, float] = {}
    with torch.no_grad():
        for copy in copies:
            content = _content(copy)
            region = copy.assigned.target
            if copy.target.parametrization is not None or copy.rescale:
                content = _whole(copy, content)
                region = _everything(content)
            if copy.rescale:
                scales[copy.target.name] = factor = output_variance_ratio(copy.source.value, content, copy.output_dim)
                content *= factor
                if not bool(torch.isfinite(content).all()):
                    raise TensorError(
                        f"target tensor {copy.target.name} of shape {tuple(content.shape)} ({content.dtype}) cannot be "
                        f"scaled by {factor:.4g} as method='clip_norm' asks: the result would not be finite"
                    )
            if copy.target.parametrization is not None:
                for held, value in inverted(copy.target, content):
                    writes.append(Write(held, _everything(held.tensor), value))
                continue
            if not claims.is_free(content):
                # The source shares memory with the target: it must be read before that is written.
                content = content.clone()
            writes.append(Write(copy.target.stored[0], region, content))
    return writes, scales


def _content(copy: Copy) -> torch.Tensor:
    given = take(copy.source.value, copy.assigned.source)
    target = copy.target.value
    if given.device == target.device and given.dtype == target.dtype:
        return given
    if given.is_complex() and not target.is_complex():
        raise TensorError(
            f"source tensor {copy.source.name} is {given.dtype} and target tensor {copy.target.name} is "
            f"{target.dtype}; a complex weight goes into a complex one only"
        )
    content = given.to(target.device, target.dtype)
    narrower = target.is_floating_point() and torch.finfo(target.dtype).max < torch.finfo(given.dtype).max
    if narrower and not bool(torch.isfinite(content).all()):
        raise TensorError(
            f"source tensor {copy.source.name} of shape {tuple(copy.source.value.shape)} ({given.dtype}) holds values "
            f"beyond the range of target tensor {copy.target.name} ({target.dtype})"
        )
    return content


def _whole(copy: Copy, content: torch.Tensor) -> torch.Tensor:
    """A copy of the target tensor with the content in its place."""
    whole = copy.target.value.clone()
    whole[copy.assigned.target] = content
    return whole


def _everything(tensor: torch.Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in tensor.shape)
