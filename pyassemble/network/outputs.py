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
        else:
            raise UnsupportedOperationError(
                f"{describe(node, graph)} lies between the last linear layer or convolution and the output of "
                f"{type(graph).__name__}: the mean of several outputs cannot be computed by one layer"
            )
    return layers


def _is_output_layer(node: fx.Node, graph: fx.GraphModule) -> bool:
    if node.op != "call_module":
        return False
    module = graph.get_submodule(str(node.target))
    return isinstance(module, nn.Linear) or (isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1)
