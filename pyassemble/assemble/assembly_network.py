"""The assembly network Q_beta: routers over the blocks of a repository, and every stitch and head met so far.

A partition cuts each of the n networks into the same number of blocks. Router i looks at what block i - 1 gave and
chooses whose block i comes next; the chosen block's probability multiplies its output, so that the loss reaches the
router (Switch routing). That makes what the next stitch sees about n times smaller, which undoes a start fitted to the
networks' own features; divided by its own value the probability is a factor of 1 with the gradient of its logarithm
("straight_through"). Blocks are the repository's own, frozen and in eval mode; stitches and heads are learned here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyassemble.assemble.head import Head
from pyassemble.assemble.partition import Partition, blocks_of
from pyassemble.assemble.prefixes import Step, segment_steps
from pyassemble.assemble.repository import Block
from pyassemble.assemble.routers import Router
from pyassemble.assemble.stitches import Continuation, stitch
from pyassemble.errors import UnknownOptionError
from pyassemble.training.seeding import derived_generator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyassemble.assemble.repository import Repository
    from pyassemble.network.cuts import CutNetwork

ROUTING = ("argmax", "sample")
FACTORS = ("probability", "straight_through")

Joint = tuple[int, int, int, int]
"""Where a stitch goes: from (network, last segment) to (network, first segment), networks by their number."""


@dataclass(frozen=True)
class Routed:
    """What a forward pass gave.

    Attributes:
        logits: (B, num_classes).
        choices: Number of the network whose block was run, for each router.
        factors: (c + 1,) of the chosen blocks' outputs, with the routers' gradient.
        distributions: (c + 1, n) of all blocks, without a gradient.
    """

    logits: Tensor
    choices: tuple[int, ...]
    factors: Tensor
    distributions: Tensor


class AssemblyNetwork(nn.Module):
    """Q_beta over a repository.

    Args:
        repository: Where the blocks come from; it is not part of this module's parameters or state.
        num_classes: Of the heads.
        blocks: How many blocks an assembly has, c + 1.
        seed: Of routers, stitches and heads: each is initialized from a seed of its own, whenever it is first met.
        routing: In training, "argmax" runs the likeliest block (the noise on the router's input is all that varies it),
            "sample" draws one with the router's probabilities. In eval mode it is always the likeliest.
        factor: What multiplies a chosen block's output: its "probability", as published, or 1 with the gradient of the
            probability's logarithm ("straight_through").
        start: Changes a stitch that was just made, for instance to a least-squares start; as drawn without.
        start_head: Changes a head that was just made, given the name of its network.

    Raises:
        UnknownOptionError: Another routing or factor.
    """

    def __init__(
        self,
        repository: Repository,
        num_classes: int,
        *,
        blocks: int,
        seed: int = 0,
        routing: str = "argmax",
        factor: str = "probability",
        start: Callable[[Joint, nn.Module], None] | None = None,
        start_head: Callable[[str, Head], None] | None = None,
    ) -> None:
        super().__init__()
        if routing not in ROUTING:
            raise UnknownOptionError("routing", routing, ROUTING)
        if factor not in FACTORS:
            raise UnknownOptionError("factor", factor, FACTORS)
        self._repository = repository
        self._start, self._start_head = start, start_head
        self.names = list(repository.names)
        self.num_classes, self.blocks, self.seed = num_classes, blocks, seed
        self.routing, self.factor = routing, factor
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.set_state(derived_generator(seed, "routers").get_state())
            self.routers = nn.ModuleList(Router(len(self.names)) for _ in range(blocks)).to(repository.device)
        self._stitches = nn.ModuleDict()
        self._heads = nn.ModuleDict()

    # -- Parts --------------------------------------------------------------------------------------------------------

    def path(self, partition: Partition, choices: tuple[int, ...]) -> tuple[Block, ...]:
        """The blocks of an assembly: the i-th block of the partitioned network ``choices[i]``, for each i."""
        found = []
        for i, choice in enumerate(choices):
            name = self.names[choice]
            first, last = blocks_of(partition[name], len(self._network(name).segments))[i]
            found.append(Block(name, first, last))
        return tuple(found)

    def joint(self, before: Block, after: Block) -> Joint:
        """Where the stitch between two blocks goes."""
        return self.names.index(before.network), before.last, self.names.index(after.network), after.first

    def stitch(self, joint: Joint) -> nn.Module:
        """The learned stitch of a place; made when it is first asked for, then kept."""
        key = _text(joint)
        if key not in self._stitches:
            self.add_stitch(joint)
            if self._start is not None:
                self._start(joint, self._stitches[key])
        return self._stitches[key]

    def add_stitch(self, joint: Joint) -> None:
        """Makes the stitch of a place as it is drawn, for weights that are loaded into it."""
        self._stitches[_text(joint)] = self.initial_stitch(joint)

    def initial_stitch(self, joint: Joint) -> nn.Module:
        """A new stitch for a place, the same bits whenever it is made; where a network just goes on, there is none."""
        source, last, target, first = joint
        if source == target and first == last + 1:
            return Continuation().to(self._repository.device)
        network = self._network(self.names[target])
        generator = derived_generator(self.seed, "stitch", *joint)
        made = stitch(self._network(self.names[source]).shapes[last], network.shape_before(first), generator=generator)
        return made.to(self._repository.device)

    def head(self, name: str) -> Head:
        """The learned head behind the last segment of a network; made when it is first asked for, then kept."""
        key = str(self.names.index(name))
        made = key not in self._heads
        if made:
            self.add_head(name)
        head = self._heads[key]
        assert isinstance(head, Head)
        if made and self._start_head is not None:
            self._start_head(name, head)
        return head

    def add_head(self, name: str) -> None:
        """Makes the head of a network as it is drawn, for weights that are loaded into it."""
        number = self.names.index(name)
        generator = derived_generator(self.seed, "head", number)
        head = Head(self._network(name).shapes[-1], self.num_classes, generator=generator)
        self._heads[str(number)] = head.to(self._repository.device)

    def joints(self) -> list[Joint]:
        """The places of all stitches met so far, in the order in which they were."""
        return [_joint(key) for key in self._stitches]

    def heads(self) -> list[str]:
        """The networks of all heads met so far."""
        return [self.names[int(key)] for key in self._heads]

    def weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """gamma: the parameters of all stitches and heads met so far, by name."""
        for name, parameter in self.named_parameters():
            if not name.startswith("routers."):
                yield name, parameter

    # -- Running ------------------------------------------------------------------------------------------------------

    def forward(
        self,
        images: Tensor,
        partition: Partition,
        *,
        generator: torch.Generator | None = None,
        agree: Callable[[Tensor], Tensor] | None = None,
        draw: bool | None = None,
        choices: Sequence[int] | None = None,
    ) -> Routed:
        """Routes a batch through the blocks of a partition.

        Args:
            images: (B, ...) on the repository's device.
            partition: Cut points of every network.
            generator: Of the routers' noise and draws, on the CPU.
            agree: Makes several processes go one way: what it gives for this process's probabilities is what decides.
            draw: Whether each choice is drawn with the router's probabilities; by default in training where the routing
                is "sample".
            choices: The way to take, whatever the routers say.

        Returns:
            Logits, the way taken, and the factors along it.
        """
        output, before = images, None
        draw = self.training and self.routing == "sample" if draw is None else draw
        taken: list[int] = []
        chosen: list[Tensor] = []
        distributions: list[Tensor] = []
        for i, router in enumerate(self.routers):
            probabilities = router(output, generator=generator)
            decisive = probabilities.detach() if agree is None else agree(probabilities.detach())
            taken.append(_choice(decisive, generator, draw) if choices is None else choices[i])
            chosen.append(self._factor(probabilities[taken[-1]]))
            distributions.append(decisive)
            block = self._block(partition, i, taken[-1])
            if before is not None:
                output = self.stitch(self.joint(before, block))(output)
            for segment in self._network(block.network).segments[block.first : block.last + 1]:
                output = segment(output)
            output = output * chosen[-1].to(output.dtype)
            before = block
        assert before is not None
        logits: Tensor = self.head(before.network)(output)
        return Routed(logits, tuple(taken), torch.stack(chosen), torch.stack(distributions))

    def chain(self, path: tuple[Block, ...], *, initial: bool = False) -> list[Step]:
        """An assembly without factors as steps to its features, one a segment and one a stitch.

        Args:
            path: Its blocks.
            initial: With stitches as they were before any training; they are made for this chain.

        Returns:
            The steps.
        """
        steps: list[Step] = []
        before: Block | None = None
        for block in path:
            if before is not None:
                joint = self.joint(before, block)
                module = self.initial_stitch(joint) if initial else self.stitch(joint)
                steps.append(Step(joint, module, _between(before, block), counts=False))
            steps += segment_steps(self._network(block.network), block.network, block.first, block.last + 1)
            before = block
        return steps

    def parameter_count(self, path: tuple[Block, ...]) -> int:
        """Parameters of an assembly, its stitches and head included; a segment that occurs twice counts once."""
        modules: list[nn.Module] = [self.head(path[-1].network)]
        modules += [self.stitch(self.joint(a, b)) for a, b in pairwise(path)]
        for block in path:
            modules += self._network(block.network).segments[block.first : block.last + 1]
        return sum(p.numel() for p in nn.ModuleList(modules).parameters())

    def _factor(self, probability: Tensor) -> Tensor:
        return probability if self.factor == "probability" else probability / probability.detach()

    def _block(self, partition: Partition, i: int, choice: int) -> Block:
        name = self.names[choice]
        first, last = blocks_of(partition[name], len(self._network(name).segments))[i]
        return Block(name, first, last)

    def _network(self, name: str) -> CutNetwork:
        return self._repository[name]


def _choice(probabilities: Tensor, generator: torch.Generator | None, draw: bool) -> int:
    if draw:
        return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))
    return int(probabilities.argmax())


def _text(joint: Joint) -> str:
    return "_".join(map(str, joint))


def _joint(key: str) -> Joint:
    source, last, target, first = map(int, key.split("_"))
    return source, last, target, first


def _between(before: Block, after: Block) -> str:
    return (
        f"the stitch from segment {before.last} of source {before.network!r} to segment {after.first} of source "
        f"{after.network!r}"
    )
