"""Cutting a network into segments at the ends of its blocks (PA-DNN, repository of blocks).

A network can be cut where one tensor is all that the rest of the forward pass needs of what came before. Of these
places those are taken that lie at the end of a block of the publication's standardization (DPIAT); layers between two
blocks go with the first. Where the standardization leaves nothing to cut between, as it flattens deeper nesting, the
blocks are the innermost modules that can be cut apart. Global pooling and everything after it is the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import fx, nn

from pyassemble.errors import CutError
from pyassemble.network.block_spans import BlockSpan, module_spans, standardized_spans
from pyassemble.network.blocks import standardize_blocks
from pyassemble.network.graph_module import TracedNetwork, traced
from pyassemble.network.shapes import FeatureShape, feature_shapes
from pyassemble.network.slices import is_restorable, sliced

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, repr=False)
class CutNetwork:
    """A network in eval mode as a row of segments and a head.

    Attributes:
        segments: The segments in order; the first takes the images, each other what the one before returns.
        head: Takes what the last segment returns; returns what the network returns.
        cut_points: Name of the block that each segment ends with.
        shapes: What each segment returns.
        input_shape: The images that the network was traced with.
    """

    segments: list[nn.Module]
    head: nn.Module
    cut_points: list[str]
    shapes: list[FeatureShape]
    input_shape: FeatureShape

    def __len__(self) -> int:
        return len(self.segments)

    def __repr__(self) -> str:
        rows = [
            f"{k}: {name} ({shape})" for k, (name, shape) in enumerate(zip(self.cut_points, self.shapes, strict=True))
        ]
        return "\n".join((f"{len(self)} segments of a network for {self.input_shape}", *rows))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The network's own tensor before its head, (B, ...)."""
        for segment in self.segments:
            images = segment(images)
        return images

    def shape_before(self, segment: int) -> FeatureShape:
        """What a segment takes."""
        return self.shapes[segment - 1] if segment else self.input_shape


def cut(network: nn.Module, example_input: torch.Tensor) -> CutNetwork:
    """Cuts a network at its cut points.

    Segments and head share the memory of the network's tensors; their parameters are frozen. Each tensor of the network
    is in exactly one of them: in the one that uses it, or, where the forward pass uses it nowhere, with others of its
    module. Run in a row, they compute the same bits as the network does in eval mode.

    Args:
        network: Takes one batch of images; it stays as it is.
        example_input: A batch (B, C, H, W) of the size to cut the network for.

    Raises:
        ArgumentTypeError: The example input is no batch.
        CutError: The network has no features before its head, or no block.
        UnsupportedNetworkError: The network cannot be read (lazy, quantized, sharded), traced, or run on images of
            that shape.
    """
    sequence = standardize_blocks(network)  # refuses networks whose tensors cannot be read, by name
    graph = traced(network, example_input)
    kind = type(network).__name__
    if example_input.dim() != 4:
        raise CutError(f"{kind} takes inputs of shape {tuple(example_input.shape)}; images (B, C, H, W) are accepted")
    sink_constants(graph)
    crossings = _crossings(graph)
    blocks = standardized_spans(graph, sequence)
    last = _last_features(crossings, blocks)
    if last is not None and len(_cut_points(blocks, crossings, last)) < 2:
        # All in one block: torchvision's ConvNeXt and EfficientNet hold each stage in a container of its own, which
        # the standardization flattens.
        inner = module_spans(graph, lambda spans: len(_cut_points(spans, crossings, crossings[-1])) > 1)
        if inner:
            blocks, last = inner, _last_features(crossings, inner)
    if last is None:
        raise CutError(f"{kind} has no features (B, C, H, W) or (B, N, C) that all of its head is computed from")
    points = _cut_points(blocks, crossings, last)
    if not points:
        raise CutError(f"{kind} has no block before its head; blocks hold two or more convolution or linear layers")

    modules = sliced(graph, [crossing.node for crossing, _ in points], [crossing.position for crossing, _ in points])
    return CutNetwork(
        segments=modules[:-1],
        head=modules[-1],
        cut_points=[name for _, name in points],
        shapes=[crossing.shape for crossing, _ in points],
        input_shape=FeatureShape.of(example_input),
    )


class Crossing(NamedTuple):
    """A place where one tensor alone crosses from before to after.

    Attributes:
        position: Of the last step before it.
        node: The step that returned the tensor.
        shape: What the tensor is.
        pools: Whether that step pools.
    """

    position: int
    node: fx.Node
    shape: FeatureShape
    pools: bool


