"""The index of timm's architectures that ships with the package, and how it is made.

``python -m pyassemble.zoo.shipped`` builds it anew with the installed timm.
"""

from __future__ import annotations

import sys
from importlib import resources
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


def timm_zoo(pattern: str, *, workers: int, progress: bool, cache: Path | None) -> Zoo:
    """See :meth:`Zoo.timm`."""
    jobs = timm_jobs(pattern)
    installed = _version()
    if shipped_index().is_file():
        with resources.as_file(shipped_index()) as path:
            zoo = Zoo.load(path)
        names = [job.name for job in jobs]
        # Architectures that the user registered with timm are in its list, not in the index.
        if zoo.libraries.get("timm") == installed and all(name in zoo for name in names):
            return zoo if names == zoo.names else zoo.select(names)
    built = build(jobs, workers=workers, progress=progress, cache=cache)
    for name, reason in built.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    return Zoo.of(built.entries, {"timm": installed})


def _version() -> str:
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
