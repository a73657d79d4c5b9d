"""One layer's copy with other channels than it was made for."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyassemble.merge.layout import Places

if TYPE_CHECKING:
    from collections.abc import Sequence


_BUFFERS = ("running_mean", "running_var")


def union_dense(layers: Sequence[Any], entering: Places | None) -> Any:
    """An output layer that gives all teachers' outputs side by side, each from its own channels at first."""
    first = layers[0]
    into, out = (0, 1) if getattr(first, "transposed", False) else (1, 0)
    counts = [layer.weight.shape[out] for layer in layers]
    teacher = torch.arange(len(layers)).repeat_interleave(torch.tensor(counts))
    leaving = Places(0, teacher, torch.cat([torch.arange(count) for count in counts]))
    weight = wide_weight([layer.weight for layer in layers], entering, leaving, into, out)
    bias = None if first.bias is None else torch.cat([layer.bias.detach() for layer in layers])
    return resized(first, weight, bias, entering=weight.shape[into], leaving=weight.shape[out])


def wide_dense(layers: Sequence[Any], entering: Places | None, leaving: Places | None) -> Any:
    """A convolution or linear layer over several teachers' channels: block-diagonal, zero elsewhere, all trainable.

    Args:
        layers: The teachers' layers.
        entering: Places of the channels that enter; None where all teachers are given the same.
        leaving: Places of the channels that leave; None for an output layer, which gives the mean.
    """
    first = layers[0]
    into, out = (0, 1) if getattr(first, "transposed", False) else (1, 0)
    weight = wide_weight([layer.weight for layer in layers], entering, leaving, into, out)
    bias = None
    if first.bias is not None:
        biases = [layer.bias.detach() for layer in layers]
        bias = torch.stack(biases).mean(0) if leaving is None else gathered(biases, leaving)
    return resized(first, weight, bias, entering=weight.shape[into], leaving=weight.shape[out])


def wide_weight(
    weights: Sequence[Tensor], entering: Places | None, leaving: Places | None, into: int, out: int
) -> Tensor:
    """The weight of :func:`wide_dense` from the teachers', ``into`` and ``out`` their two channel dimensions."""
    shape = list(weights[0].shape)
    shape[into] = shape[into] if entering is None else entering.size
    shape[out] = shape[out] if leaving is None else leaving.size
    weight = weights[0].detach().new_zeros(shape)
    for teacher, own in enumerate(weights):
        block, rows, columns = own.detach(), None, None
        if entering is not None:
            columns = torch.nonzero(entering.teacher == teacher)[:, 0]
            block = block.index_select(into, entering.index[columns].to(own.device))
        if leaving is not None:
            rows = torch.nonzero(leaving.teacher == teacher)[:, 0]
            block = block.index_select(out, leaving.index[rows].to(own.device))
        else:
            block = block / len(weights)
        _add_block(weight, block, out, rows, into, columns)
    return weight


def _add_block(weight: Tensor, block: Tensor, out: int, rows: Tensor | None, into: int, columns: Tensor | None) -> None:
    rows = torch.arange(weight.shape[out]) if rows is None else rows
    columns = torch.arange(weight.shape[into]) if columns is None else columns
    target = weight.movedim((out, into), (0, 1))
    target[rows[:, None], columns[None, :]] += block.movedim((out, into), (0, 1))


def wide_grouped(layers: Sequence[Any], groups: Sequence[tuple[int, int]]) -> Any:
    """A grouped convolution over groups of several teachers.

    Args:
        layers: The teachers' layers.
        groups: (teacher, group) of each group of the result.
    """
    first = layers[0]
    parts = [layer.weight.detach().unflatten(0, (layer.groups, -1)) for layer in layers]
    weight = torch.stack([parts[t][g] for t, g in groups]).flatten(0, 1)
    bias = None
    if first.bias is not None:
        biases = [layer.bias.detach().reshape(layer.groups, -1) for layer in layers]
        bias = torch.stack([biases[t][g] for t, g in groups]).flatten()
    share = len(groups) / first.groups
    block = resized(
        first, weight, bias, entering=round(first.in_channels * share), leaving=round(first.out_channels * share)
    )
    block.groups = len(groups)
    return block


def resized(layer: Any, weight: Tensor, bias: Tensor | None, *, entering: int, leaving: int) -> Any:
    """A copy of a convolution or linear layer with other weights."""
    copied = bare_copy(layer)
    copied.weight = nn.Parameter(weight, requires_grad=True)
    if bias is not None:
        copied.bias = nn.Parameter(bias, requires_grad=True)
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    setattr(copied, names[0], entering)
    setattr(copied, names[1], leaving)
    return copied


def wide_embedding(tables: Sequence[Any], leaving: Places) -> Any:
    """A table of embeddings with the channels of several teachers side by side."""
    wide = bare_copy(tables[0])
    wide.weight = nn.Parameter(gathered([table.weight for table in tables], leaving, 1))
    wide.embedding_dim = leaving.size
    return wide


def wide_norm(norms: Sequence[Any], places: Places) -> Any:
    """A normalization of each channel by itself, over channels of several teachers: affine and buffers."""
    wide = bare_copy(norms[0])
    wide.num_features = places.size
    take_channels(wide, norms, places)
    return wide


def joint_spanning_norm(norms: Sequence[Any], places: Places) -> Any:
    """A normalization that spans channels, over all of some channels at once."""
    wide = bare_copy(norms[0])
    if isinstance(wide, nn.GroupNorm):
        wide.num_channels = places.size
    else:
        wide.normalized_shape = (places.size,)
    take_channels(wide, norms, places)
    return wide


def take_channels(wide: nn.Module, layers: Sequence[nn.Module], places: Places) -> None:
    """Parameters and buffers that run over channels, gathered from the teachers."""
    for name, _ in layers[0].named_parameters(recurse=False):
        values = [layer.get_parameter(name).detach() for layer in layers]
        wide.register_parameter(name, nn.Parameter(gathered(values, places)))
    for name in _BUFFERS:
        if getattr(layers[0], name, None) is not None:
            wide.register_buffer(name, gathered([layer.get_buffer(name) for layer in layers], places))


def gathered(tensors: Sequence[Tensor], places: Places, dim: int = 0) -> Tensor:
    """Slices of the teachers' tensors along a dimension."""
    stacked = torch.cat([tensor.detach() for tensor in tensors], dim)
    return stacked.index_select(dim, (places.teacher * tensors[0].shape[dim] + places.index).to(stacked.device))


def bare_copy(module: nn.Module) -> Any:
    """A copy whose own parameters are the original's, to be replaced."""
    kept = {id(parameter): parameter for parameter in module.parameters()}
    return copy.deepcopy(module, kept)


def trainable_copy(module: nn.Module) -> nn.Module:
    """A copy all of whose parameters are to be trained."""
    return copy.deepcopy(module).requires_grad_(True)