def sink_constants(graph: TracedNetwork) -> None:
    """Moves what does not depend on the images to just before its first use, where it crosses no cut needlessly."""
    depends = {graph.input}
    nodes = graph.module.graph.nodes
    for node in nodes:
        if any(source in depends for source in node.all_input_nodes):
            depends.add(node)
    for node in reversed(list(nodes)):
        if node not in depends and node.users and node.op != "output":
            order = {user: i for i, user in enumerate(nodes)}
            min(node.users, key=order.__getitem__).prepend(node)


def _crossings(graph: TracedNetwork) -> list[Crossing]:
    """All places where a single tensor of features crosses, in order."""
    nodes = list(graph.module.graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    shapes = feature_shapes(graph)
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    torn = _torn(graph, nodes)

    found: list[Crossing] = []
    alive: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        alive = {other for other in alive if last_use[other] > i}
        if last_use[node] > i:
            alive.add(node)
        tensors = [other for other in alive if graph.values[other].holds_tensors]
        if len(tensors) != 1 or tensors[0] not in shapes or tensors[0] is graph.input or torn[i]:
            continue
        if all(is_restorable(graph.values[other]) for other in alive if other is not tensors[0]):
            found.append(Crossing(i, tensors[0], shapes[tensors[0]], _pools(graph, tensors[0], shapes)))
    return found


def _torn(graph: TracedNetwork, nodes: Sequence[fx.Node]) -> list[bool]:
    """Whether a parameter or buffer is used both up to a position and after it."""
    spans: dict[int, tuple[int, int]] = {}
    for i, node in enumerate(nodes):
        for tensor in tensors_of(graph, node):
            first, _ = spans.get(id(tensor), (i, i))
            spans[id(tensor)] = (first, i)
    torn = [False] * len(nodes)
    for first, last in spans.values():
        torn[first:last] = [True] * (last - first)
    return torn


def tensors_of(graph: TracedNetwork, node: fx.Node) -> Iterable[torch.Tensor]:
    """The parameters and buffers that a step uses."""
    if node.op == "call_module":
        module = graph.module.get_submodule(str(node.target))
        return [*module.parameters(), *module.buffers()]
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        value = getattr(graph.module.get_submodule(owner), name)
        return [value] if isinstance(value, torch.Tensor) else []
    return []


_POOLING_LAYERS = (
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_POOLING_NAMES = frozenset(
    ("mean", "amax", "max", "sum", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
)


def _pools(graph: TracedNetwork, node: fx.Node, shapes: Mapping[fx.Node, FeatureShape]) -> bool:
    if node.op == "call_module":
        named = isinstance(graph.module.get_submodule(str(node.target)), _POOLING_LAYERS)
    else:
        named = (
            node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        ) in _POOLING_NAMES
    before, after = next((shapes[source] for source in node.all_input_nodes if source in shapes), None), shapes[node]
    if named or before is None or any(True for _ in tensors_of(graph, node)):
        return named
    # Some layer's own way of pooling, or only some of the tokens, as heads that leave out the class token take them.
    to_one_pixel = after.height * after.width == 1 < before.height * before.width
    return to_one_pixel or (before.kind == after.kind == "tokens" and after.size[0] < before.size[0])


def _last_features(crossings: Sequence[Crossing], blocks: Sequence[BlockSpan]) -> Crossing | None:
    """The last tensor before the global pooling."""
    pixel = len(crossings)  # from here on, all is down to one pixel
    while pixel and crossings[pixel - 1].shape.height * crossings[pixel - 1].shape.width == 1:
        pixel -= 1
    # Small images are so long before it: then it is the first pooling behind the last block that returns features.
    end = len(crossings)
    final = crossings[-1].position if crossings else 0
    body = max((block.end for block in blocks if block.end <= final), default=0)
    pooling = [i for i in range(pixel, end) if crossings[i].pools]
    if pooling:
        end = next((i for i in pooling if crossings[i].position > body), pooling[-1])
    # Pooling to more than one pixel, as before a flattening, belongs to the head too.
    while end and crossings[end - 1].pools:
        end -= 1
    return crossings[end - 1] if end else None


def _cut_points(
    blocks: Sequence[BlockSpan], crossings: Sequence[Crossing], last: Crossing
) -> list[tuple[Crossing, str]]:
    """The places to cut at, the last before the head, each with the name of the block before it."""
    body = [block for block in blocks if block.start <= last.position]
    points: dict[int, tuple[Crossing, str]] = {}
    for block, following in pairwise(body):
        between = [c for c in crossings if block.end <= c.position < following.start and c.position <= last.position]
        if between:
            points[between[-1].position] = (between[-1], block.name)
    if body:
        points[last.position] = (last, body[-1].name)
    return [points[position] for position in sorted(points)]
