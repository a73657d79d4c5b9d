"""A network as a graph that runs: its layers as modules, and what every step returns for batches of two sizes.

The shapes come from runs on fake tensors: nothing is computed, and nothing of the caller's is touched.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from pyassemble.errors import ArgumentTypeError, UnsupportedNetworkError
from pyassemble.network.modules import traits, unwrap
from pyassemble.network.symbolic import copied, reason, symbolic_trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

#: Batch sizes of the two runs. What differs between them follows the batch, the rest is fixed.
BATCHES = (2, 3)

_NORMALIZATIONS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


@dataclass(frozen=True)
class Value:
    """What a step of the graph returns.

    Attributes:
        small: With ``BATCHES[0]`` images: a ``torch.Size`` for a tensor, the value itself for anything else, nested in
            tuples, lists and dicts as the step returns it.
        large: The same with ``BATCHES[1]`` images.
    """

    small: Any
    large: Any

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of a single tensor behind its batch; None for another value, or where dimension 0 is not the batch."""
        if not isinstance(self.small, TensorShape) or not self.small:
            return None
        fixed = self.small[1:] == self.large[1:] and (self.small[0], self.large[0]) == BATCHES
        return tuple(self.small[1:]) if fixed else None

    @property
    def holds_tensors(self) -> bool:
        """Whether it is a tensor, or a container with one inside."""
        return any(isinstance(leaf, TensorShape) for leaf in tree_leaves(self.small, is_leaf=_is_shape))


class TensorShape(tuple[int, ...]):
    """Shape of a tensor, told apart from a tuple of integers that the network computes."""


def _is_shape(value: object) -> bool:
    return isinstance(value, TensorShape)


@dataclass(frozen=True)
class TracedNetwork:
    """A network's forward pass in eval mode, as a graph.

    Attributes:
        module: The graph with the modules and tensors that it uses; ``module.graph.nodes`` are in execution order, the
            one placeholder first.
        root: The network's own module tree, which holds also what the forward pass does not use.
        values: What each node returns.
        outputs: The nodes whose values each module returned when it was last called, by the module's name.
    """

    module: fx.GraphModule
    root: nn.Module
    values: dict[fx.Node, Value]
    outputs: dict[str, list[fx.Node]]

    @property
    def input(self) -> fx.Node:
        """The placeholder that takes the images."""
        node: fx.Node = next(iter(self.module.graph.nodes))
        return node

    def steps_of(self, name: str) -> Iterator[fx.Node]:
        """The nodes that a module and everything inside it add to the graph."""
        for node in self.module.graph.nodes:
            if any(path == name for path, _ in node.meta.get("nn_module_stack", {}).values()):
                yield node


def is_layer(module: nn.Module) -> bool:
    """Whether a module stays one step whatever is inside: convolutions, linear layers and normalizations.

    Their subclasses may hold an activation or dropout, and would otherwise be taken apart into functions whose train
    and eval mode is fixed by the trace.
    """
    return traits(type(module)).base is not None or isinstance(module, _NORMALIZATIONS)


def traced(network: nn.Module, example_input: torch.Tensor) -> TracedNetwork:
    """Traces a network's forward pass in eval mode.

    The result holds frozen parameters of its own that share the memory of the network's, and the same for its buffers,
    all of which are in its ``state_dict``; the network keeps its mode, its ``requires_grad`` and its hooks.

    Args:
        network: Takes one tensor; further arguments keep their defaults.
        example_input: A batch (any number of images, none is looked at) of the shape that the network takes.

    Returns:
        The graph. Modules whose forward cannot be traced are one step each.

    Raises:
        ArgumentTypeError: The example input is no tensor with a batch dimension.
        UnsupportedNetworkError: The network cannot be copied, traced, or run on the example's shape.
    """
    network = unwrap(network)
    if not isinstance(example_input, torch.Tensor) or example_input.dim() < 2:
        got = tuple(example_input.shape) if isinstance(example_input, torch.Tensor) else type(example_input).__name__
        raise ArgumentTypeError(f"example_input is {got}; a tensor with a batch dimension was expected")
    kind = type(network).__name__
    try:
        root = copied(network, _frozen(network))
    except Exception as error:  # whatever a foreign __deepcopy__ may raise
        raise UnsupportedNetworkError(f"{kind} cannot be copied: {reason(error)}") from error
    for inner in root.modules():
        # What one network computes when it is made may not be what another of its architecture does.
        inner._non_persistent_buffers_set.clear()
    try:
        with torch.random.fork_rng(devices=[]):
            tracer = symbolic_trace(root, is_layer)
    except Exception as error:  # whatever a foreign forward may raise
        raise UnsupportedNetworkError(
            f"{kind} cannot be traced: {reason(error)}; its own forward must not branch on its input"
        ) from error
    graph = tracer.graph
    _keep_one_input(graph, kind, inspect.signature(root.forward).parameters.keys())
    module = fx.GraphModule(root, graph, kind)
    try:
        runs = [_run(module, example_input, batch) for batch in BATCHES]
    except Exception as error:
        shape = tuple(example_input.shape)
        raise UnsupportedNetworkError(
            f"{kind} does not run on images of shape {shape[1:]} (example_input is {shape}): {reason(error)}"
        ) from error
    values = {node: Value(runs[0][node], runs[1][node]) for node in graph.nodes}
    outputs = {
        name: [leaf.node for leaf in tree_leaves(output) if isinstance(leaf, fx.Proxy)]
        for name, output in tracer.outputs.items()
    }
    return TracedNetwork(module, root, values, outputs)


def _frozen(network: nn.Module) -> dict[int, Any]:
    """For each tensor of the network one that shares its memory and takes no gradient, by the tensor's id."""
    frozen: dict[int, Any] = {id(buffer): buffer.detach() for buffer in network.buffers()}
    frozen.update((id(p), nn.Parameter(p.detach(), requires_grad=False)) for p in network.parameters())
    return frozen


def _keep_one_input(graph: fx.Graph, kind: str, kept: Set[str]) -> None:
    """Removes the arguments that keep their defaults, and the checks that a trace adds for them."""
    first, *others = graph.find_nodes(op="placeholder")
    # One that keeps its default has a number behind its name.
    needed = [node for node in others if node.users and (node.target in kept or str(node.target).startswith("*"))]
    for placeholder in needed:
        raise UnsupportedNetworkError(
            f"{kind} needs the argument {placeholder.target!r} beside the images; networks that take one tensor are "
            "accepted"
        )
    for placeholder in others:
        _erase(placeholder)
    first.args = ()
    graph.set_codegen(fx.graph.CodeGen())


def _erase(node: fx.Node) -> None:
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)


def _run(module: fx.GraphModule, example_input: torch.Tensor, batch: int) -> dict[fx.Node, Any]:
    """What each node returns for a batch of fake images."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        shape = (batch, *example_input.shape[1:])
        images = torch.empty(shape, dtype=example_input.dtype, device=example_input.device)
        recorder = _Recorder(module)
        recorder.run(images)
    return recorder.values


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = tree_map(_described, value)
        return value


def _described(leaf: object) -> object:
    return TensorShape(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf
