"""Our walk of the graph beside torch-pruning's DependencyGraph: which layers' output channels belong together.

    python bench/coupling_comparison.py

Both answer for every convolution and linear layer with which others its output channels are coupled. Writes
bench/results/coupling_comparison.csv. Needs torch-pruning.
"""

from __future__ import annotations

import csv
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch_pruning
import torchvision
from merge_support import build, smallest_of_each_family
from torch import nn
from tqdm import tqdm

import pyassemble as pa
from pyassemble.atomic import replacing
from pyassemble.network.coupling import couple
from pyassemble.network.groups import find_groups
from pyassemble.network.outputs import output_layers
from pyassemble.network.traced import trace

RESULTS = Path(__file__).parent / "results"
FIELDS = ("network", "layers", "ours_seconds", "theirs_seconds", "ours", "theirs", "same", "differing")
TORCHVISION = (
    "alexnet", "vgg11", "resnet18", "squeezenet1_0", "densenet121", "googlenet", "shufflenet_v2_x0_5", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf", "convnext_tiny", "efficientnet_b0", "swin_t", "vit_b_32",
    "inception_v3",
)  # fmt: skip
COUNT = 60
LARGEST = 40_000_000

Partition = dict[str, frozenset[str]]


def ours(network: nn.Module, images: torch.Tensor) -> Partition:
    traced = trace(network, images)
    owned = [name for name, _ in network.named_parameters()]
    coupling = couple(traced, output_layers(traced), owned)
    groups = find_groups(coupling)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, LAYERS)}
    members: dict[str, set[int]] = {}
    for site in groups.sites:
        name, _, role = site.tensor.rpartition(".")
        if role == "weight" and name in layers and site.dim == out_dim(layers[name]):
            members.setdefault(name, set()).update(groups.group_of[site.labels].tolist())
    return {
        name: frozenset(other for other, theirs in members.items() if theirs & mine) for name, mine in members.items()
    }


LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def out_dim(layer: nn.Module) -> int:
    return 1 if getattr(layer, "transposed", False) and layer.groups == 1 else 0


def theirs(network: nn.Module, images: torch.Tensor) -> Partition:
    graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=images, verbose=False)
    names = {module: name for name, module in network.named_modules()}
    coupled: dict[str, set[str]] = {}
    for name, module in network.named_modules():
        if not isinstance(module, LAYERS):
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, prune, idxs=[0])
        for dependency, _ in group:
            target = dependency.target.module
            if isinstance(target, LAYERS) and graph.is_out_channel_pruning_fn(dependency.handler):
                coupled.setdefault(name, set()).add(names[target])
    return {name: frozenset(others) for name, others in coupled.items()}


def timed(method, network: nn.Module, images: torch.Tensor) -> tuple[Partition | None, str, float]:
    start = time.perf_counter()
    try:
        partition = method(network, images)
    except pa.PyAssembleError as error:
        return None, str(error), time.perf_counter() - start
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", 0.0
    return partition, "ok", time.perf_counter() - start


def made(name: str) -> nn.Module:
    library, _, architecture = name.partition(":")
    if library == "timm":
        return build(architecture, 0).eval()
    options = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(architecture, **options).eval()


def compare(name: str) -> dict[str, object]:
    """One line of the table; no methods are in it where the network is too large to trace here."""
    warnings.simplefilter("ignore")
    network = made(name)
    if sum(p.numel() for p in network.parameters()) > LARGEST:
        return {"network": name}
    config = getattr(network, "pretrained_cfg", None)
    side = 299 if "inception" in name else 224
    images = torch.randn(1, *(config["input_size"] if config else (3, side, side)))
    mine, said, seconds = timed(ours, network, images)
    other, they_said, their_seconds = timed(theirs, network, images)
    result: dict[str, object] = {
        "network": name,
        "ours": said,
        "theirs": they_said,
        "ours_seconds": f"{seconds:.2f}",
        "theirs_seconds": f"{their_seconds:.2f}",
    }
    if mine is not None and other is not None:
        differing = [layer for layer in mine if other.get(layer) != mine[layer]]
        result |= {"layers": len(mine), "same": len(mine) - len(differing), "differing": " ".join(differing[:4])}
    return result


def main() -> None:
    names = [f"torchvision:{name}" for name in TORCHVISION]
    names += [f"timm:{name}" for name in smallest_of_each_family().values()]
    file = RESULTS / "coupling_comparison.csv"
    rows: list[dict[str, object]] = []
    # A process for each network: torch-pruning's graphs keep their networks' activations in memory.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for name in tqdm(names):
            if len(rows) == COUNT:
                break
            row = pool.submit(compare, name).result()
            if "ours" not in row:
                continue
            rows.append(row)
            with replacing(file) as temporary, temporary.open("w", newline="") as content:
                writer = csv.DictWriter(content, FIELDS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
