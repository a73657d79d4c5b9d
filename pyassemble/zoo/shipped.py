"""The index of timm's architectures that ships with the package, and how it is made.

``python -m pyassemble.zoo.shipped`` builds it anew with the installed timm.
"""

from __future__ import annotations

import fnmatch
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING

from pyassemble.zoo.building import build
from pyassemble.zoo.origins import timm_jobs
from pyassemble.zoo.zoo import Zoo

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable


def shipped_index() -> Traversable:
    """The file, wherever the package lies."""
    return resources.files("pyassemble.zoo") / "timm.npz"


def shipped_zoo() -> Zoo | None:
    """The shipped index if it was built with the installed timm; timm itself, which takes seconds, is not imported."""
    if not shipped_index().is_file():
        return None
    with resources.as_file(shipped_index()) as path:
        zoo = Zoo.load(path)
    return zoo if zoo.libraries.get("timm") == _version() else None


def timm_zoo(pattern: str, *, workers: int, progress: bool, cache: Path | None) -> Zoo:
    """See :meth:`Zoo.timm`."""
    zoo = shipped_zoo()
    # Only who has imported timm can have registered architectures of their own, which its list has and the index lacks.
    jobs = timm_jobs(pattern) if zoo is None or "timm" in sys.modules else None
    if zoo is not None:
        names = fnmatch.filter(zoo.names, pattern or "*") if jobs is None else [job.name for job in jobs]
        if names and all(name in zoo for name in names):
            return zoo if names == zoo.names else zoo.select(names)
    jobs = timm_jobs(pattern) if jobs is None else jobs  # which says that there are none of that name
    built = build(jobs, workers=workers, progress=progress, cache=cache)
    for name, reason in built.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    return Zoo.of(built.entries, {"timm": _version()})


def _version() -> str:
    """Version of the timm that is imported, or would be."""
    if "timm" not in sys.modules:
        try:
            return metadata.version("timm")
        except metadata.PackageNotFoundError:  # it lies on the path without having been installed
            pass
    import timm

    return str(timm.__version__)


def main() -> None:
    """Build all of the installed timm and write the index into the package's folder."""
    built = build(timm_jobs(), cache=None)
    for name, reason in built.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    path = Path(str(shipped_index()))
    Zoo.of(built.entries, {"timm": _version()}).save(path)
    print(f"{len(built.entries)} architectures of timm {_version()} in {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
