"""Hard-concrete gates on the groups of a wide student (Merging, section 3; L0, eq. 10 to 12)."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyassemble.kernels import gate_open_probability, hard_concrete_eval, hard_concrete_gate, hard_concrete_values
from pyassemble.network.operations import clamp_bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

LOC_MEAN, LOC_SD = 1.0, 0.01  # Merging


@dataclass(frozen=True)
class GateGroup:
    """The gates of one group of the wide student.

    Attributes:
        name: The layer or tensor that first produces the group's channels.
        loc: (n,) learned, one for each unit; all units of the first teacher, then of the second, and so on.
        unit: What one gate opens or closes: "channel", "group" (of a grouped convolution) or "head".
        teacher: (n,) teacher of each unit, from 0.
        keep: Share of gates that the sparsity loss asks to be open.
    """

    name: str
    loc: nn.Parameter
    unit: str
    teacher: Tensor
    keep: float

    def open_probability(self) -> Tensor:
        """(n,): P[g > 0] of each gate."""
        probability: Tensor = gate_open_probability(self.loc)
        return probability

    def sparsity_loss(self) -> Tensor:
        """(r - mean P[g > 0])^2, r the share to keep (Merging)."""
        return (self.keep - self.open_probability().mean()).square()

    @torch.no_grad()
    def importance(self) -> Tensor:
        """(n,): the gates of evaluation, in [0, 1]."""
        values: Tensor = hard_concrete_eval(self.loc.new_ones(1, len(self.loc)), self.loc)
        return values[0]


class GateBank(nn.Module):
    """The learned parameters of all gates, and the draw that all sites of a forward pass share.

    Attributes:
        locs: ``loc`` of each group.
        learned: Numbers of the groups whose gates are at work; those of others are 1.
        step: 0-d int64, how many draws were made; it lies on the module's device.
    """

    def __init__(self, sizes: list[int], seed: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.locs = nn.ParameterList(
            (LOC_MEAN + LOC_SD * torch.randn(size, generator=generator)).to(device, dtype) for size in sizes
        )
        # Draws of different seeds must not meet within a run: each has 2^40 draws of its own.
        self.register_buffer("step", torch.tensor((seed % 2**20) << 40, device=device))
        self.step: Tensor
        self.learned = frozenset(range(len(sizes)))
        self.forced_open = False
        self._drawn: dict[Hashable, Tensor] | None = None

    def advance(self) -> None:
        """The next forward pass draws anew."""
        self.step += 1

    def sparsity_loss(self, keep: Sequence[float]) -> Tensor:
        """Sum over the groups whose gates are at work of (r - mean P[g > 0])^2 (Merging, L_half).

        Args:
            keep: r of each group, of all.
        """
        chosen = sorted(self.learned)
        if not chosen:
            return torch.zeros((), device=self.step.device)
        # All groups in one go: a deep network has hundreds of small ones.
        locs = [self.locs[group] for group in chosen]
        sizes = [len(loc) for loc in locs]
        device = locs[0].device
        probability: Tensor = gate_open_probability(torch.cat(locs))
        # The size of the output is named, or torch.compile would have to wait for the numbers.
        counts = torch.tensor(sizes, device=device)
        group = torch.arange(len(chosen), device=device).repeat_interleave(counts, output_size=sum(sizes))
        means = probability.new_zeros(len(chosen)).index_add(0, group, probability) / probability.new_tensor(sizes)
        missed: Tensor = probability.new_tensor([keep[g] for g in chosen]) - means
        return missed.square().sum()

    def seed(self, group: int) -> Tensor:
        """Seed of a group in this forward pass: no two groups draw alike."""
        return self.step * len(self.locs) + group

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """What several sites ask for is computed once inside: a residual stream enters many layers."""
        before, self._drawn = self._drawn, {}
        try:
            yield
        finally:
            self._drawn = before

    def once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """A tensor that was made before in this pass, or is made now."""
        if self._drawn is None:
            return make()
        if key not in self._drawn:
            self._drawn[key] = make()
        return self._drawn[key]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """All gates are 1 inside."""
        before, self.forced_open = self.forced_open, True
        try:
            yield
        finally:
            self.forced_open = before


class GateSite(nn.Module):
    """The gates at one place: what enters one layer that mixes channels.

    Args:
        bank: The gates; held without becoming a child, as all sites share it.
        groups: (P,) group of each position along ``dim``.
        units: (P,) unit of each position.
        dim: The dimension of the channels.

    Attributes:
        activation: What is done to the channels before they are gated (see :meth:`fuse`).
        bounds: Between which it clamps them.
    """

    def __init__(self, bank: GateBank, groups: Tensor, units: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.activation: nn.Module = nn.Identity()
        self.bounds = -math.inf, math.inf
        self._bank = [bank]
        self.groups = sorted(set(groups.tolist()))
        start = dict(zip(self.groups, _starts([len(bank.locs[g]) for g in self.groups]), strict=True))
        index = torch.tensor([start[g] for g in groups.tolist()]) + units
        whole = torch.arange(sum(len(bank.locs[g]) for g in self.groups))
        self.register_buffer("index", index.to(bank.step.device), persistent=False)
        self.index: Tensor
        # Bytes remember their hash, which every pass asks for.
        self._key = (tuple(self.groups), index.cpu().numpy().tobytes())
        # Each position its own gate, in order: nothing has to be looked up, and the kernel draws as it multiplies.
        self.direct = len(self.groups) == 1 and torch.equal(index, whole)
        # Each gate for as many neighbouring positions, as a head's or a flattened map's: a dimension of its own.
        self.repeat = 0
        if len(self.groups) == 1 and not self.direct and len(index) % len(whole) == 0:
            repeat = len(index) // len(whole)
            if torch.equal(index, whole.repeat_interleave(repeat)):
                self.repeat = repeat

    def fuse(self, activation: nn.Module) -> None:
        """Does a clamping activation before the gates, in training in one pass with them; where :attr:`direct`."""
        bounds = clamp_bounds(activation)
        if bounds is None:
            raise ValueError(f"{activation} does not clamp")
        self.activation, self.bounds = activation, bounds

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x times the gates: drawn per sample in training, fixed in evaluation."""
        bank = self._bank[0]
        if bank.forced_open:
            opened: Tensor = self.activation(x)
            return opened
        if self.direct:
            return self._gated(x, self.dim)
        if self.repeat:
            split = x.unflatten(self.dim, (-1, self.repeat))  # type: ignore[no-untyped-call]
            return self._gated(split, self.dim).flatten(self.dim, self.dim + 1)
        return x * self._values(x)

    def _gated(self, x: Tensor, dim: int) -> Tensor:
        bank, group = self._bank[0], self.groups[0]
        if self.training:
            low, high = self.bounds
            y: Tensor = hard_concrete_gate(x, bank.locs[group], seed=bank.seed(group), dim=dim, low=low, high=high)
        else:
            y = hard_concrete_eval(self.activation(x), bank.locs[group], dim=dim)
        return y

    def _values(self, x: Tensor) -> Tensor:
        values = self._bank[0].once((*self._key, len(x), self.training), lambda: self._of_positions(len(x)))
        shape = [1] * x.ndim
        shape[0], shape[self.dim] = values.shape
        return values.reshape(shape).to(x.dtype)

    def _of_positions(self, batch: int) -> Tensor:
        """(B, P) or (1, P): the gate of each position."""
        parts = [
            self._bank[0].once((group, batch, self.training), partial(self._of_group, group, batch))
            for group in self.groups
        ]
        return torch.cat(parts, 1).index_select(1, self.index)

    def _of_group(self, group: int, batch: int) -> Tensor:
        """(B, n) or (1, n): the gates of one group."""
        bank = self._bank[0]
        loc = bank.locs[group]
        rows = batch if self.training else 1
        if group not in bank.learned:
            return torch.ones(rows, len(loc), dtype=loc.dtype, device=loc.device)
        if self.training:
            drawn: Tensor = hard_concrete_values(loc, batch, seed=bank.seed(group))
            return drawn
        fixed: Tensor = hard_concrete_eval(loc.new_ones(1, len(loc)), loc)
        return fixed

    def extra_repr(self) -> str:
        """Number of positions and groups."""
        return f"{len(self.index)} positions of groups {self.groups}, dim={self.dim}"


def _starts(sizes: list[int]) -> list[int]:
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += size
    return starts
