"""The command line: a command reads, validates, calls one public function and prints."""

# Importing a command's module adds it to the program, in the order in which the help lists them.
from pyassemble.cli import quickstart, similarity, transfer, zoo, merge, assemble, score, report  # isort: skip
from pyassemble.cli.options import Matching, Method, Standardization
from pyassemble.cli.program import app, main

__all__ = [
    "Matching",
    "Method",
    "Standardization",
    "app",
    "assemble",
    "main",
    "merge",
    "quickstart",
    "report",
    "score",
    "similarity",
    "transfer",
    "zoo",
]
