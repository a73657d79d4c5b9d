"""The gate's public functions: drawn, in evaluation, and how likely it is open."""

from __future__ import annotations

import math

import torch

from pyassemble.kernels.checks import check_integer, split_seed
from pyassemble.kernels.hard_concrete import eager
from pyassemble.kernels.hard_concrete.arguments import check, check_bounds, check_interval, check_loc, refuse_gradients
from pyassemble.kernels.hard_concrete.reference import BETA, GAMMA, ZETA, over_channels
from pyassemble.kernels.hard_concrete.registration import differentiable_gate, gate_in_place


def hard_concrete_gate(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    seed: int | torch.Tensor,
    dim: int = 1,
    sample_offset: int = 0,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
    low: float = -math.inf,
    high: float = math.inf,
) -> torch.Tensor:
    """Multiply x by a hard-concrete gate per (sample, channel), drawn anew for every seed (L0, eq. 10 to 12).

    The draw depends on (seed, sample + sample_offset, channel) alone: it is the same on the CPU and on CUDA, for every
    spatial size, layout and type of x. Two places that call with one seed and one loc share their gates. Under
    ``torch.vmap`` each element of the batch is computed as if alone: with one seed for all, all draw alike; with a
    seed each (a batched tensor), each draws its own. torch.compile follows ``vmap``, but not ``torch.func.grad``.

    Args:
        x: (B, ...), float32, bfloat16, float16 or float64, with C channels on ``dim``. Any dense layout whose samples
            lie one after the other is read where it is; others are copied first.
        loc: (C,), on x's device.
        seed: int in [0, 2**63), or a 0-d int64 tensor on x's device, which a captured CUDA graph reads at each replay.
            It must keep its value until the backward pass has run.
        dim: Dimension of the channels, not 0.
        sample_offset: Number of the first sample. A batch cut in two, the second part with the size of the first as
            its offset, draws the same gates as the whole.
        beta: Temperature, > 0.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.
        low: Bound at which x is clamped before it is multiplied: 0 makes the operation ReLU and gate in one pass. As
            with ReLU, no gradient flows to an x that is at the bound or beyond.
        high: The other bound, larger than low: with (0, 6) it is ReLU6 and gate.

    Returns:
        Tensor like x. Differentiable by x and loc; twice where loc needs no gradient, and refused otherwise.

    Raises:
        ArgumentTypeError: An argument of the wrong type.
        OutOfRangeError: A number outside its range.
        TensorError: Tensors whose type, shapes or devices do not go together.
    """
    quick = eager.gate(x, loc, seed, dim, sample_offset, beta, gamma, zeta, low, high)
    if quick is not None:
        return quick
    dim = check(x, loc, dim, beta, gamma, zeta)
    check_bounds(low, high)
    check_integer("sample_offset", sample_offset, 2**62)
    number, tensor = split_seed(seed, x.device)
    numbers = number, dim, sample_offset, float(beta), float(gamma), float(zeta), float(low), float(high)
    y: torch.Tensor = differentiable_gate(x, loc, tensor, *numbers)
    return y


