"""The program: its commands' group, how errors become one line and an exit code, and the entry point."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pyassemble.cli.console import one_line_warnings, say
from pyassemble.errors import PyAssembleError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class _Commands(TyperGroup):
    """Turns what the package raises on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; ``--debug`` lets errors through with their traceback."""
        try:
            with one_line_warnings():
                return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            # A command that can go on later says so in the exception.
            say("interrupted", "red", str(interrupt) or "nothing further was written")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise  # whoever read the output has left; typer ends quietly
        except (PyAssembleError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            say("error", "red", str(error))
            raise typer.Exit(EXIT_ERROR) from error


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from pyassemble import __version__

        print(f"pyassemble {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Reuse pretrained neural networks: transfer across architectures, merge, assemble."""
