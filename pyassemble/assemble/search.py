"""Algorithm 1 of PA-DNN: partition network, routers and stitches learned in turns, the policy from a score.

A round draws a partition of all repository networks and holds it for some steps. Each step trains stitches and heads on
a batch of the training half (eq. 5) and the routers on a batch of the validation half (eq. 6). At its end the routers'
assembly and those of other partitions drawn from the policy are scored without training, and PPO moves the policy
towards the better ones (eq. 3, 4).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pyassemble.assemble.batch_statistics import normalizing_by
from pyassemble.assemble.candidates import SELECTIONS, Candidate
from pyassemble.assemble.epoch_record import EpochRecord
from pyassemble.assemble.prefixes import Executions, refuse_non_finite
from pyassemble.assemble.score import score_chains
from pyassemble.assemble.search_state import SearchState
from pyassemble.errors import TensorError
from pyassemble.training.accelerated import average_gradients, mean_over_processes
from pyassemble.training.metrics import Quality, measure_quality
from pyassemble.training.mixing import Mixing
from pyassemble.training.seeding import derived_generator, derived_seed, global_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyassemble.assemble.assembly_network import Routed
    from pyassemble.assemble.head import Head
    from pyassemble.assemble.partition import Partition
    from pyassemble.assemble.repository import Block
    from pyassemble.training.data import Data


class _Evaluated(NamedTuple):
    """The assembly of a partition and a way through it: its blocks, their factors, its head and quality."""

    path: tuple[Block, ...]
    factors: tuple[float, ...]
    head: Head
    quality: Quality


class _Round(NamedTuple):
    """What the end of a round gave: evaluated candidates; scores and sizes of all; block executions."""

    found: list[Candidate]
    scores: list[float]
    sizes: list[int]
    executions: Executions


class Search(SearchState):
    """A search and its next epoch; made as :class:`~pyassemble.assemble.search_state.SearchState` is."""

    # -- One epoch ----------------------------------------------------------------------------------------------------

    def steps(self) -> int:
        """Steps of an epoch."""
        return self.train.steps(self._accelerator)

    def run_epoch(self, after_step: Callable[[str], None] | None = None) -> EpochRecord:
        """Trains for one pass over the training half.

        Args:
            after_step: Called after every step with a few words on how it goes.

        Returns:
            What was done; also the last entry of ``history``.

        Raises:
            TensorError: Images that a network cannot take, labels that are no classes, or NaN in a block's output,
                named with its source.
        """
        epoch = self.epoch + 1
        steps = self.steps()
        rounds = min(self.settings.rounds, steps)
        ends = [(r + 1) * steps // rounds for r in range(rounds)]
        weights_losses: list[float] = []
        router_losses: list[float] = []
        scores: list[float] = []
        sizes: list[int] = []
        accuracy = 0.0
        executions = Executions()
        with global_seeds(derived_seed(self.seed, "epoch", epoch)):
            generator = derived_generator(self.seed, "search", epoch)
            mixing = self._mixing(epoch)
            train = self._forever(self.train, "train", epoch)
            validation = self._forever(self.validation, "validation", epoch)
            step = 0
            for end in ends:
                images, _ = next(validation)
                features = mean_over_processes(self._accelerator, self._embed(images).mean(0, keepdim=True))
                partition = self.policy.sample(self.policy(features), generator=generator)
                while step < end:
                    weights_losses.append(self._weights_step(*mixing(*next(train)), partition, generator))
                    router_losses.append(self._router_step(*mixing(*next(validation)), partition, generator))
                    step += 1
                    if after_step is not None:
                        after_step(f"loss {weights_losses[-1]:.3f}")
                last = end == ends[-1]
                done = self._end_round(partition, features, images, generator, epoch, last)
                executions += done.executions
                self._keep_best(done.found)
                accuracy = max(accuracy, *(candidate.accuracy for candidate in done.found))
                scores += done.scores
                sizes += done.sizes
        self.executions += executions
        finite = [value for value in scores if math.isfinite(value)]
        record = EpochRecord(
            epoch=epoch,
            weights_loss=sum(weights_losses) / len(weights_losses),
            router_loss=sum(router_losses) / len(router_losses),
            accuracy=accuracy,
            score=max(finite, default=math.nan),
            mean_score=sum(finite) / len(finite) if finite else math.nan,
            stitches=len(self.network.joints()),
            blocks_requested=executions.requested,
            blocks_executed=executions.executed,
            scores=tuple(scores),
            parameters=tuple(sizes),
        )
        self.epoch = epoch
        self.history.append(record)
        return record

    def _weights_step(self, images: Tensor, targets: Tensor, partition: Partition, generator: torch.Generator) -> float:
        """Stitches and head, the routers as they are (eq. 5)."""
        self.network.train()
        with _frozen(self.network.routers.parameters()):
            loss = self._loss(images, targets, partition, generator)
            optimizer = self._weights_optimizer()
            optimizer.zero_grad()
            self._accelerator.backward(loss)
        average_gradients(self._accelerator, [p for _, p in self.network.weights() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def _router_step(self, images: Tensor, targets: Tensor, partition: Partition, generator: torch.Generator) -> float:
        """Routers, stitches and heads as they are (eq. 6)."""
        self.network.train()
        with _frozen([parameter for _, parameter in self.network.weights()]):
            loss = self._loss(images, targets, partition, generator)
            self._sgd.zero_grad()
            self._accelerator.backward(loss)
        average_gradients(self._accelerator, self.network.routers.parameters())
        self._sgd.step()
        self._sgd.zero_grad()
        return float(loss.detach())

    def _loss(self, images: Tensor, targets: Tensor, partition: Partition, generator: torch.Generator) -> Tensor:
        routed = self._route(images, partition, generator)
        loss = nn.functional.cross_entropy(routed.logits.float(), targets)
        if not math.isfinite(float(loss.detach())):
            path = self.network.path(partition, routed.choices)
            refuse_non_finite(self.network.chain(path), images)
            raise TensorError(
                f"the loss of {described(path)} is {float(loss.detach())} though all its blocks are finite"
            )
        return loss

    def _route(
        self,
        images: Tensor,
        partition: Partition,
        generator: torch.Generator | None = None,
        draw: bool | None = None,
    ) -> Routed:
        self._check_images(images)

        def agree(probabilities: Tensor) -> Tensor:
            return mean_over_processes(self._accelerator, probabilities)

        with self._accelerator.autocast():
            routed: Routed = self.network(images, partition, generator=generator, agree=agree, draw=draw)
        return routed

    def _way(self, images: Tensor, partition: Partition, generator: torch.Generator) -> tuple[int, ...]:
        """The way through a partition that the settings ask for, by what the routers make of a batch."""
        draw = self.settings.ways == "drawn"
        return self._route(images, partition, generator if draw else None, draw=draw).choices

    # -- Candidates ---------------------------------------------------------------------------------------------------

    def _end_round(
        self, partition: Partition, features: Tensor, images: Tensor, generator: torch.Generator, epoch: int, last: bool
    ) -> _Round:
        """Scores the trained partition and others drawn beside it, and lets the policy learn from them.

        The trained partition's assembly is also evaluated and, where ``last``, that of the likeliest cut points; all of
        them where accuracy is the reward.
        """
        self.network.eval()
        logits = self.policy(features)
        drawn = [partition]
        drawn += [self.policy.sample(logits, generator=generator) for _ in range(self.settings.candidates - 1)]
        evaluated = {0: self._evaluated(partition)}
        with torch.no_grad():
            ways = [self._way(images, other, generator) for other in drawn[1:]]
        by_accuracy = self.settings.reward == "validation"
        if by_accuracy:
            both = zip(drawn[1:], ways, strict=True)
            evaluated |= {k: self._evaluated(other, way) for k, (other, way) in enumerate(both, 1)}
        others = [self.network.path(other, way) for other, way in zip(drawn[1:], ways, strict=True)]
        paths = [evaluated[0].path, *others]
        if last:
            likeliest = evaluated[len(drawn)] = self._evaluated(self.policy.best(logits))
            paths.append(likeliest.path)
        blocks = (segment for name in self.repository.names for segment in self.repository[name].segments)
        with normalizing_by(blocks, self.settings.statistics):
            scores, executions = score_chains(
                [self.network.chain(path, initial=True) for path in paths],
                self._images_to_score(),
                device=self.repository.device,
                alpha=self.settings.alpha,
                seed=derived_seed(self.seed, "noise"),
                batch_size=self.settings.score_batch,
            )
        scores = mean_over_processes(self._accelerator, scores.to(self.repository.device)).cpu()
        rewards = scores[: len(drawn)]
        if by_accuracy:
            rewards = torch.tensor([evaluated[k].quality.accuracy for k in range(len(drawn))])
        self._improve(drawn, rewards, features)
        found = [self._candidate(one, float(scores[k]), epoch) for k, one in sorted(evaluated.items())]
        sizes = [self.network.parameter_count(path) for path in paths]
        return _Round(found, scores.tolist(), sizes, executions)

    def _improve(self, drawn: list[Partition], rewards: Tensor, features: Tensor) -> None:
        # A perturbation that moves nothing (an assembly whose activations all died) has no finite score to learn from.
        usable = [k for k, reward in enumerate(rewards.tolist()) if math.isfinite(reward)]
        if not usable:
            return

        def log_probabilities() -> Tensor:
            logits = self.policy(features)
            return torch.stack([self.policy.log_probability(logits, drawn[k]) for k in usable])

        self._ppo.step(log_probabilities, rewards[usable].to(self.repository.device))

    @torch.no_grad()
    def _evaluated(self, partition: Partition, way: tuple[int, ...] | None = None) -> _Evaluated:
        """The assembly of a partition and a way, by default the one that the routers send most images: how good it is.

        Every process looks at the same images, and takes the main one's answer.
        """
        self.network.eval()
        images = self.selection
        ways: Counter[tuple[int, ...]] = Counter()
        sums: dict[tuple[int, ...], Tensor] = {}
        for batch, _ in images.batches(self.num_classes, self.repository.device):
            self._check_images(batch)
            with self._accelerator.autocast():
                routed = self.network(batch, partition, choices=way)
            ways[routed.choices] += len(batch)
            added = len(batch) * routed.factors.detach().double().cpu()
            sums[routed.choices] = sums.get(routed.choices, torch.zeros(self.blocks)) + added
        choices, count = ways.most_common(1)[0]
        path = self.network.path(partition, choices)
        factors = tuple((sums[choices] / count).tolist())
        head = self._head(path, factors)
        quality = measure_quality(
            lambda batch: self._logits(path, factors, head, batch),
            images.batches(self.num_classes, self.repository.device),
            self.num_classes,
        )
        if math.isnan(quality.loss):
            batch, _ = next(iter(images.batches(self.num_classes, self.repository.device)))
            refuse_non_finite(self.network.chain(path), batch)
        found = _Evaluated(path, factors, head, quality)
        if self._accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list([found._replace(head=copy.deepcopy(head).cpu())])[0]
            found.head.to(self.repository.device)
        return found

    def _head(self, path: tuple[Block, ...], factors: tuple[float, ...]) -> Head:
        """The head of an assembly: as it was trained so far, or one fitted to this assembly's features."""
        trained = self.network.head(path[-1].network)
        if self.settings.head == "trained":
            return trained
        head = copy.deepcopy(trained)
        self._fitted.head(head, lambda images: self._features(path, factors, images), self.network.chain(path))
        return head

    def _logits(self, path: tuple[Block, ...], factors: tuple[float, ...], head: Head, images: Tensor) -> Tensor:
        """An assembly with constant factors in place of the routers'."""
        with self._accelerator.autocast():
            logits: Tensor = head(self._features(path, factors, images))
        return logits

    def _features(self, path: tuple[Block, ...], factors: tuple[float, ...], images: Tensor) -> Tensor:
        with self._accelerator.autocast():
            output, before = images, None
            for block, factor in zip(path, factors, strict=True):
                if before is not None:
                    output = self.network.stitch(self.network.joint(before, block))(output)
                for segment in self.repository[block.network].segments[block.first : block.last + 1]:
                    output = segment(output)
                output, before = output * factor, block
        return output

    def _candidate(self, evaluated: _Evaluated, score: float, epoch: int) -> Candidate:
        path, factors, head, quality = evaluated
        parts: dict[str, nn.Module] = {"head": head}
        for i, (before, after) in enumerate(pairwise(path)):
            parts[str(i)] = self.network.stitch(self.network.joint(before, after))
        weights = {
            f"{part}.{name}": tensor.detach().clone()
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        }
        size = self.network.parameter_count(path)
        return Candidate(path, factors, quality.accuracy, quality.auroc, quality.loss, score, size, epoch, weights)

    def _keep_best(self, found: list[Candidate]) -> None:
        for select in SELECTIONS:
            for candidate in found:
                held = self.best.get(select)
                value = candidate.value(select)
                if math.isfinite(value) and (held is None or value > held.value(select)):
                    self.best[select] = candidate

    # -- Data ---------------------------------------------------------------------------------------------------------

    def _forever(self, data: Data, purpose: str, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in a new order each time around."""
        turn = 0
        while True:
            order = derived_generator(self.seed, purpose, epoch, turn)
            yield from data.batches(
                self.num_classes, self.repository.device, shuffle=order, accelerator=self._accelerator
            )
            turn += 1

    def _mixing(self, epoch: int) -> Mixing:
        seed = derived_seed(self.seed, "mixing", epoch, self._accelerator.process_index)
        s = self.settings
        return Mixing(self.num_classes, seed, mixup=s.mixup, cutmix=s.cutmix, smoothing=s.smoothing)

    def _images_to_score(self) -> Tensor:
        if self._score_images is None:
            images = self.validation.drawn(self.settings.score_images, derived_generator(self.seed, "scored"))
            batches = images.batches(self.num_classes, torch.device("cpu"))
            self._score_images = torch.cat([batch for batch, _ in batches])
        return self._score_images

    def _embed(self, images: Tensor) -> Tensor:
        self._check_images(images)
        features: Tensor = self._embedding(images)
        if not features.isfinite().all():
            refuse_non_finite(self.network.chain((self._embedded,)), images)
        return features

    def _check_images(self, images: Tensor) -> None:
        expected = tuple(self.repository.example_input.shape[1:])
        if tuple(images.shape[1:]) != expected:
            raise TensorError(
                f"images of shape {tuple(images.shape)}; accepted: (B, {', '.join(map(str, expected))}), which "
                "the repository's networks were cut for"
            )


def described(path: tuple[Block, ...]) -> str:
    """An assembly's blocks in one line."""
    return " → ".join(f"{block.network}[{block.first}..{block.last}]" for block in path)


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradients to these for the block's time."""
    held = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
