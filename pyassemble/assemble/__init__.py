"""PA-DNN: a new network from blocks of pretrained ones (Liu, Lu, Zhao, Zhao, Luo)."""

from pyassemble.assemble.assemble import assemble
from pyassemble.assemble.assembly import Assembly
from pyassemble.assemble.assembly_network import AssemblyNetwork
from pyassemble.assemble.epoch_record import EpochRecord
from pyassemble.assemble.head import Head
from pyassemble.assemble.head_start import fit_head, initialize_head
from pyassemble.assemble.initialization import fit_stitch, initialize_stitches
from pyassemble.assemble.partition import Embedding, PartitionNetwork
from pyassemble.assemble.ppo import PPO
from pyassemble.assemble.recipe import Recipe
from pyassemble.assemble.repository import Block, Repository
from pyassemble.assemble.routers import Router
from pyassemble.assemble.score import Scored, score, score_batch, score_table
from pyassemble.assemble.settings import SearchSettings
from pyassemble.assemble.stitches import Continuation, Stitch, stitch
from pyassemble.network.shapes import FeatureShape

__all__ = [
    "PPO",
    "Assembly",
    "AssemblyNetwork",
    "Block",
    "Continuation",
    "Embedding",
    "EpochRecord",
    "FeatureShape",
    "Head",
    "PartitionNetwork",
    "Recipe",
    "Repository",
    "Router",
    "Scored",
    "SearchSettings",
    "Stitch",
    "assemble",
    "fit_head",
    "fit_stitch",
    "initialize_head",
    "initialize_stitches",
    "score",
    "score_batch",
    "score_table",
    "stitch",
]
