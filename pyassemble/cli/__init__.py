"""The command line: a command reads, validates, calls one public function and prints."""

from typing import Any

# Nothing more: a command that a warm process runs needs none of the libraries that the program is made with.
from pyassemble.cli.warm.client import hand_over

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the ``pyassemble`` command."""
    hand_over()
    from pyassemble.cli.commands import app

    app()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyassemble.cli.commands import app

    return app
