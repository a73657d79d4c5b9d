"""The whole program, with all commands."""

# Importing a command's module adds it to the program, in the order in which the help lists them.
from pyassemble.cli import quickstart, similarity, transfer, zoo, merge, assemble, score, report  # isort: skip
from pyassemble.cli.program import app
from pyassemble.cli.warm import commands as warm

__all__ = ["app", "assemble", "merge", "quickstart", "report", "score", "similarity", "transfer", "warm", "zoo"]
