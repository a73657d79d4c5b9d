"""The program as a whole: help, versions, warnings, interrupts, and how errors read."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import pyassemble
from pyassemble.cli import options
from pyassemble.errors import StandardizationWarning
from pyassemble.network.sources import load_network
from pyassemble.network.standardize import STANDARDIZATIONS
from pyassemble.transfer import MATCHINGS, METHODS

if TYPE_CHECKING:
    from torch import nn

    from tests.cli.work import Work


class TestProgram:
    def test_help_and_version_as_a_process(self) -> None:
        code = "from pyassemble.cli import main; main()"
        shown = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
        assert all(command in shown.stdout for command in ("quickstart", "similarity", "transfer"))

    def test_version(self, work: Work) -> None:
        assert work.good("--version") == f"pyassemble {pyassemble.__version__}\n"

    def test_choices_are_those_of_the_library(self) -> None:
        assert tuple(options.Standardization) == tuple(STANDARDIZATIONS)
        assert tuple(options.Matching) == tuple(MATCHINGS)
        assert tuple(options.Method) == tuple(METHODS)

    @pytest.mark.parametrize("arguments", [["similarity", "x"], ["no"], ["similarity", "a", "b", "--matching", "x"]])
    def test_usage_errors(self, work: Work, arguments: list[str]) -> None:
        assert work.run(*arguments).exit_code == 2

    def test_debug_shows_the_traceback(self, work: Work) -> None:
        result = work.run("--debug", "similarity", "resnet18", "timm:resnet34")
        assert isinstance(result.exception, pyassemble.PyAssembleError)

    def test_interrupt(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pyassemble.network.sources.load_network", interrupt)
        result = work.run("similarity", work.small, work.large)
        assert result.exit_code == 130
        assert result.stderr.startswith("interrupted:")

    def test_warnings_are_one_line(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        def warn(spec: Any, **options: object) -> nn.Module:
            with warnings.catch_warnings():  # the test suite turns warnings into errors
                warnings.simplefilter("always")
                warnings.warn("order of [layers]\n  unknown", StandardizationWarning, stacklevel=1)
            return load_network(spec)

        monkeypatch.setattr("pyassemble.network.sources.load_network", warn)
        result = work.run("similarity", work.small, work.large)
        assert result.exit_code == 0
        assert result.stderr == "warning: order of [layers] unknown\n" * 2

    def test_quickstart(self, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        quickstart = type(sys)("pyassemble.quickstart")
        quickstart.run = lambda out, seed, console: calls.append((out, seed))  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pyassemble.quickstart", quickstart)
        work.good("quickstart", "--out", work.folder / "first", "--seed", 3)
        assert calls == [(work.folder / "first", 3)]
