"""Many small networks trained side by side: one vectorized step for all, by torch.func."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import safe_open, save_file
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pyassemble.atomic import replacing
from pyassemble.kernels import hard_concrete_gate_reference
from pyassemble.merge.gates import GateBank, GateSite
from pyassemble.merge.schedule import SparsitySchedule
from pyassemble.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from pyassemble.training.seeding import derived_generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pyassemble.merge import WideStudent

LEARNING_RATE, GATE_RATE, MOMENTUM, BATCH = 0.01, 0.1, 0.9, 32
FIRST_LAMBDA = 0.01
CHECKPOINT_EVERY = 10


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: Of its random draws and its checkpoint.
        epochs: Passes over the data.
        drop: Epochs after which the learning rate is divided by ten; none by default.
        shuffled: Whether every epoch has an order of its own; the published code goes through the samples in one
            order, whose batches and steps repeat.
        rate: SGD's learning rate of the weights.
    """

    name: str
    epochs: int
    drop: int | None = None
    shuffled: bool = False
    rate: float = LEARNING_RATE


class Drawn(nn.Module):
    """A gate site of a wide student that takes its uniform draws from the buffer ``u`` instead of a counter.

    Under vmap the fused kernel runs once for each network; of fifty networks this form takes all in one operation.
    """

    def __init__(self, site: GateSite, bank: GateBank) -> None:
        super().__init__()
        if not site.direct:
            raise ValueError(f"{site}: each channel needs a gate of its own")
        self.group, self.dim, self.bounds = site.groups[0], site.dim, site.bounds
        self._bank = [bank]
        self.register_buffer("u", torch.empty(0))
        self.u: Tensor

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.bounds
        loc = self._bank[0].locs[self.group]
        return hard_concrete_gate_reference(x, loc, self.u, dim=self.dim, low=low, high=high)


class Penalized(nn.Module):
    """A copy of a wide student in training: its output, and its sparsity loss."""

    def __init__(self, student: WideStudent) -> None:
        super().__init__()
        self.student = copy.deepcopy(student).train()
        for name, site in list(self.student.named_modules()):
            if isinstance(site, GateSite):
                self.student.set_submodule(name, Drawn(site, self.student.gates))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(x), self.student.sparsity_loss()


@torch.no_grad()
def outputs(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """What each network gives for inputs of its own.

    Args:
        networks: N of one architecture, in eval mode.
        x: (N, samples).

    Returns:
        (N, samples).
    """
    return torch.stack([network(inputs[:, None])[:, 0] for network, inputs in zip(networks, x, strict=True)])


def train(
    networks: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    phase: Phase,
    *,
    seed: int,
    state: Path,
    after_epoch: Callable[[int], None],
) -> None:
    """Trains networks of one architecture in place, each on data of its own: squared error, SGD with momentum.

    Wide students' weights and gates are trained together, with the sparsity loss times a growing weight added. The
    state is kept in a file every ten epochs; a call that finds it goes on from there.

    Args:
        networks: N.
        x: (N, samples).
        y: (N, samples).
        phase: How long.
        seed: Of order and gates.
        state: The file.
        after_epoch: Called with the number of epochs done.
    """
    wide = hasattr(networks[0], "sparsity_loss")
    trained: list[nn.Module] = [Penalized(n) for n in networks] if wide else [copy.deepcopy(n) for n in networks]
    parameters, buffers = stack_module_state(trained)
    total_loss = _total_loss(trained[0])
    gates = [name for name in parameters if ".gates." in name]
    tables = [name for name in buffers if name.endswith(".u")]
    groups = [{"params": [value for name, value in parameters.items() if name not in gates], "lr": phase.rate}]
    if gates:
        groups.append({"params": [parameters[name] for name in gates], "lr": GATE_RATE})
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, foreach=True)
    identity = {"phase": asdict(phase), "seed": seed, "data": list(x.shape)}
    done = _load(state, identity, parameters, optimizer)
    schedule = SparsitySchedule(FIRST_LAMBDA)
    for epoch in range(phase.epochs):
        weight = schedule.step()
        if epoch < done:
            continue
        if phase.drop is not None:
            groups[0]["lr"] = optimizer.param_groups[0]["lr"] = phase.rate / (10 if epoch >= phase.drop else 1)
        generator = derived_generator(seed, phase.name, epoch)
        samples = torch.stack([x, y])
        if phase.shuffled:
            order = torch.stack([torch.randperm(x.shape[1], generator=generator) for _ in range(len(x))])
            samples = samples.gather(2, order.expand(2, -1, -1))
        for inputs, targets in samples.split(BATCH, 2):
            for name in tables:
                draws = torch.rand(*inputs.shape, gates_at(parameters, gates), generator=generator)
                buffers[name] = draws.clamp_(2**-24, 1 - 2**-24)
            loss = total_loss(parameters, buffers, inputs, targets, torch.tensor(weight))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (epoch + 1) % CHECKPOINT_EVERY == 0 or epoch + 1 == phase.epochs:
            _save(state, identity, parameters, optimizer, epoch + 1)
        after_epoch(epoch + 1)
    _write_back(networks, {name.removeprefix("student."): value for name, value in parameters.items()})


def gates_at(parameters: dict[str, Tensor], gates: Sequence[str]) -> int:
    """How many gates the one hidden layer has."""
    (name,) = gates
    return parameters[name].shape[1]


def _total_loss(network: nn.Module) -> Callable[..., Tensor]:
    """Sum over the networks of squared error, averaged over the batch, and weighted sparsity loss."""
    wide = isinstance(network, Penalized)

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(network, (parameters, buffers), (x[:, None],))

    def total(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor
    ) -> Tensor:
        found = vmap(one)(parameters, buffers, x)
        values, penalties = found if wide else (found, None)
        loss = (values[:, :, 0] - y).square().mean(1).sum()
        return loss if penalties is None else loss + weight * penalties.sum()

    # Compiled, a step of fifty wide students takes less than half as long; one of small networks twice as long.
    return torch.compile(total, dynamic=False) if wide else total


@torch.no_grad()
def _write_back(networks: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    for number, network in enumerate(networks):
        for name, parameter in network.named_parameters():
            parameter.copy_(stacked[name][number])


def _save(
    path: Path,
    identity: dict[str, Any],
    parameters: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    epoch: int,
) -> None:
    tensors = {**parameters, **{f"optimizer:{k}": v for k, v in optimizer_tensors(optimizer, parameters).items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        content = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(content, temporary, metadata={"state": json.dumps({**identity, "epoch": epoch})})


@torch.no_grad()
def _load(path: Path, identity: dict[str, Any], parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Epochs that were done before."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
        found = json.loads(file.metadata()["state"])
    epoch: int = found.pop("epoch")
    if found != identity:
        raise ValueError(f"{path} is of {found}, not of {identity}; another --out is needed")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
    prefix = "optimizer:"
    kept = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    load_optimizer_tensors(optimizer, parameters, kept)
    return epoch
