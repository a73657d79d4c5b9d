"""Compiled functions that import their compiler on first call: importing a kernel imports neither numba nor Triton.

The decorators only keep the Python function. On the first call every kept function of its module, and of the modules
that it uses, is handed to the compiler and takes its name in the module; the compilers then find each other's functions
under those names, as if they had been decorated in the ordinary way. ``tl`` is put in place likewise.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Compiler = Literal["numba", "triton"]

_lock = threading.RLock()
_bound: set[tuple[str, Compiler]] = set()


class Deferred:
    """A function that waits for its compiler."""

    def __init__(self, function: Callable[..., Any], compiler: Compiler, decorate: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.compiler = compiler
        self._decorate = decorate
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Compile, then call."""
        return self.compiled()(*arguments)

    def __getitem__(self, grid: Any) -> Any:
        """Compile, then select Triton's launch grid."""
        return self.compiled()[grid]

    def compiled(self) -> Any:
        """The compiler's own object in place of this one."""
        with _lock:
            _bind(self.function.__module__, self.function.__globals__, self.compiler)
            return self._decorated()

    def _decorated(self) -> Any:
        if self._compiled is None:
            self._compiled = self._decorate(self.function)
        return self._compiled


def _bind(module: str, namespace: dict[str, Any], compiler: Compiler) -> None:
    if (module, compiler) in _bound:
        return
    _bound.add((module, compiler))
    if compiler == "triton":
        namespace["tl"] = importlib.import_module("triton.language")
    for name, value in list(namespace.items()):
        if isinstance(value, Deferred) and value.compiler == compiler:
            _bind(value.function.__module__, value.function.__globals__, compiler)
            namespace[name] = value._decorated()


def numba_jit(*, reassociate: bool = False, inline: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile with numba for the CPU, the machine code cached on disk where a folder for it can be written.

    Args:
        reassociate: Additions may be reordered, which vectorizes a sum. Nothing else of IEEE 754 is given up: NaN and
            infinity stay what they are.
        inline: Becomes part of each caller, whatever its length: a loop that calls a function is not vectorized. Not to
            be called from Python: it gets no wrapper, which takes time to compile.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        numba = importlib.import_module("numba")
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inline}
        if reassociate:
            options["fastmath"] = {"reassoc"}
        if inline:
            options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
            return numba.njit(**options)(function)
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither the installation nor the user's cache folder can be written
            return numba.njit(**options)(function)

    return lambda function: Deferred(function, "numba", decorate)


# Versions of numba whose inner ways _quickly_loaded goes; any other is called by its public names alone.
_KNOWN_NUMBA = ((0, 61), (0, 68))


def numba_region(function: Callable[..., Any]) -> Any:
    """Compile with numba for callers outside Python: called with a signature, it gives the machine code's address."""

    def decorate(function: Callable[..., Any]) -> Any:
        numba = importlib.import_module("numba")
        first, last = _KNOWN_NUMBA
        make = _quickly_loaded if first <= numba.version_info.short <= last else _loaded

        def compiled(signature: Any) -> int:
            address: int = make(function, signature).address
            return address

        return compiled

    return Deferred(function, "numba", decorate)


def _loaded(function: Callable[..., Any], signature: Any) -> Any:
    numba = importlib.import_module("numba")
    try:
        return numba.cfunc(signature, cache=True, error_model="numpy")(function)
    except RuntimeError:  # as above
        return numba.cfunc(signature, error_model="numpy")(function)


def _quickly_loaded(function: Callable[..., Any], signature: Any) -> Any:
    """The same, but numba's tables of what can be compiled are not filled before cached code is loaded: 0.3 s."""
    callback: Any = importlib.import_module("numba.core.ccallback")
    cache: Any = importlib.import_module("numba.core.caching")
    runtime: Any = importlib.import_module("numba.core.runtime")

    class Cache(cache.FunctionCache):  # type: ignore[misc]
        def load_overload(self, signature: Any, context: Any) -> Any:
            # Cached code refers to numba's runtime; without it, loading ends the process.
            runtime.rtsys.initialize(context)
            with self._guard_against_spurious_io_errors():
                return self._load_overload(signature, context)

    code = callback.CFunc(function, (signature.args, signature.return_type), {}, {"error_model": "numpy"})
    with contextlib.suppress(RuntimeError):  # as above
        code.enable_caching()
        code._cache.__class__ = Cache
    code.compile()
    return code


def numba_overload(function: Callable[..., Any]) -> Any:
    """Give numba a function that chooses an implementation by the types of its arguments, and returns it."""

    def decorate(choose: Callable[..., Any]) -> Any:
        def chosen(*_: Any) -> Any:
            raise NotImplementedError(f"{choose.__name__} is for numba only")

        importlib.import_module("numba.extending").overload(chosen)(choose)
        return chosen

    return Deferred(function, "numba", decorate)


def numba_intrinsic(function: Callable[..., Any]) -> Any:
    """Give numba a function that writes LLVM instructions."""
    return Deferred(function, "numba", lambda f: importlib.import_module("numba.extending").intrinsic(f))


def triton_jit(*, do_not_specialize: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Compile with Triton; arguments named here never cause a compilation of their own by their value."""

    def decorate(function: Callable[..., Any]) -> Any:
        triton = importlib.import_module("triton")
        return triton.jit(do_not_specialize=list(do_not_specialize))(function)

    return lambda function: Deferred(function, "triton", decorate)
