"""A progress bar for long training, on standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def progress_bar(steps: int, shown: bool | None = None, *, done: int = 0) -> Iterator[Callable[[str], None]]:
    """Shows how far a run is, until the block ends.

    Args:
        steps: Of the whole run.
        shown: Whether to show it; by default where standard error is a terminal.
        done: Steps of it that were done before.

    Yields:
        To be called after every step with a few words on how it goes.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    hidden = not (console.is_terminal if shown is None else shown)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=steps, completed=done)
        yield lambda words: bar.update(task, advance=1, description=escape(words))
