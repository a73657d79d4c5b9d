"""Our walk of the graph beside torch-pruning's DependencyGraph: which layers' output channels belong together.

    python bench/coupling_comparison.py

Both answer for every convolution and linear layer with which others its output channels are coupled. Writes
bench/results/coupling_comparison.csv; networks that are in it already are kept, so the run can be interrupted. Needs
torch-pruning. Each network has a process of its own, in which each library may take SECONDS of processor time and both
together BYTES of memory; what a library that needs more has for its outcome says so.
"""

from __future__ import annotations

import csv
import multiprocessing
import resource
import signal
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

RESULTS = Path(__file__).parent / "results"
FIELDS = ("network", "layers", "ours_seconds", "theirs_seconds", "ours", "theirs", "same", "differing")
TORCHVISION = (
    "alexnet", "vgg11", "resnet18", "squeezenet1_0", "densenet121", "googlenet", "shufflenet_v2_x0_5", "mobilenet_v2",
    "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf", "convnext_tiny", "efficientnet_b0", "swin_t", "vit_b_32",
    "inception_v3",
)  # fmt: skip
COUNT = 60
LARGEST = 40_000_000
SECONDS = 90
BYTES = 5 * 2**30
#: The time on the clock after which a process that does not even notice that its time is up is ended.
DEADLINE = 20 * SECONDS

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
        if not isinstance(module, LAYERS) or module not in graph.module2node:  # a head of training alone, for instance
            continue
        prune = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, prune, idxs=list(range(graph.get_out_channels(module))))
        for dependency, _ in group:
            target = dependency.target.module
            if isinstance(target, LAYERS) and graph.is_out_channel_pruning_fn(dependency.handler):
                coupled.setdefault(name, set()).add(names[target])
    return {name: frozenset(others) for name, others in coupled.items()}


class TimedOutError(BaseException):
    """No Exception, which a library may catch for reasons of its own."""


def timed(
    method: Callable[..., Partition], network: nn.Module, images: torch.Tensor
) -> tuple[Partition | None, str, str]:
    """What a method found, its outcome in words, and the processor time it took."""

    def out_of_time(signum: int, frame: object) -> None:
        raise TimedOutError

    signal.signal(signal.SIGPROF, out_of_time)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    partition = None
    try:
        partition, outcome = method(network, images), "ok"
    except TimedOutError:
        outcome = f"timed out after {SECONDS} s"
    except MemoryError:
        outcome = f"needs more than {BYTES >> 30} GiB"
    except pa.PyAssembleError as error:
        outcome = str(error)
    except Exception as error:
        lines = str(error).splitlines()
        outcome = f"{type(error).__name__}: {lines[0] if lines else ''}"
        if "can't allocate memory" in outcome:
            outcome = f"needs more than {BYTES >> 30} GiB"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return partition, outcome, f"{time.process_time() - start:.2f}"


def made(name: str) -> nn.Module:
    library, _, architecture = name.partition(":")
    if library == "timm":
        return build(architecture, 0).eval()
    options = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(architecture, **options).eval()


def compare(name: str, results: Connection) -> None:
    """Sends the columns of a network's line as they become known; none if the network is too large to trace here."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    network = made(name)
    if sum(p.numel() for p in network.parameters()) > LARGEST:
        return
    config = getattr(network, "pretrained_cfg", None)
    side = 299 if "inception" in name else 224
    images = torch.randn(1, *(config["input_size"] if config else (3, side, side)))
    mine, said, seconds = timed(ours, network, images)
    results.send({"ours": said, "ours_seconds": seconds})
    other, they_said, their_seconds = timed(theirs, network, images)
    results.send({"theirs": they_said, "theirs_seconds": their_seconds})
    if mine is not None and other is not None:
        differing = [layer for layer in mine if other.get(layer) != mine[layer]]
        results.send({"layers": len(mine), "same": len(mine) - len(differing), "differing": " ".join(differing[:4])})


def line(name: str) -> dict[str, Any] | None:
    """A network's line, from a process of its own: torch-pruning's graphs keep their networks' activations."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=compare, args=(name, sender), daemon=True)
    process.start()
    sender.close()
    found: dict[str, Any] = {}
    deadline = time.monotonic() + DEADLINE
    why = f"timed out after {DEADLINE} s on the clock"
    while receiver.poll(max(0.0, deadline - time.monotonic())):
        try:
            found |= receiver.recv()
        except EOFError:
            process.join()
            why = f"its process ended with {process.exitcode}"
            break
    process.kill()
    process.join()
    if not found and process.exitcode == 0:
        return None
    # The process goes through ours first: where that did not come, theirs was not begun.
    return {"network": name, "ours": why, "theirs": why if "ours" in found else "not begun"} | found


def kept(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def summary(rows: list[dict[str, Any]]) -> str:
    """What the lines come to, for the docstring of the module that decided."""
    both = [row for row in rows if row["ours"] == row["theirs"] == "ok"]
    alike = [row for row in both if int(row["same"]) == int(row["layers"])]
    text = [f"{len(rows)} networks; both took {len(both)}, {len(alike)} with the same coupled layers"]
    text += [f"  differs: {row['network']}, same {row['same']} of {row['layers']}" for row in both if row not in alike]
    for library in ("ours", "theirs"):
        failed = [row for row in rows if row[library] != "ok"]
        text.append(f"{library} did not take {len(failed)}")
        kinds = Counter(row[library].partition(":")[0] for row in failed) if library == "theirs" else Counter()
        text += [f"  {count} × {kind}" for kind, count in kinds.items()]
        text += [f"  {row['network']}: {row[library][:160]}" for row in failed]
    return "\n".join(text)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a network's process does not outlive this one
    names = [f"torchvision:{name}" for name in TORCHVISION]
    names += [f"timm:{name}" for name in smallest_of_each_family().values()]
    file = RESULTS / "coupling_comparison.csv"
    rows = kept(file)
    done = {row["network"] for row in rows}
    for name in tqdm(names):
        if len(rows) >= COUNT:
            break
        if name in done or (row := line(name)) is None:
            continue
        rows.append(row)
        with replacing(file) as temporary, temporary.open("w", newline="") as content:
            writer = csv.DictWriter(content, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(summary(kept(file)))


if __name__ == "__main__":
    main()
