"""Running several chains of modules on one input, what they have in common at their start only once.

Candidate assemblies often begin alike: the same first segments of one network, then the same stitch. Their chains are
merged into a tree by the steps' keys and the tree is walked depth first: beside the finished outputs, only those along
one path are held at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pyassemble.errors import TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from torch import Tensor

    from pyassemble.network.cuts import CutNetwork


@dataclass(frozen=True)
class Step:
    """One module of a chain.

    Attributes:
        key: Steps of equal keys behind equal steps compute the same.
        run: Output of an input.
        name: What messages call it: which block of which source, or the stitch between which two.
        counts: Whether it is the execution of a block (a segment); stitches are not counted.
    """

    key: Hashable
    run: Callable[[Tensor], Tensor]
    name: str
    counts: bool = True


def segment_steps(network: CutNetwork, name: str, first: int, stop: int) -> list[Step]:
    """A step for each of the segments ``first`` to ``stop - 1`` of a network of that name."""
    return [
        Step((name, i), network.segments[i], f"segment {i} ({network.cut_points[i]}) of source {name!r}")
        for i in range(first, stop)
    ]


@dataclass(frozen=True)
class Executions:
    """How often blocks ran.

    Attributes:
        requested: Blocks of all chains, as K independent forward passes would run them.
        executed: Blocks that were run.
    """

    requested: int = 0
    executed: int = 0

    @property
    def saved(self) -> int:
        """Block executions that sharing prefixes saved."""
        return self.requested - self.executed

    def __add__(self, other: Executions) -> Executions:
        return Executions(self.requested + other.requested, self.executed + other.executed)


def run_chains(chains: Sequence[Sequence[Step]], x: Tensor) -> tuple[list[Tensor], Executions]:
    """Outputs of several chains for one input, every common prefix run once.

    Args:
        chains: Each at least one step long.
        x: The input of all of them. It stays as it is, also where a step works in place.

    Returns:
        An output for each chain, and how many block executions it took. Chains that are equal share one output.
    """
    outputs: list[Tensor | None] = [None] * len(chains)
    executed = _walk(chains, list(range(len(chains))), 0, x, outputs)
    requested = sum(step.counts for chain in chains for step in chain)
    found = [output for output in outputs if output is not None]
    assert len(found) == len(chains)
    return found, Executions(requested, executed)


def _walk(
    chains: Sequence[Sequence[Step]], members: list[int], depth: int, x: Tensor, outputs: list[Tensor | None]
) -> int:
    """Runs what follows after ``depth`` common steps of these chains; the number of blocks that were run."""
    branches: dict[Hashable, list[int]] = {}
    kept = depth == 0  # the caller's input
    for member in members:
        if depth == len(chains[member]):
            outputs[member] = x
            kept = True
        else:
            branches.setdefault(chains[member][depth].key, []).append(member)
    executed = 0
    for number, branch in enumerate(branches.values()):
        step = chains[branch[0]][depth]
        # A step may work in place, as activations do; the last one to need the input may have it.
        own = x if number == len(branches) - 1 and not kept else x.clone()
        executed += step.counts + _walk(chains, branch, depth + 1, step.run(own), outputs)
    return executed


@torch.no_grad()
def refuse_non_finite(chain: Sequence[Step], x: Tensor) -> None:
    """Finds the step of a chain whose output is the first to hold NaN or infinity.

    Meant for when a result has turned out to be not finite: looking at every output costs time.

    Args:
        chain: The steps.
        x: Their input.

    Raises:
        TensorError: The input or an output is not finite; the message names it, its shape and how many elements.
    """
    name, output = "the input", x.clone()
    for step in (None, *chain):
        if step is not None:
            name, output = step.name, step.run(output)
        bad = int((~output.isfinite()).sum())
        if bad:
            raise TensorError(
                f"{name}: {bad} of {output.numel()} elements of its output {tuple(output.shape)} are NaN or infinite; "
                "accepted: finite numbers"
            )
