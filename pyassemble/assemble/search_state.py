"""The state of a search for an assembly: what it is made of, and what a later process goes on from."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pyassemble.assemble.assembly_network import AssemblyNetwork
from pyassemble.assemble.candidates import Candidate
from pyassemble.assemble.epoch_record import EpochRecord
from pyassemble.assemble.fitted_start import FittedStart
from pyassemble.assemble.partition import Embedding, PartitionNetwork
from pyassemble.assemble.ppo import PPO
from pyassemble.assemble.prefixes import Executions
from pyassemble.assemble.repository import Block
from pyassemble.errors import PyAssembleError
from pyassemble.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from pyassemble.training.seeding import derived_generator

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from pyassemble.assemble.repository import Repository
    from pyassemble.assemble.settings import SearchSettings
    from pyassemble.training.data import Data


class SearchState:
    """Networks, optimizers and the best of what was found so far.

    Args:
        repository: Networks in eval mode, frozen.
        train: Training half: stitches and heads learn on it.
        validation: Validation half: routers and policy learn on it, and candidates are compared on it.
        num_classes: Of the heads.
        blocks: c + 1, how many blocks an assembly has.
        seed: Of everything.
        settings: The rest.
        accelerator: This process's.

    Raises:
        OutOfRangeError: A network with too few segments for that many blocks; the message names it.
    """

    def __init__(
        self,
        repository: Repository,
        train: Data,
        validation: Data,
        num_classes: int,
        *,
        blocks: int,
        seed: int,
        settings: SearchSettings,
        accelerator: Accelerator,
    ) -> None:
        self.repository, self.train, self.validation = repository, train, validation
        self.num_classes, self.blocks, self.seed, self.settings = num_classes, blocks, seed, settings
        self._accelerator = accelerator
        self.epoch = 0
        self.history: list[EpochRecord] = []
        self.best: dict[str, Candidate] = {}
        self.executions = Executions()
        self.policy, self._embedding, self._embedded = _policy(repository, blocks)
        self.selection = validation.drawn(settings.selection_images, derived_generator(seed, "selection"))
        self._fitted = FittedStart(
            repository, train, settings.start_images, num_classes, derived_generator(seed, "start")
        )
        self.network = AssemblyNetwork(
            repository,
            num_classes,
            blocks=blocks,
            seed=seed,
            routing=settings.routing,
            factor=settings.factor,
            start=self._fitted.stitch if settings.start == "least_squares" else None,
            start_head=self._fitted.own_head if settings.head == "fitted" else None,
        )
        self._ppo = PPO(
            self.policy.parameters(),
            learning_rate=settings.policy_rate,
            clip=settings.clip,
            inner_steps=settings.inner_steps,
            form=settings.form,
        )
        self._sgd = accelerator.prepare_optimizer(
            torch.optim.SGD(self.network.routers.parameters(), lr=settings.router_rate), device_placement=False
        )
        self._adamw: Any = None
        self._score_images: Tensor | None = None

    def _weights_optimizer(self) -> Any:
        """AdamW over all stitches and heads met so far."""
        weights = [parameter for _, parameter in self.network.weights()]
        if self._adamw is None:
            optimizer = torch.optim.AdamW(weights, lr=self.settings.weights_rate)
            self._adamw = self._accelerator.prepare_optimizer(optimizer, device_placement=False)
        known = {id(p) for group in self._adamw.param_groups for p in group["params"]}
        new = [parameter for parameter in weights if id(parameter) not in known]
        if new:
            self._adamw.add_param_group({"params": new})
        return self._adamw

    def tensors(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on from the last finished epoch, beside :meth:`document`."""
        found = {f"network/{name}": tensor for name, tensor in self.network.state_dict().items()}
        found |= {f"policy/{name}": tensor for name, tensor in self.policy.state_dict().items()}
        found |= {f"advantage/{name}": tensor for name, tensor in self._ppo.advantage.state_dict().items()}
        adam = optimizer_tensors(self._ppo.optimizer, dict(self.policy.named_parameters()))
        found |= {f"policy_adam/{name}": tensor for name, tensor in adam.items()}
        if self._adamw is not None:
            adamw = optimizer_tensors(self._adamw.optimizer, dict(self.network.weights()))
            found |= {f"weights_adamw/{name}": tensor for name, tensor in adamw.items()}
        for select, candidate in self.best.items():
            found |= {f"best/{select}/{name}": tensor for name, tensor in candidate.weights.items()}
        return found

    def document(self) -> dict[str, Any]:
        """The part of the state that is no tensors, for JSON."""
        return {
            "epoch": self.epoch,
            "stitches": self.network.joints(),
            "heads": self.network.heads(),
            "executions": asdict(self.executions),
            "best": {select: candidate.document() for select, candidate in self.best.items()},
            "history": [record.document() for record in self.history],
        }

    def restore(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes what :meth:`document` and :meth:`tensors` gave; the search must be as it was made.

        Raises:
            PyAssembleError: They do not belong to this search.
        """
        try:
            for joint in document["stitches"]:
                source, last, target, first = joint
                self.network.add_stitch((source, last, target, first))
            for name in document["heads"]:
                self.network.add_head(name)
            self.network.load_state_dict(_part(tensors, "network/"))
            self.policy.load_state_dict(_part(tensors, "policy/"))
            self._ppo.advantage.load_state_dict(_part(tensors, "advantage/"))
            load_optimizer_tensors(
                self._ppo.optimizer, dict(self.policy.named_parameters()), _part(tensors, "policy_adam/")
            )
            load_optimizer_tensors(
                self._weights_optimizer().optimizer, dict(self.network.weights()), _part(tensors, "weights_adamw/")
            )
            self.best = {
                select: Candidate.of(found, _part(tensors, f"best/{select}/"))
                for select, found in document["best"].items()
            }
            self.executions = Executions(**document["executions"])
            self.history = [EpochRecord.of(record) for record in document["history"]]
            self.epoch = document["epoch"]
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise PyAssembleError(f"a checkpoint of another search: {' '.join(str(error).split())}") from error


def _policy(repository: Repository, blocks: int) -> tuple[PartitionNetwork, Embedding, Block]:
    """The partition network over all cut points; its embedding, the features of the smallest network; that network."""
    networks = {name: repository[name] for name in repository.names}
    # The end of the last segment is no place to cut: nothing follows.
    policy_over = {name: len(network.segments) - 1 for name, network in networks.items()}
    sizes = {
        name: sum(p.numel() for segment in network.segments for p in segment.parameters())
        for name, network in networks.items()
    }
    name = min(sizes, key=lambda name: sizes[name])
    smallest = networks[name]
    shape = smallest.shapes[-1]
    last = shape.kind == "tokens" or shape.channels_last
    embedding = Embedding(smallest.features, channel_dim=-1 if last else 1)
    policy = PartitionNetwork(shape.channels, policy_over, cuts=blocks - 1).to(repository.device)
    return policy, embedding, Block(name, 0, len(smallest) - 1)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
