"""The peers that benchmarks measure against, loaded as their authors published them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def iatransfer() -> Any:
    """The classes of DPIAT's published code, ``iatransfer`` 1.0.3.

    Its package ``__init__`` imports dependencies that resolve on no current Python, so a bare module takes its place
    and the submodules that are measured are imported under it. Skips where it is not installed.
    """
    spec = importlib.util.find_spec("iatransfer")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs the peer: pip install --no-deps iatransfer==1.0.3 && pip install inflection")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name, folder in (("iatransfer", root), ("iatransfer.toolkit", root / "toolkit")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    load = importlib.import_module
    load("iatransfer.toolkit.score.shape_score")
    load("iatransfer.toolkit.transfer.clip_transfer")
    load("iatransfer.toolkit.standardization.blocks_standardization")
    return types.SimpleNamespace(
        IAT=load("iatransfer.toolkit.iat").IAT,
        DPMatching=load("iatransfer.toolkit.matching.dp_matching").DPMatching,
        BlocksStandardization=load("iatransfer.toolkit.standardization.blocks_standardization").BlocksStandardization,
        ShapeScore=load("iatransfer.toolkit.score.shape_score").ShapeScore,
    )
