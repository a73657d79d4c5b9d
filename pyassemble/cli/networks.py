"""The networks that a command line names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyassemble.cli.console import working

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from pyassemble.network.sources import NetworkSpec


def named(source: str, target: str) -> dict[str, str]:
    """What a document says of the two networks."""
    return {"source": source, "target": target}


def parse(text: str) -> NetworkSpec:
    """Takes a network's name apart; see :meth:`NetworkSpec.parse`."""
    from pyassemble.network.sources import NetworkSpec

    return NetworkSpec.parse(text)


def on_meta(spec: NetworkSpec) -> nn.Module:
    """The network without weights."""
    from pyassemble.network.sources import load_network

    return load_network(spec, meta=True)


def with_weights(spec: NetworkSpec, weights: Path | None) -> nn.Module:
    """The network with these weights; with its own, or random ones, where none are given."""
    from pyassemble.network.sources import load_network

    return load_network(spec, weights=weights)


def source_on_meta(spec: NetworkSpec) -> nn.Module | Path:
    """A source for comparing shapes: a network without weights, or the file that its tensors are in."""
    if is_tensors(spec):
        return _file_of(spec)
    with working(f"building {spec.text}"):
        return on_meta(spec)


def source_with_weights(spec: NetworkSpec, weights: Path | None, pretrained: bool) -> nn.Module | Path:
    """A source with weights: a network, or the file that its tensors are in."""
    from pyassemble.network.sources import load_network

    if is_tensors(spec):
        return _file_of(spec)
    doing = "fetching" if pretrained else "building"
    with working(f"{doing} {spec.text}"):
        return load_network(spec, weights=weights, pretrained=pretrained)


def is_tensors(spec: NetworkSpec) -> bool:
    """Whether the named thing is a weights file, of whose network only the tensors are known."""
    from pyassemble.network.sources import SpecKind

    return spec.kind is SpecKind.WEIGHTS


def _file_of(spec: NetworkSpec) -> Path:
    if spec.path is None:
        raise AssertionError(f"{spec.kind} has no path")
    return spec.path
