"""What the warm process has imported, and which commands it therefore may not run."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyassemble.cli.warm.request import circumstances

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyassemble.cli.warm.request import Request

#: Variables that native libraries, Python and the C library read when they start.
_READ_BY_LIBRARIES = (
    *("LD_", "GLIBC_", "MALLOC_", "LC_", "LANG", "TZ", "PYTHON", "NPY_", "PYASSEMBLE_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "DNNL_", "ONEDNN_", "ATEN_", "TORCH", "PYTORCH_"),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_", "HSA_", "TRITON_", "NUMBA_"),
)

#: Variables that are read anew for each console.
_READ_LATE = {"COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}

#: This one only says whether a command asks for a warm process.
_NOT_READ = "PYASSEMBLE_WARM"


@dataclass(frozen=True)
class Preloaded:
    """The state that every fork begins with.

    Attributes:
        environment: Variables when the process started.
        read: Names of those that Python code has read since, or set.
        variables: Those that libraries have set since; None for those they removed.
        circumstances: See :func:`~pyassemble.cli.warm.request.circumstances`.
        files: Modification time (ns) and size of all that was loaded.
        packages: Names of modules outside of packages, and of outermost packages.
        descriptors: Files that libraries have opened and keep.
    """

    environment: Mapping[str, str]
    read: frozenset[str]
    variables: Mapping[str, str | None]
    circumstances: Mapping[str, object]
    files: Mapping[str, tuple[int, int] | None]
    packages: frozenset[str]
    descriptors: frozenset[int]

    def refusal(self, request: Request) -> str | None:
        """What stands against running a command here; None if it could not tell this from a process of its own."""
        for what, mine in self.circumstances.items():
            if request["circumstances"].get(what) != mine:
                return f"not the same: {what}"
        for name in sorted({*self.environment, *request["environment"]}):
            matters = name in self.read or (name.startswith(_READ_BY_LIBRARIES) and name != _NOT_READ)
            if matters and self.environment.get(name) != request["environment"].get(name):
                return f"not the same: {name}"
        if taken := self.descriptors.intersection(request["descriptors"]):
            return f"file descriptor {min(taken)} is in use"
        first = request["path"][0]
        if not os.path.isabs(first):  # python -c: the current folder, whichever it becomes
            return "not the same: Python's path"
        if hidden := self._hidden_by(first):
            return f"{hidden} takes the place of an installed module"
        return None

    def changed(self) -> str | None:
        """A loaded file that is no longer as it was."""
        return next((path for path, known in self.files.items() if _stamp(path) != known), None)

    def _hidden_by(self, folder: str) -> str | None:
        """A file in the first folder of Python's path that a fresh process would have imported instead of a library."""
        try:
            names = os.listdir(folder)
        except OSError:
            return None
        for name in names:
            module, _, suffix = name.partition(".")
            path = os.path.join(folder, name)
            if module in self.packages and path not in self.files:
                initial = os.path.join(path, "__init__.py")
                if suffix in ("py", "pyc") or suffix.endswith("so") or (initial not in self.files and _stamp(initial)):
                    return path
        return None


def preload(*, besides: int) -> Preloaded:
    """Imports what commands import, and lets some run for what else a first run makes.

    Args:
        besides: A file that is open but not for the libraries.

    Raises:
        OSError: A file was changed meanwhile; whether it was read before or after nobody knows.
    """
    began = time.time_ns()
    environment = dict(os.environ)
    found: dict[str, object] = json.loads(json.dumps(circumstances()))  # as a request has them
    with _noting_reads() as read:
        import timm  # noqa: F401

        from pyassemble.cli.commands import app
        from pyassemble.cli.zoo.group import shipped
        from pyassemble.zoo.shipped import shipped_index

        # Without the core, comparing networks would start numba's compiler and its threads.
        wanted = os.environ.get("PYASSEMBLE_BACKEND") or "native"
        if wanted == "native" and importlib.util.find_spec("pyassemble._native"):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                if shipped() is not None:  # otherwise all of timm's architectures would be built first
                    app(["zoo", "nearest", "timm:resnet18"], standalone_mode=False)
                app(["similarity", "timm:resnet18", "timm:resnet34"], standalone_mode=False)
    names = {*environment, *os.environ}
    changed = {name: os.environ.get(name) for name in names if environment.get(name) != os.environ.get(name)}
    modules = list(sys.modules.items())
    paths = {file for _, module in modules if isinstance(file := getattr(module, "__file__", None), str)}
    files = {path: _stamp(path) for path in sorted({*paths, str(shipped_index())})}
    for path, stamp in files.items():
        if stamp is not None and began < stamp[0] <= time.time_ns():  # a clock that was wrong makes later ones
            raise OSError(f"{path} was changed while this was starting; start again")
    # What is there now stays: collections in the forks need not look through it, which would copy its memory.
    gc.collect()
    gc.freeze()
    return Preloaded(
        environment,
        frozenset(read - _READ_LATE | changed.keys()),
        changed,
        found,
        files,
        frozenset(name.partition(".")[0] for name, _ in modules) - {"__main__"},
        frozenset(int(name) for name in os.listdir("/proc/self/fd")) - {0, 1, 2, besides},
    )


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@contextlib.contextmanager
def _noting_reads() -> Iterator[set[str]]:
    """Yields the names of environment variables that Python code reads one by one; copies of all are no reads."""
    read: set[str] = set()
    copying = 0

    class Noting(os._Environ[str]):
        def __getitem__(self, name: str) -> str:
            if not copying:
                read.add(name)
            return super().__getitem__(name)

        def __iter__(self) -> Iterator[str]:
            nonlocal copying
            copying += 1
            try:
                yield from super().__iter__()
            finally:
                copying -= 1

    # Modules hold on to the mapping itself, so it is not replaced.
    plain = type(os.environ)
    os.environ.__class__ = Noting
    try:
        yield read
    finally:
        os.environ.__class__ = plain
