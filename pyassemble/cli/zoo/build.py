"""``pyassemble zoo build``: networks of any origin into an index file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyassemble.cli.console import print_line, working
from pyassemble.cli.outputs import check_outputs
from pyassemble.cli.zoo.group import Workers, check_workers, shows_progress, zoo
from pyassemble.errors import NetworkSpecError, PyAssembleError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyassemble.zoo import Built
    from pyassemble.zoo.jobs import Job

_ORIGINS = "Where the networks come from; all may be repeated"


@zoo.command()
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT.npz", help="The index.", show_default=False)],
    timm: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Architectures of timm: '*', 'resnet*'.", rich_help_panel=_ORIGINS),
    ] = None,
    torchvision: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Networks of torchvision.", rich_help_panel=_ORIGINS),
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Every safetensors file below a folder.", rich_help_panel=_ORIGINS),
    ] = None,
    factory: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:F", help="What a function in a file builds.", rich_help_panel=_ORIGINS),
    ] = None,
    hub: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORG/NAME", help="A Hub repository; its weights are not downloaded.", rich_help_panel=_ORIGINS
        ),
    ] = None,
    workers: Workers = -1,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keeps finished networks for later builds; without, OUT.npz.cache does until the index is written.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="What one network may take.")] = 60.0,
) -> None:
    """Build networks, without their weights, into an index for nearest and matrix.

    A network that cannot be built is skipped, and the reason printed. The exit code is 0 if any was built; otherwise
    it is 2, and no index is written. An interrupted build goes on where it was when the command is repeated.
    """
    from pyassemble.zoo import Zoo
    from pyassemble.zoo import build as build_jobs

    check_workers(workers)
    if not timeout > 0:
        raise PyAssembleError(f"--timeout is {timeout:g}; accepted: seconds above 0")
    store = out.with_name(f"{out.name}.cache") if cache is None else cache
    check_outputs([("OUT", out), ("--cache", store)])
    with working("listing networks"):
        jobs = _jobs(timm or (), torchvision or (), folder or (), factory or (), hub or ())
    try:
        built = build_jobs(jobs, workers=workers, progress=shows_progress(), cache=store, timeout=timeout)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was finished is in {store}; the same command goes on there") from None
    built = _nameable(built)
    console = Console()
    for name, reason in built.skipped.items():
        print_line(console, _printable(f"skipped {name}: {reason}"))
    if built.entries:
        Zoo.of(built.entries, _libraries(timm=bool(timm), torchvision=bool(torchvision))).save(out)
    if cache is None:
        store.unlink(missing_ok=True)
    if not built.entries:
        raise PyAssembleError(f"none of {len(jobs)} networks could be built; {out} was not written")
    skipped = f", skipped {len(built.skipped)}" if built.skipped else ""
    print_line(console, f"built {len(built.entries)} of {len(jobs)} networks{skipped}: {out} ({_size(out)})")


def _jobs(
    timm: Iterable[str],
    torchvision: Iterable[str],
    folders: Iterable[Path],
    factories: Iterable[str],
    repositories: Iterable[str],
) -> list[Job]:
    """The networks to build, those that two patterns of one library match once."""
    from pyassemble.zoo.folder import folder_jobs
    from pyassemble.zoo.hub import hub_jobs
    from pyassemble.zoo.origins import factory_jobs, timm_jobs, torchvision_jobs

    jobs: list[Job] = []
    for origin, patterns in ((timm_jobs, timm), (torchvision_jobs, torchvision)):
        jobs += {job.name: job for pattern in patterns for job in origin(pattern)}.values()
    for folder in folders:
        jobs += folder_jobs(folder)
    jobs += factory_jobs(factories)
    jobs += hub_jobs(repositories)
    if not jobs:
        raise NetworkSpecError("no networks to build; name some with --timm, --torchvision, --folder, --factory, --hub")
    return jobs


def _libraries(*, timm: bool, torchvision: bool) -> dict[str, str]:
    """Versions of the libraries whose networks were built."""
    versions = {}
    if timm:
        import timm as timm_library

        versions["timm"] = str(timm_library.__version__)
    if torchvision:
        import torchvision as torchvision_library

        versions["torchvision"] = str(torchvision_library.__version__)
    return versions


def _nameable(built: Built) -> Built:
    """Moves networks to the skipped ones whose file has a name that is no text, which an index cannot hold."""
    from pyassemble.zoo import Built

    unnameable = {
        entry.name: "its name is not UTF-8" for entry in built.entries if not _is_text(f"{entry.name}{entry.weights}")
    }
    return Built([entry for entry in built.entries if entry.name not in unnameable], built.skipped | unnameable)


def _is_text(name: str) -> bool:
    return _printable(name) == name


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1000:,.1f} kB"
