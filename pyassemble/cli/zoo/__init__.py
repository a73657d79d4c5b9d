"""``pyassemble zoo``: many networks, compared with one or with each other."""

from pyassemble.cli.zoo import build, matrix, nearest

__all__ = ["build", "matrix", "nearest"]
