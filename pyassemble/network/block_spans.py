"""Where a network's blocks lie in its traced forward pass: those of the standardization, or those of its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pyassemble.network.graph_module import TracedNetwork
    from pyassemble.network.layers import LayerSequence


class BlockSpan(NamedTuple):
    """A block: its name, and the positions of its first and last step in the graph."""

    name: str
    start: int
    end: int


def standardized_spans(graph: TracedNetwork, sequence: LayerSequence) -> list[BlockSpan]:
    """The standardized network's blocks that the forward pass goes through, in order of execution.

    Args:
        graph: The network, traced.
        sequence: The same, standardized by blocks (DPIAT).

    Returns:
        The blocks.
    """
    steps, found = _steps(graph), dict[str, BlockSpan]()
    for element in sequence.elements:
        name = _common_parent(sequence.names[element.start : element.stop])
        if not element.is_block or not name:
            continue
        # Inside a step that cannot be traced only that step is seen.
        seen = next((part for part in _with_parents(name) if part in steps), None)
        if seen is not None:
            found[name] = BlockSpan(name, min(steps[seen]), max(steps[seen]))
    return _in_order(found.values())


def module_spans(graph: TracedNetwork, apart: Callable[[Sequence[BlockSpan]], bool]) -> list[BlockSpan]:
    """The innermost modules that can be cut apart, each with two convolution or linear layers or more.

    A module gives way to its children where these can be cut apart, or where it has one such child only that does; an
    inverted residual, whose one child of several layers is its gate, stays whole.

    Args:
        graph: The network, traced.
        apart: Whether the forward pass can be cut between any of some modules in a row.

    Returns:
        The modules in order of execution; none where the network cannot be cut apart.
    """
    steps = _steps(graph)

    def inside(name: str, module: nn.Module) -> list[BlockSpan]:
        prefix = f"{name}." if name else ""
        children = {f"{prefix}{child}": part for child, part in module.named_children() if _holds_several(part)}
        spans = {child: BlockSpan(child, min(steps[child]), max(steps[child])) for child in children if child in steps}
        if len(spans) == 1:
            (only,) = spans
            return inside(only, children[only])
        if not apart(_in_order(spans.values())):
            return []
        return _in_order(span for child in spans for span in inside(child, children[child]) or [spans[child]])

    return inside("", graph.root)


def _steps(graph: TracedNetwork) -> dict[str, list[int]]:
    """Positions of each module's steps, by its name, and of the steps that return what it returns."""
    position = {node: i for i, node in enumerate(graph.module.graph.nodes)}
    steps: dict[str, list[int]] = {}
    for node, i in position.items():
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            steps.setdefault(path, []).append(i)
    for path, inside in steps.items():
        inside += [position[node] for node in graph.outputs.get(path, ())]
    return steps


def _in_order(spans: Iterable[BlockSpan]) -> list[BlockSpan]:
    return sorted(spans, key=lambda span: (span.start, span.end))


def _holds_several(module: nn.Module) -> bool:
    return sum(isinstance(part, (_ConvNd, nn.Linear)) for part in module.modules()) > 1


def _common_parent(names: Sequence[str]) -> str:
    """Name of the innermost module that holds all of these."""
    paths = [name.split(".") for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _with_parents(name: str) -> Iterable[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
