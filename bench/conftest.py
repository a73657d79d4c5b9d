"""What every benchmark records: the machine, the versions and the commit, and a CSV of its results.

``pytest bench --benchmark-enable --save-results NAME`` writes ``bench/results/NAME.csv``; README figures are generated
from such files. ``pytest bench -m cuda`` is all of it on a GPU, written to ``bench/results/cuda.csv``.
"""

from __future__ import annotations

import csv
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

RESULTS = Path(__file__).parent / "results"
_ROWS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save-results", metavar="NAME", help="write the figures to bench/results/NAME.csv")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # The project's own options disable benchmarks, so that tests alone are quick; who names the GPU wants figures.
    if config.option.markexpr == "cuda":
        config.option.benchmark_disable = False
        config.option.save_results = config.option.save_results or "cuda"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _commit() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Any:
    """Function that prints one figure beside its peer's and keeps it for the CSV."""

    def keep(what: str, value: float, unit: str, *, peer: str = "", peer_value: float | None = None) -> None:
        ratio = peer_value / value if peer_value is not None and value else None
        _ROWS.append(
            {
                "what": what,
                "value": f"{value:.6g}",
                "unit": unit,
                "peer": peer,
                "peer_value": "" if peer_value is None else f"{peer_value:.6g}",
                "ratio": "" if ratio is None else f"{ratio:.4g}",
                "device": f"{_processor()}, {torch.get_num_threads()} threads",
                "python": platform.python_version(),
                "torch": torch.__version__,
                "commit": _commit(),
            }
        )
        beside = f" | {peer} {peer_value:.4g} {unit} | ratio {ratio:.1f}" if ratio is not None else ""
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{what}: {value:.4g} {unit}{beside}")

    return keep


def pytest_sessionfinish(session: pytest.Session) -> None:
    name = session.config.getoption("--save-results")
    if name and _ROWS:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(_ROWS[0]))
            writer.writeheader()
            writer.writerows(_ROWS)
