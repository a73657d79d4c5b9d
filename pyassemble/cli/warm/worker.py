"""How a fork of the warm process becomes the client's command, and ends like a process of its own."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import importlib
import importlib.util
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyassemble.cli.warm.request import Request

_PR_SET_PDEATHSIG = 1
_STREAMS = ("stdin", "stdout", "stderr")


def run(request: Request, folder: int, descriptors: list[int], variables: Mapping[str, str | None]) -> NoReturn:
    """Runs the program as the client's, and ends with all that Python does at its end but taking down its modules.

    That would take half a second, and copy all of the warm process's memory.

    Args:
        request: What the client said of itself.
        folder: Its working directory, open.
        descriptors: Its open files, in the order of the numbers in the request.
        variables: What libraries that are imported here set in the environment; None for what they remove.
    """
    code = 1
    try:
        code = _exit_code(request, folder, descriptors, variables)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:  # whoever read the output has left
        code = 120
    except OSError as error:  # the disk is full
        code = 120
        print(f"error: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def _become(request: Request, folder: int, descriptors: list[int], variables: Mapping[str, str | None]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody could end it without the keeper
    os.fchdir(folder)
    os.close(folder)
    os.umask(request["umask"])
    _take_files(request["descriptors"], descriptors)
    _take_signals(request["ignored"], request["blocked"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.argv[:] = request["argv"]
    sys.path[:] = request["path"]
    sys.executable = request["executable"]
    importlib.invalidate_caches()
    _take_main(*request["main"])
    _draw_seeds()


def _exit_code(request: Request, folder: int, descriptors: list[int], variables: Mapping[str, str | None]) -> int:
    """What Python makes of how the program ends."""
    from pyassemble.cli.commands import app

    try:
        _become(request, folder, descriptors, variables)
        app()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the program has begun, which answers it itself
        return 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _take_files(numbers: list[int], received: list[int]) -> None:
    """Puts the client's open files where it has them."""
    # Out of the way first, as they may lie on each other's numbers.
    beyond = max((2, *numbers)) + 1
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, beyond) for descriptor in received]
    for descriptor in received:
        os.close(descriptor)
    for descriptor, number in zip(moved, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for number, name in enumerate(_STREAMS):
        stream = getattr(sys, name)
        if number not in numbers:
            os.close(number)
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
        elif name != "stderr":
            # The same objects, since libraries may have kept them: only what depends on the file is set anew.
            stream.reconfigure(line_buffering=os.isatty(number) and not stream.write_through)


def _take_signals(ignored: list[int], blocked: list[int]) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number in ignored:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) not in (signal.SIG_DFL, None) and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _take_main(file: str | None, package: str | None, name: str | None) -> None:
    """What usage lines and the processes that libraries start read from the main module."""
    main = sys.modules["__main__"]
    main.__package__ = package
    main.__spec__ = None if name is None else importlib.util.find_spec(name)
    if file is None:
        vars(main).pop("__file__", None)
    else:
        main.__file__ = file


def _draw_seeds() -> None:
    """Random numbers of its own, as every process has them; Python's are drawn anew at each fork anyway."""
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002
    torch.default_generator.seed()
