"""Fused operations, each with its maths, its reference and its backends in one file, or in one folder of files.

Importing this package imports no kernel, and importing a kernel neither numba nor Triton: each waits for its first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyassemble.kernels.frobenius import frobenius_score, frobenius_score_reference
    from pyassemble.kernels.hard_concrete import (
        gate_open_probability,
        hard_concrete_eval,
        hard_concrete_eval_,
        hard_concrete_gate,
        hard_concrete_gate_,
        hard_concrete_gate_reference,
        hard_concrete_values,
    )
    from pyassemble.kernels.l0_gates import L0Gate1d, L0Gate2d
    from pyassemble.kernels.layer_scorer import LayerScorer
    from pyassemble.kernels.perturbation import perturb, perturb_reference

__all__ = [
    "L0Gate1d",
    "L0Gate2d",
    "LayerScorer",
    "frobenius_score",
    "frobenius_score_reference",
    "gate_open_probability",
    "hard_concrete_eval",
    "hard_concrete_eval_",
    "hard_concrete_gate",
    "hard_concrete_gate_",
    "hard_concrete_gate_reference",
    "hard_concrete_values",
    "perturb",
    "perturb_reference",
]

_HOMES = {
    "L0Gate1d": "l0_gates",
    "L0Gate2d": "l0_gates",
    "LayerScorer": "layer_scorer",
    "frobenius_score": "frobenius",
    "frobenius_score_reference": "frobenius",
    "perturb": "perturbation",
    "perturb_reference": "perturbation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'hard_concrete')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
