"""What a network is: its layers, its blocks, its execution order, and where it comes from."""

from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.network.standardize import NetworkLike, standardize

__all__ = ["Element", "Layer", "LayerSequence", "NetworkLike", "standardize"]
