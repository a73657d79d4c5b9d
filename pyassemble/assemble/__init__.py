"""PA-DNN: a new network from blocks of pretrained ones (Liu, Lu, Zhao, Zhao, Luo)."""

from pyassemble.assemble.assembly import Assembly
from pyassemble.assemble.head import Head
from pyassemble.assemble.recipe import Recipe
from pyassemble.assemble.repository import Block, Repository
from pyassemble.assemble.stitches import Continuation, Stitch, stitch
from pyassemble.network.shapes import FeatureShape

__all__ = [
    "Assembly",
    "Block",
    "Continuation",
    "FeatureShape",
    "Head",
    "Recipe",
    "Repository",
    "Stitch",
    "stitch",
]
