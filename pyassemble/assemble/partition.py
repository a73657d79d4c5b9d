"""The partition network: where each repository network is cut (PA-DNN, eq. 1 and its partition network P_theta).

For every network of k possible cut points, c distinct ones are drawn without replacement with the probabilities of a
softmax (Plackett and Luce). Order does not matter for a cut, so the probability of a draw is that of the *set*:

    p(S) = sum over the c! orders of S of  prod over j of  exp(l_j) / sum of exp(l) over what was not yet drawn

The sum is taken over the 2^c subsets that may have been drawn so far instead of over the orders: the same number, with
64 terms in place of 720 at c = 6.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_CUTS = 6

Partition = dict[str, tuple[int, ...]]
"""By network, the cut points in ascending order: i stands for the boundary behind segment i."""


def sample_without_replacement(logits: Tensor, count: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draws ``count`` distinct indices, one after the other with probabilities softmax(logits) (Gumbel top-k).

    Args:
        logits: (..., k), finite.
        count: How many, at most k.
        generator: On the CPU, whatever the logits' device, so that all devices draw the same.

    Returns:
        (..., count) int64 on the logits' device, ascending.

    Raises:
        OutOfRangeError: ``count`` is not in 1..k.
        TensorError: The logits are not finite.
    """
    _check_logits(logits)
    _check_count(count, logits.shape[-1])
    exponential = torch.empty(logits.shape, dtype=torch.float64).exponential_(generator=generator)
    gumbel = -exponential.log().to(logits.device)
    return (logits.detach().double() + gumbel).topk(count).indices.sort(-1).values


def set_log_probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """Logarithm of the probability that :func:`sample_without_replacement` draws this set, in whatever order.

    Args:
        logits: (..., k).
        chosen: (..., c) distinct indices in any order, c at most 6; leading dimensions broadcast with those of
            ``logits``.

    Returns:
        (...), differentiable in the logits. Exactly 0 for a set of all k.

    Raises:
        OutOfRangeError: c is not in 1..min(k, 6), or an index is outside 0..k-1.
        TensorError: Logits that are not finite, or indices that repeat.
    """
    _check_logits(logits)
    choices, count = logits.shape[-1], chosen.shape[-1]
    _check_count(count, choices)
    _check_chosen(chosen, choices)
    leading = torch.broadcast_shapes(logits.shape[:-1], chosen.shape[:-1])  # type: ignore[no-untyped-call]
    log_p = F.log_softmax(logits, -1).expand(*leading, choices)
    if count == choices:
        return log_p.sum(-1) * 0.0
    chosen = chosen.expand(*leading, count)
    members = log_p.gather(-1, chosen)
    outside = log_p.masked_fill(F.one_hot(chosen, choices).any(-2), float("-inf")).logsumexp(-1)
    drawn: dict[frozenset[int], Tensor] = {frozenset(): torch.zeros_like(outside)}
    for size in range(1, count + 1):
        for subset in combinations(range(count), size):
            terms = []
            for last in subset:
                before = frozenset(subset) - {last}
                # What is left once `before` is drawn, as a sum of what is left: 1 - sum(before) would cancel.
                left = [members[..., i] for i in range(count) if i not in before]
                rest = torch.stack([outside, *left], -1).logsumexp(-1)
                terms.append(drawn[before] + members[..., last] - rest)
            drawn[frozenset(subset)] = torch.stack(terms, -1).logsumexp(-1)
    return drawn[frozenset(range(count))]