def hard_concrete_gate_(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    seed: int | torch.Tensor,
    dim: int = 1,
    sample_offset: int = 0,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """``hard_concrete_gate`` written over x, for inference: no gradient flows through it. Arguments as there.

    Returns:
        x.

    Raises:
        TensorError: x or loc requires a gradient while gradients are recorded, or as in ``hard_concrete_gate``.
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
    """
    dim = check(x, loc, dim, beta, gamma, zeta)
    check_integer("sample_offset", sample_offset, 2**62)
    number, tensor = split_seed(seed, x.device)
    refuse_gradients(x, loc)
    gate_in_place(x, loc, tensor, number, dim, sample_offset, float(beta), float(gamma), float(zeta))
    return x


def hard_concrete_values(
    loc: torch.Tensor,
    batch: int,
    *,
    seed: int | torch.Tensor,
    sample_offset: int = 0,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """The gates themselves: what ``hard_concrete_gate`` with the same arguments multiplies by.

    Args:
        loc: (C,).
        batch: B, the number of samples.
        seed: As in ``hard_concrete_gate``; a tensor is on loc's device.
        sample_offset: As in ``hard_concrete_gate``.
        beta: As in ``hard_concrete_gate``.
        gamma: As in ``hard_concrete_gate``.
        zeta: As in ``hard_concrete_gate``.

    Returns:
        (B, C), float32, or float64 where loc is. Differentiable once, by loc.

    Raises:
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
        TensorError: As in ``hard_concrete_gate``.
    """
    check_loc(loc)
    check_integer("batch", batch, 2**31)
    dtype = torch.promote_types(loc.dtype, torch.float32)
    ones = torch.ones(batch, loc.shape[0], dtype=dtype, device=loc.device)
    return hard_concrete_gate(ones, loc, seed=seed, sample_offset=sample_offset, beta=beta, gamma=gamma, zeta=zeta)


def hard_concrete_eval(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    dim: int = 1,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """Multiply x by the gates of evaluation, min(1, max(0, sigmoid(loc) (zeta - gamma) + gamma)) (L0, eq. 13).

    A broadcast multiplication, which PyTorch does in one pass: no kernel of ours runs.

    Args:
        x: As in ``hard_concrete_gate``.
        loc: (C,), on x's device.
        dim: Dimension of the channels, not 0.
        beta: Checked, but without effect in evaluation.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.

    Returns:
        Tensor like x. Differentiable by x and loc.

    Raises:
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
        TensorError: As in ``hard_concrete_gate``.
    """
    dim = check(x, loc, dim, beta, gamma, zeta)
    return x * _eval_gate(x, loc, dim, gamma, zeta)


def hard_concrete_eval_(
    x: torch.Tensor,
    loc: torch.Tensor,
    *,
    dim: int = 1,
    beta: float = BETA,
    gamma: float = GAMMA,
    zeta: float = ZETA,
) -> torch.Tensor:
    """``hard_concrete_eval`` written over x, for inference: no gradient flows through it. Arguments as there.

    Returns:
        x.

    Raises:
        TensorError: x or loc requires a gradient while gradients are recorded, or as in ``hard_concrete_gate``.
        ArgumentTypeError: As in ``hard_concrete_gate``.
        OutOfRangeError: As in ``hard_concrete_gate``.
    """
    dim = check(x, loc, dim, beta, gamma, zeta)
    refuse_gradients(x, loc)
    return x.mul_(_eval_gate(x, loc, dim, gamma, zeta))


def gate_open_probability(
    loc: torch.Tensor, *, beta: float = BETA, gamma: float = GAMMA, zeta: float = ZETA
) -> torch.Tensor:
    """P[g > 0] = sigmoid(loc - beta log(-gamma / zeta)) of each gate (L0, eq. 12): the differentiable L0 norm's terms.

    Args:
        loc: (C,).
        beta: Temperature, > 0.
        gamma: Lower end of the stretched interval, < 0.
        zeta: Upper end of the stretched interval, > 1.

    Returns:
        (C,), of loc's type. Differentiable.

    Raises:
        ArgumentTypeError: An argument of the wrong type.
        OutOfRangeError: A number outside its range.
        TensorError: loc is not a vector of floating-point numbers.
    """
    check_loc(loc)
    check_interval(beta, gamma, zeta)
    if torch.compiler.is_compiling():
        # Dynamo may hold the numbers as symbols, which math.log does not take.
        return torch.sigmoid(loc - beta * torch.full((), -gamma / zeta, dtype=loc.dtype, device=loc.device).log())
    return torch.sigmoid(loc - beta * math.log(-gamma / zeta))


def _eval_gate(x: torch.Tensor, loc: torch.Tensor, dim: int, gamma: float, zeta: float) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    gate = (torch.sigmoid(loc.to(wide)) * (zeta - gamma) + gamma).clamp(0, 1)
    return over_channels(gate.to(x.dtype), x.ndim, dim)
