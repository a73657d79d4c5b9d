"""Which layers of two networks correspond, and how similar the networks are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pyassemble.errors import EmptyNetworkError, UnknownOptionError
from pyassemble.network.backend import backend, sequence
from pyassemble.network.standardize import NetworkLike, standardize, standardize_with_modules
from pyassemble.transfer.matching import MATCHINGS, layer_score, match
from pyassemble.transfer.text import sizes, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from pyassemble.network.layers import LayerSequence


@dataclass(frozen=True)
class Alignment:
    """Pairs of corresponding layers of a source and a target network; prints as a table.

    Attributes:
        source: The source's layers.
        target: The target's layers.
        indices: (source layer index, target layer index) of every pair, in target order.
        score: The value that the matching maximizes; for ``dp``, D(s, t) of the publication.
        matching: Name of the matching.
        standardization: Name of the standardization.
    """

    source: LayerSequence
    target: LayerSequence
    indices: tuple[tuple[int, int], ...]
    score: float
    matching: str = "dp"
    standardization: str = "blocks"

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(source layer name, target layer name) of every pair, in target order."""
        return [(self.source.names[s], self.target.names[t]) for s, t in self.indices]

    @property
    def approximate(self) -> bool:
        """Whether one of the networks was known by names and shapes only."""
        return self.source.approximate or self.target.approximate

    @property
    def directed(self) -> float:
        """Score over the target's score with itself, its number of scored layers: for ``dp``, 1 for equal networks."""
        return self.score / self.target.scored

    def __len__(self) -> int:
        return len(self.indices)

    def __str__(self) -> str:
        rows = []
        for s, t in self.indices:
            a, b = self.source.layers[s], self.target.layers[t]
            rows.append((a.name, sizes(a.shape), b.name, sizes(b.shape), f"{layer_score(a, b):.3f}"))
        return table(
            ("source", "shape", "target", "shape", "score"),
            rows,
            f"{len(self)} pairs: {len({t for _, t in self.indices})} of {self.target.scored} target layers served by "
            f"{len({s for s, _ in self.indices})} of {self.source.scored} source layers; "
            f"score {self.score:.4f}, directed {self.directed:.4f}{' (approximate)' if self.approximate else ''}",
        )


def align(
    source: NetworkLike,
    target: NetworkLike,
    *,
    standardization: str = "blocks",
    matching: str = "dp",
    seed: int | torch.Generator = 0,
    example_input: Any = None,
) -> Alignment:
    """Align two networks of any architectures (DPIAT, arXiv 2212.13970; the recurrence of its matching section).

    Only kinds and shapes of weights are read, so networks may be on the meta device, and cost is O(n²m) in the numbers
    of layers: milliseconds for networks of a thousand layers.

    Args:
        source: Module, state_dict, or path of a weights file.
        target: The same.
        standardization: ``"blocks"`` as published, or ``"graph"``: execution order, everything that carries weights.
        matching: ``"dp"``, ``"dp_flat"``, ``"bipartite"``, ``"n_bipartite"`` or ``"random"``.
        seed: Seed or CPU generator; used by ``"random"``.
        example_input: For ``"graph"``, a tensor or tuple of arguments for networks that fx cannot trace.

    Raises:
        UnknownOptionError: An unknown strategy name.
        EmptyNetworkError: A network without any scored layer.
        UnsupportedNetworkError: A lazy, quantized, scripted or sharded network.
        WeightsFileError: A weights file that cannot be read.
    """
    return align_located(source, target, standardization, matching, as_generator(seed), example_input).alignment


class Located(NamedTuple):
    """An alignment, and where its layers were found.

    Attributes:
        alignment: The alignment, which keeps no network alive.
        source: The module of each of the source's layers, where layers are whole modules.
        target: Those of the target.
    """

    alignment: Alignment
    source: Sequence[nn.Module] | None
    target: Sequence[nn.Module] | None


def align_located(
    source: NetworkLike,
    target: NetworkLike,
    standardization: str,
    matching: str,
    generator: torch.Generator,
    example_input: Any,
) -> Located:
    """As :func:`align`, with the modules of the layers, which a transfer would otherwise look up again by name."""
    if matching not in MATCHINGS:
        raise UnknownOptionError("matching", matching, MATCHINGS)
    source_layers, source_modules = standardize_with_modules(source, standardization, example_input)
    _nonempty(source_layers, "source", source, standardization)
    target_layers, target_modules = standardize_with_modules(target, standardization, example_input)
    _nonempty(target_layers, "target", target, standardization)
    score, pairs = match(source_layers, target_layers, matching, generator)
    alignment = Alignment(source_layers, target_layers, tuple(pairs), score, matching, standardization)
    return Located(alignment, source_modules, target_modules)


def similarity(
    source: NetworkLike,
    target: NetworkLike,
    *,
    directed: bool = False,
    standardization: str = "blocks",
    example_input: Any = None,
) -> float:
    """How well a source suits a target, in [0, 1] (DPIAT, section on similarity).

    directed(s→t) = D(s, t) / D(t, t); symmetric = √(directed(s→t) · directed(t→s)).

    Args:
        source: Module, state_dict, or path of a weights file.
        target: The same.
        directed: Whether to return directed(source → target) instead of the symmetric similarity.
        standardization: As in :func:`align`.
        example_input: As in :func:`align`.

    Raises:
        The errors of :func:`align`.
    """
    source_layers = _nonempty(standardize(source, standardization, example_input), "source", source, standardization)
    target_layers = _nonempty(standardize(target, standardization, example_input), "target", target, standardization)
    a, b = sequence(source_layers), sequence(target_layers)
    forward = backend().score(a, b) / target_layers.scored
    if directed:
        return forward
    return math.sqrt(forward * backend().score(b, a) / source_layers.scored)


def as_generator(seed: int | torch.Generator) -> torch.Generator:
    """A CPU generator from a seed; a generator is used as it is."""
    if isinstance(seed, torch.Generator):
        return seed
    if not isinstance(seed, int):
        raise UnknownOptionError("seed", seed, ("an integer", "a torch.Generator"))
    return torch.Generator(device="cpu").manual_seed(seed)


def _nonempty(layers: LayerSequence, side: str, network: NetworkLike, standardization: str) -> LayerSequence:
    if layers.scored:
        return layers
    accepted = (
        "convolution, batch norm or linear layer with weights"
        if standardization == "blocks"
        else "parameter with at least one element"
    )
    hint = ' (standardization="graph" also scores other layers)' if standardization == "blocks" else ""
    name = network if isinstance(network, str) else type(network).__name__
    raise EmptyNetworkError(f"the {side} network {name} has no {accepted}{hint}")
