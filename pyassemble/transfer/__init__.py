"""DPIAT: align two networks of any architectures, and carry the weights of one to the other (arXiv 2212.13970)."""

from pyassemble.transfer.alignment import Alignment, align, similarity
from pyassemble.transfer.matching import MATCHINGS
from pyassemble.transfer.methods import METHODS
from pyassemble.transfer.report import TensorRecord, TransferReport
from pyassemble.transfer.transfer import transfer

__all__ = ["MATCHINGS", "METHODS", "Alignment", "TensorRecord", "TransferReport", "align", "similarity", "transfer"]
