"""What a coupling of channels is: labels of every tensor of a network, and where they stand in its state_dict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyassemble.network.labels import Relation

if TYPE_CHECKING:
    from torch import Tensor, fx

Labels = Any
"""Labels of a node's value: a tensor, None where it does not depend on any channel, or a tuple of these."""


@dataclass(frozen=True)
class Site:
    """A dimension of a tensor in the state_dict that runs over channels.

    Attributes:
        tensor: Its name.
        dim: The dimension.
        labels: (size,) what lies along it.
    """

    tensor: str
    dim: int
    labels: Tensor


@dataclass
class Coupling:
    """What the walk found.

    Attributes:
        graph: The traced network.
        facts: What each node gives on the example input.
        labels: Labels of each node's value.
        outputs: The layers whose results are averaged.
        sites: Dimensions of the state_dict's tensors, in order of use.
        mixing: Labels that enter each layer that mixes channels, by its node.
        spanning: Dimension of the channels of each normalization whose statistics span channels, by its node.
        produced: Labels that were born together, by the name of the layer or tensor that bore them.
        kinds: What ties the channels of a unit together, by one of its labels: "head" or "group".
        channels: The same channel.
        units: Kept or dropped together.
        held: Parameters that a function, not a module, uses as the weight of a linear layer.
        marks: Labels beside numbers that tell their channels apart without belonging to any network (a fixed scale for
            each channel, the network's input), as (labels, numbers of equal ones) of equal length.
        filled: Labels of what belongs to no network in particular and is joined with channels, by the joining node and
            its place there.
        count: How many labels there are.
    """

    graph: fx.GraphModule
    facts: dict[fx.Node, Any]
    outputs: set[fx.Node]
    attention_dropouts: dict[fx.Node, float]
    labels: dict[fx.Node, Labels] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    mixing: dict[fx.Node, Tensor] = field(default_factory=dict)
    spanning: dict[fx.Node, int] = field(default_factory=dict)
    produced: dict[str, Tensor] = field(default_factory=dict)
    kinds: dict[int, str] = field(default_factory=dict)
    channels: Relation = field(default_factory=Relation)
    units: Relation = field(default_factory=Relation)
    held: set[fx.Node] = field(default_factory=set)
    marks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    filled: dict[tuple[fx.Node, int], Tensor] = field(default_factory=dict)
    count: int = 0
