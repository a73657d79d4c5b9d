"""What a command says besides its result: one line on standard error, or a spinner."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator


def errors() -> Console:
    """Standard error."""
    # Made anew each time: stderr may have been replaced since the import.
    return Console(stderr=True)


def say(kind: str, style: str, message: str) -> None:
    """Prints a message as one line on standard error, behind its kind in this style."""
    console = errors()
    console.print(f"[bold {style}]{kind}:[/]", end=" ")
    print_line(console, " ".join(message.split()))


def print_line(console: Console, text: str) -> None:
    """Prints a text as it is, in one line."""
    # No markup: a name in the text may hold brackets. No wrapping: one line stays one line in a log.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Prints warnings as one line on stderr, without the source line that Python shows."""

    def show(message: Warning | str, *args: object, **kwargs: object) -> None:
        say("warning", "yellow", str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on stderr while something takes its time; nothing where stderr is no terminal."""
    from rich.markup import escape

    with errors().status(escape(what)):
        yield
