"""A command at the shell: alone, of which importing torch is the most, and in a fork of a warm process.

Target: a table of the nearest networks within a second of a warm start.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

NEAREST = ["-m", "pyassemble", "zoo", "nearest", "my_model.py:Net", "--k", "10"]
ROUNDS = 11


def test_nearest_at_the_shell(request: pytest.FixtureRequest, record: Any, tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n\n\ndef Net():\n    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))\n"
    )
    # Compiled files are kept, as on a user's machine, whether or not the package's folder may be written.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPYCACHEPREFIX": str(tmp_path / "compiled"), "XDG_RUNTIME_DIR": str(tmp_path)}

    def python(*arguments: str, warm: str = "0") -> float:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            capture_output=True,
            cwd=tmp_path,
            env=environment | {"PYASSEMBLE_WARM": warm},
        )
        return time.perf_counter() - began

    python(*NEAREST)  # which compiles, and brings the files into memory
    start, stop = (["-m", "pyassemble", "warm", *words] for words in (["start", "--background"], ["stop"]))
    python(*start)
    python(*stop)
    starting = python(*start)
    smoke = request.config.getoption("benchmark_disable") and not request.config.getoption("benchmark_enable")
    try:
        rounds = [
            (python(*NEAREST), python("-c", "import torch"), python(*NEAREST, warm="1"))
            for _ in range(1 if smoke else ROUNDS)
        ]
    finally:
        python(*stop)
    alone, torch, warm = map(statistics.median, zip(*rounds, strict=True))
    command = "pyassemble zoo nearest my_model.py:Net --k 10, at the shell, files cached"
    record(command, alone, "s")
    record('of it, what python -c "import torch" takes', torch, "s")
    record("pyassemble warm start --background, once", starting, "s")
    record("the same command in a fork of the warm process", warm, "s", peer="alone", peer_value=alone)