class Embedding(nn.Module):
    """A frozen network's features of a batch, averaged over space: what the partition network sees of the images.

    Args:
        features: (B, ...) images -> (B, ...), for instance a cut network's ``features``. If it is a module, it is no
            part of this one: a checkpoint need not hold it.
        channel_dim: Dimension of the features that is kept beside the batch: 1 of a map (B, C, H, W), -1 of tokens
            (B, N, C).
    """

    def __init__(self, features: Callable[[Tensor], Tensor], *, channel_dim: int = 1) -> None:
        super().__init__()
        self._features = (features,)  # a module in a tuple is not registered
        self._channel_dim = channel_dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, ...) images -> (B, channels)."""
        output = self._features[0](images)
        return output.movedim(self._channel_dim, 1).flatten(2).mean(2) if output.ndim > 2 else output


class PartitionNetwork(nn.Module):
    """P_theta: one linear head per repository network, from a batch's features to logits over its cut points.

    The features are averaged over the batch and normalized, so that a step of the optimizer means the same whatever
    network made them. The heads start at zero: every cut point is as likely as any other.

    Args:
        features: Width of the features.
        cut_points: How many cut points each network has, by name.
        cuts: c, how many of them are drawn; 1 to 6.

    Raises:
        OutOfRangeError: A network has fewer than c cut points, or c is not in 1..6. The message names the network.
        ArgumentTypeError: No network at all.
    """

    def __init__(self, features: int, cut_points: Mapping[str, int], *, cuts: int = 3) -> None:
        super().__init__()
        if not cut_points:
            raise ArgumentTypeError("cut_points is empty; accepted: the number of cut points of at least one network")
        for name, count in cut_points.items():
            if not 1 <= cuts <= min(count, MAX_CUTS):
                raise OutOfRangeError(
                    f"network {name!r} has {count} cut points, so it cannot be cut at {cuts} of them into {cuts + 1} "
                    f"blocks; accepted: 1 to {min(count, MAX_CUTS)}"
                )
        self.cuts = cuts
        self.names = list(cut_points)
        # On the meta device first: an initialization would draw from the caller's random numbers.
        self.heads = nn.ModuleList(
            nn.Linear(features, count, device="meta").to_empty(device="cpu") for count in cut_points.values()
        )
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Logits over each network's cut points.

        Args:
            features: (B, features) of a batch.

        Returns:
            By network, (k,).
        """
        mean = features.float().mean(0)
        mean = F.layer_norm(mean, mean.shape)
        return {name: head(mean) for name, head in zip(self.names, self.heads, strict=True)}

    def sample(self, logits: Mapping[str, Tensor], *, generator: torch.Generator) -> Partition:
        """Draws a partition: c distinct cut points of each network.

        Args:
            logits: What :meth:`forward` gave.
            generator: On the CPU.

        Returns:
            Ascending cut points by network.
        """
        return {
            name: tuple(sample_without_replacement(logits[name], self.cuts, generator=generator).tolist())
            for name in self.names
        }

    def best(self, logits: Mapping[str, Tensor]) -> Partition:
        """The c most likely cut points of each network; of equals, the earlier."""
        return {
            name: tuple(sorted(torch.argsort(logits[name], descending=True, stable=True)[: self.cuts].tolist()))
            for name in self.names
        }

    def log_probability(self, logits: Mapping[str, Tensor], partition: Mapping[str, tuple[int, ...]]) -> Tensor:
        """Log-probability of drawing this partition: those of the networks' sets, summed. 0-d, differentiable."""
        parts = [
            set_log_probability(logits[name], torch.tensor(partition[name], device=logits[name].device))
            for name in self.names
        ]
        return torch.stack(parts).sum()


def blocks_of(cut_points: tuple[int, ...], segments: int) -> list[tuple[int, int]]:
    """First and last segment of each of the c + 1 blocks that c cut points make.

    Args:
        cut_points: Ascending; i is the boundary behind segment i.
        segments: How many segments the network has.

    Returns:
        Pairs of indices, both inclusive.
    """
    ends = [*cut_points, segments - 1]
    starts = [0, *(cut + 1 for cut in cut_points)]
    return list(zip(starts, ends, strict=True))


def _check_logits(logits: Tensor) -> None:
    if logits.ndim < 1 or not logits.isfinite().all():
        raise TensorError(f"logits of shape {tuple(logits.shape)}; accepted: finite numbers (..., k)")


def _check_count(count: int, choices: int) -> None:
    if not 1 <= count <= min(choices, MAX_CUTS):
        raise OutOfRangeError(f"{count} of {choices} cut points; accepted: 1 to {min(choices, MAX_CUTS)}")


def _check_chosen(chosen: Tensor, choices: int) -> None:
    if chosen.dtype != torch.int64:
        raise TensorError(f"chosen of {chosen.dtype}, shape {tuple(chosen.shape)}; accepted: int64 indices")
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < choices:
        raise OutOfRangeError(f"chosen holds {chosen.tolist()}; accepted: indices from 0 to {choices - 1}")
    ordered = chosen.sort(-1).values
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise TensorError(f"chosen holds {chosen.tolist()}; accepted: distinct indices")
