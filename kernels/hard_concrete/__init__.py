"""Hard-concrete gates: draw, gate and multiply in one pass over x.

For x of shape (B, C, ...) and loc of shape (C,), one gate per sample and channel (L0: Louizos, Welling, Kingma,
*Learning sparse neural networks through L0 regularization*, ICLR 2018, eq. 10 to 12; as used by Merging: Pašen, Boža,
*Merging of neural networks*, 2022):

    u ~ U(0, 1)
    s = sigmoid((log u - log(1 - u) + loc) / beta) (zeta - gamma) + gamma
    g = min(1, max(0, s))
    y = x g

or, with bounds, y = min(high, max(low, x)) g: a clamping activation, such as ReLU or ReLU6, in the same pass.

u is a counter-based draw (see ``kernels.philox``) of (seed, sample, channel), so nothing but x, loc and the seed is
kept for

    grad x = g grad y        grad loc = sum over samples of [0 <= s <= 1] (ds / dloc) sum over space of x grad y

which are computed in one pass over x and grad y, from gates drawn again. Sums run in an order that the shape alone
decides, without atomics. Arithmetic is in float32, in float64 where x is; the CPU computes the gates themselves (not
the products) in float64.

Under autocast nothing is cast: x keeps the type that it comes in, loc its own, and y has x's.

``reference`` has this in plain PyTorch, ``cpu`` and ``cuda`` the fused passes in numba and Triton; ``registration``
makes them operators of PyTorch, ``functions`` is what users call, ``arguments`` what they are refused.
"""

from __future__ import annotations

from pyassemble.kernels.hard_concrete.functions import (
    gate_open_probability,
    hard_concrete_eval,
    hard_concrete_eval_,
    hard_concrete_gate,
    hard_concrete_gate_,
    hard_concrete_values,
)
from pyassemble.kernels.hard_concrete.reference import BETA, GAMMA, ZETA, hard_concrete_gate_reference

__all__ = [
    "BETA",
    "GAMMA",
    "ZETA",
    "gate_open_probability",
    "hard_concrete_eval",
    "hard_concrete_eval_",
    "hard_concrete_gate",
    "hard_concrete_gate_",
    "hard_concrete_gate_reference",
    "hard_concrete_values",
]
