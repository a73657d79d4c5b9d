"""Scoring assemblies that share prefixes against one pass each, and training stitches only against training all."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch.autograd.graph import saved_tensors_hooks

import pyassemble as pa
from bench.interleaved import medians, smoke_run
from pyassemble.assemble.assembly_network import AssemblyNetwork
from pyassemble.assemble.partition import PartitionNetwork
from pyassemble.assemble.score import score_chains

if TYPE_CHECKING:
    import pytest

    from pyassemble.assemble.prefixes import Executions

NAMES = ("resnet18", "resnet34", "regnetx_002", "mobilenetv3_small_050")
SIDE = 64
CUTS = 3


def repository() -> pa.Repository:
    torch.manual_seed(0)
    networks = {name: timm.create_model(name, num_classes=10) for name in NAMES}
    return pa.Repository(networks, torch.zeros(2, 3, SIDE, SIDE))


def candidates(networks: pa.Repository, count: int) -> tuple[AssemblyNetwork, list[Any]]:
    """Assemblies as a search meets them: drawn partitions, and a draw of a network for each block."""
    net = AssemblyNetwork(networks, 10, blocks=CUTS + 1, seed=0).eval()
    policy = PartitionNetwork(8, {name: len(networks[name]) - 1 for name in networks.names}, cuts=CUTS)
    generator = torch.Generator().manual_seed(0)
    logits = policy(torch.zeros(1, 8))
    paths = []
    for _ in range(count):
        choices = torch.randint(len(NAMES), (CUTS + 1,), generator=generator).tolist()
        paths.append(net.path(policy.sample(logits, generator=generator), tuple(choices)))
    return net, paths


def test_scoring_with_shared_prefixes(record: Any, request: pytest.FixtureRequest) -> None:
    smoke = smoke_run(request.config)
    networks = repository()
    images = torch.randn(8, 3, SIDE, SIDE)
    device = torch.device("cpu")
    for count in (4,) if smoke else (4, 16, 64):
        net, paths = candidates(networks, count)
        chains = [net.chain(path, initial=True) for path in paths]
        together: list[Executions] = []

        def shared(chains: list[Any] = chains, together: list[Executions] = together) -> torch.Tensor:
            found, executions = score_chains(chains, images, device=device)
            together[:] = [executions]
            return found

        def alone(chains: list[Any] = chains) -> torch.Tensor:
            return torch.cat([score_chains([chain], images, device=device)[0] for chain in chains])

        torch.testing.assert_close(shared(), alone(), rtol=0, atol=1e-5)
        took = medians({"shared": shared, "alone": alone}, "cpu", 1 if smoke else 3)
        what = f"scoring {count} candidate assemblies of {len(NAMES)} networks"
        record(what, took["shared"], "s", peer="one pass each", peer_value=took["alone"])
        ran = together[0]
        record(f"{what}: blocks run", ran.executed, "blocks", peer="one pass each", peer_value=ran.requested)


def test_training_stitches_only(record: Any, request: pytest.FixtureRequest) -> None:
    """An epoch of each kind of fine-tuning on the same assembly and images."""
    smoke = smoke_run(request.config)
    networks = repository()
    data = torch.randn(16 if smoke else 128, 3, SIDE, SIDE), torch.randint(10, (16 if smoke else 128,))
    blocks = [("resnet18", 0, 3), ("regnetx_002", 4, 8), ("resnet34", 9, 15)]

    def trained(mode: str) -> Any:
        assembly = pa.Assembly.compose(networks, blocks, 10)
        return lambda: assembly.finetune(data, epochs=1, mode=mode, batch_size=16, progress=False)

    took = medians({mode: trained(mode) for mode in ("stitches", "full")}, "cpu", 1 if smoke else 5)
    what = "an epoch of fine-tuning stitches and head"
    record(what, took["stitches"], "s", peer="fine-tuning everything", peer_value=took["full"])

    def kept(mode: str) -> int:
        return kept_bytes(pa.Assembly.compose(networks, blocks, 10), data[0][:16], mode)

    what = "memory of a step beside weights: activations kept, gradients, AdamW's moments"
    record(what, kept("stitches") / 2**20, "MiB", peer="fine-tuning everything", peer_value=kept("full") / 2**20)


def kept_bytes(assembly: pa.Assembly, images: torch.Tensor, mode: str) -> int:
    """What a step of training holds at the end of its forward pass, and for its trainable weights."""
    assembly.train_blocks(mode == "full")
    assembly.train()
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = assembly(images)
    assert logits.requires_grad  # the graph, and with it every storage counted, is alive
    own = {tensor.untyped_storage().data_ptr() for tensor in chain(assembly.parameters(), assembly.buffers())}
    activations = sum(size for place, size in storages.items() if place not in own)
    return activations + 3 * sum(p.nbytes for p in assembly.parameters() if p.requires_grad)
