"""The layers that produce a network's outputs, found by walking back from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pyassemble.errors import UnsupportedOperationError
from pyassemble.network.operations import is_linear
from pyassemble.network.traced import describe, holds_tensor

if TYPE_CHECKING:
    from torch import fx

    from pyassemble.network.traced import Traced


def output_layers(traced: Traced) -> set[fx.Node]:
    """The linear layers and convolutions whose results reach the output through linear operations alone.

    The mean of several networks' outputs is then the output of one network whose output layers are the mean of theirs
    (Merging: the last layer averages).

    Args:
        traced: A network's graph.

    Raises:
        UnsupportedOperationError: Something else lies between the output and the layers before it.
    """
    graph = traced.graph
    layers: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    waiting = [node for output in graph.graph.nodes if output.op == "output" for node in output.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node in seen or not holds_tensor(traced.facts[node]):
            continue
        seen.add(node)
        if _is_output_layer(node, graph):
            layers.add(node)
        elif is_linear(node, graph):
            waiting += node.all_input_nodes
        elif node.op == "placeholder":
            continue  # the same for all networks: it is its own mean
        else:
            raise UnsupportedOperationError(
                f"{describe(node, graph)} lies between the last linear layer or convolution and the output of "
                f"{type(graph).__name__}: the mean of several outputs cannot be computed by one layer"
            )
    for node in graph.graph.nodes:
        if node in seen and node.op != "placeholder":
            _check_uses(node, seen - layers, traced)
    return layers


def _check_uses(node: fx.Node, linear: set[fx.Node], traced: Traced) -> None:
    """A mean of outputs must not enter anything that would have had each network's own."""
    for user in node.users:
        if user.op != "output" and user not in linear and holds_tensor(traced.facts[user]) and _is_used(user):
            raise UnsupportedOperationError(
                f"{describe(user, traced.graph)} uses what {describe(node, traced.graph)} gives to the output of "
                f"{type(traced.graph).__name__}: of an output only the mean over the networks is known"
            )


def _is_used(node: fx.Node) -> bool:
    return node.op == "output" or any(map(_is_used, node.users))


def _is_output_layer(node: fx.Node, graph: fx.GraphModule) -> bool:
    if node.op != "call_module":
        return False
    module = graph.get_submodule(str(node.target))
    return isinstance(module, nn.Linear) or (isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1)
