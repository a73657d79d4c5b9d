"""Rebuilding a repository's networks without their weights: what to build them from, and whether that gives the same.

A network is the same where its segments run the same steps on tensors of the same names, shapes and types. Its head may
differ: an assembly has its own.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from pyassemble.assemble.recipe import SourceRecipe
from pyassemble.errors import PyAssembleError
from pyassemble.network.cuts import CutNetwork, cut
from pyassemble.network.initialization import SkipInitialization
from pyassemble.network.sources import NetworkSpec, SpecKind, load_network, stated_license

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyassemble.assemble.repository import Repository

#: Arguments of a library's builder beside the name.
Options = dict[str, Any]


def source_recipe(repository: Repository, name: str) -> SourceRecipe:
    """Where a network of a repository comes from: the first thing found that builds the same segments.

    Tried are what was said of it, then the architecture that timm notes on its networks, then torchvision's builders in
    the file that defines the network's class; timm's also with the example input's channels and size.
    """
    network, segments = repository.original(name), repository[name]
    license = stated_license(network)
    wanted = structure(segments)
    for text, options in _candidates(repository, name):
        try:
            spec = NetworkSpec.parse(text)
            # What cannot be built without numbers draws some.
            with torch.random.fork_rng(devices=[]), SkipInitialization():  # type: ignore[no-untyped-call]
                network = load_network(spec, meta=True, options=options)
            if not _holds_tensors_of(network, segments):
                continue
            found = structure(cut_without_weights(network, repository.example_input))
        except PyAssembleError:  # not buildable, or not cuttable: not what is looked for
            continue
        if found == wanted:
            given = tuple(sorted(options.items()))
            return SourceRecipe(name, text, given, license, None if spec.path is None else file_hash(spec.path))
    return SourceRecipe(name, None, license=license)


def structure(network: CutNetwork) -> list[object]:
    """All that decides what the segments compute, except for the tensors' values."""
    return [network.cut_points, network.shapes, *(_described(segment) for segment in network.segments)]


def cut_without_weights(network: nn.Module, example_input: torch.Tensor) -> CutNetwork:
    """Cuts a network on whatever device it is, the meta device included."""
    first = next(chain(network.parameters(), network.buffers()), example_input)
    images = torch.empty_like(example_input, device=first.device)
    return cut(network, images)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _candidates(repository: Repository, name: str) -> Iterator[tuple[str, Options]]:
    network, stated = repository.original(name), repository.stated_source(name)
    if stated is not None and NetworkSpec.parse(stated).kind in (SpecKind.TORCHVISION, SpecKind.FACTORY):
        yield stated, {}
        return
    architecture = NetworkSpec.parse(stated).name if stated is not None and stated.startswith("timm:") else None
    config = getattr(network, "pretrained_cfg", None)
    if architecture is None and isinstance(config, Mapping):
        architecture = config.get("architecture")
    if architecture is not None:
        channels, size = repository.example_input.shape[1], tuple(repository.example_input.shape[2:])
        for options in ({}, {"in_chans": channels}, {"img_size": size}, {"in_chans": channels, "img_size": size}):
            yield f"timm:{architecture}", options
    segments = repository[name].segments
    count = sum(parameter.numel() for segment in segments for parameter in segment.parameters())
    yield from ((f"torchvision:{builder}", {}) for builder in _torchvision_builders(type(network), count))


def _torchvision_builders(kind: type[nn.Module], count: int) -> list[str]:
    """Names of the builders in the file that defines a class, those of networks with about as many parameters first."""
    if not kind.__module__.startswith("torchvision.models."):
        return []
    from torchvision.models import get_model_builder, get_model_weights, list_models

    sizes: dict[str, float] = {}
    for name in list_models():
        if inspect.getmodule(get_model_builder(name)) is inspect.getmodule(kind):
            weights = getattr(get_model_weights(name), "DEFAULT", None)
            sizes[name] = math.inf if weights is None else weights.meta.get("num_params", math.inf)
    return sorted(sizes, key=lambda name: (sizes[name] < count, sizes[name]))  # their heads come on top


def _holds_tensors_of(network: nn.Module, segments: CutNetwork) -> bool:
    """Whether a network has the parameters of the segments: the quick check before it is traced."""
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    return all(
        shapes.get(name) == parameter.shape
        for segment in segments.segments
        for name, parameter in segment.named_parameters()
    )


def _described(segment: nn.Module) -> object:
    """Steps, tensors and modules of a segment; dropout in all its forms is nothing in eval mode, and left out."""
    assert isinstance(segment, fx.GraphModule)
    modules = {name: _kind(module) for name, module in segment.named_modules() if name}
    tensors = {name: (t.shape, t.dtype) for name, t in chain(segment.named_parameters(), segment.named_buffers())}
    numbers: dict[fx.Node, str] = {}
    steps: list[str] = []
    for node in segment.graph.nodes:
        if node.op == "call_module" and modules[str(node.target)] == _IDENTITY:
            numbers[node] = numbers[node.all_input_nodes[0]]
            continue
        numbers[node] = f"%{len(steps)}"
        arguments = fx.map_arg((node.args, node.kwargs), lambda source: numbers[source])
        target = node.target if isinstance(node.target, str) else torch.typename(node.target)
        steps.append(f"{node.op} {target} {arguments}")
    return steps, tensors, {name: kind for name, kind in modules.items() if kind != _IDENTITY}


_IDENTITY = "identity"


def _kind(module: nn.Module) -> str:
    """What a module is."""
    if type(module) is nn.Module:  # a container that slicing made
        return ""
    if not any(True for _ in chain(module.parameters(), module.buffers(), module.children())) and _is_identity(module):
        return _IDENTITY
    return f"{type(module).__module__}.{type(module).__qualname__}({module.extra_repr()})"


def _is_identity(module: nn.Module) -> bool:
    probe = torch.linspace(-9, 9, 64, device="cpu").view(1, 4, 4, 4)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return torch.equal(module(probe.clone()), probe)
    except Exception:  # takes something else than maps
        return False
