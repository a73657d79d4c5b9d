"""The gate as PyTorch's operators: device and layout chosen, derivatives, fake tensors, ``torch.vmap``."""

from __future__ import annotations

import math
from typing import Any

import torch

from pyassemble.errors import TensorError
from pyassemble.kernels.checks import describe
from pyassemble.kernels.hard_concrete import cpu, cuda
from pyassemble.kernels.hard_concrete.reference import Draw, clamp, clamp_backward, over_channels
from pyassemble.kernels.layout import laid_out_like, layout
from pyassemble.kernels.operators import differentiable, element, operator


def _forward_into(y: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, dim: int, draw: Draw) -> None:
    """Write gated x to a dense y, which may be x itself."""
    if x.numel() == 0:
        return
    if x.device.type not in ("cpu", "cuda"):
        wide = torch.promote_types(x.dtype, torch.float32)
        y.copy_(clamp(x, draw.low, draw.high) * over_channels(draw.gates(x.shape[0], loc.to(wide)), x.ndim, dim))
        return
    shape = layout(y, dim)
    if shape is None:  # the samples do not lie one after the other: by way of a copy
        plain = torch.empty_like(x, memory_format=torch.contiguous_format)
        _forward_into(plain, x.contiguous(), loc, dim, draw)
        y.copy_(plain)
        return
    x = laid_out_like(x, y)
    if x.device.type == "cpu":
        cpu.forward(y, x, loc.contiguous(), shape, draw)
    else:
        with torch.cuda.device(x.device):
            cuda.forward(y, x, loc.contiguous(), shape, draw)


def _backward_into(
    dx: torch.Tensor, dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, dim: int, draw: Draw
) -> torch.Tensor:
    """Write grad x to a dense dx; grad loc in loc's own type."""
    if x.numel() == 0:
        return torch.zeros_like(loc)
    if x.device.type not in ("cpu", "cuda"):
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.enable_grad():
            inputs = x.detach().to(wide).requires_grad_(), loc.detach().to(wide).requires_grad_()
            kept = clamp(inputs[0], draw.low, draw.high)
            y = kept * over_channels(draw.gates(x.shape[0], inputs[1]), x.ndim, dim)
        grad_x, grad_loc = torch.autograd.grad(y, inputs, dy.to(wide))
        dx.copy_(grad_x)
        return grad_loc.to(loc.dtype)
    shape = layout(dx, dim)
    if shape is None:
        plain = torch.empty_like(x, memory_format=torch.contiguous_format)
        dloc = _backward_into(plain, dy.contiguous(), x.contiguous(), loc, dim, draw)
        dx.copy_(plain)
        return dloc
    dy, x = laid_out_like(dy, dx), laid_out_like(x, dx)
    if x.device.type == "cpu":
        return cpu.backward(dx, dy, x, loc.contiguous(), shape, draw)
    with torch.cuda.device(x.device):
        return cuda.backward(dx, dy, x, loc.contiguous(), shape, draw).to(loc.dtype)


def _run(
    x: torch.Tensor, loc: torch.Tensor, seed_tensor: torch.Tensor | None, seed: int, dim: int, *numbers: Any
) -> Any:
    y = torch.empty_like(x)
    _forward_into(y, x, loc, dim, Draw(seed_tensor, seed, *numbers))
    return y


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


def _run_backward(
    dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, seed_tensor: torch.Tensor | None, seed: int, dim: int,
    *numbers: Any,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    dx = torch.empty_like(x)
    return dx, _backward_into(dx, dy, x, loc, dim, Draw(seed_tensor, seed, *numbers))


def _fake_backward(dy: torch.Tensor, x: torch.Tensor, loc: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), loc.new_empty(loc.shape)


def _refuse_derivative(ctx: Any, *gradients: Any) -> None:
    """Without a rule that fails, PyTorch would take gradients by loc for fixed."""
    raise RuntimeError("hard_concrete_gate is differentiable once, but for gradients by x where loc needs none")


_NUMBERS = (
    "Tensor? seed_tensor, SymInt seed, int dim, SymInt sample_offset, float beta, float gamma, float zeta, "
    "float low, float high"
)
_gate = operator(f"hard_concrete_gate(Tensor x, Tensor loc, {_NUMBERS}) -> Tensor", _run, _fake)
_gate_backward = operator(
    f"hard_concrete_gate_backward(Tensor dy, Tensor x, Tensor loc, {_NUMBERS}) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
_first_derivative = differentiable(_gate_backward, _refuse_derivative, lambda ctx, inputs, output: None)


@torch.library.custom_op("pyassemble::hard_concrete_gate_", mutates_args=("x",))
def gate_in_place(
    x: torch.Tensor, loc: torch.Tensor, seed_tensor: torch.Tensor | None, seed: int, dim: int, sample_offset: int,
    beta: float, gamma: float, zeta: float,
) -> None:  # fmt: skip
    """The gate written over x, without a derivative."""
    draw = Draw(seed_tensor, seed, sample_offset, beta, gamma, zeta, -math.inf, math.inf)
    if layout(x, dim) is not None:
        _forward_into(x, x, loc, dim, draw)
    else:
        y = torch.empty_like(x)
        _forward_into(y, x, loc, dim, draw)
        x.copy_(y)


@gate_in_place.register_fake
def _gate_in_place_fake(x: torch.Tensor, *_: Any) -> None:
    return None


@gate_in_place.register_vmap
def _gate_in_place_batched(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[None, None]:
    if dims[0] is None:
        raise TensorError(
            f"{describe('x', arguments[0])} is one for all elements of torch.vmap's batch, which would each overwrite "
            "it; accepted: x batched too, or the function without the underscore"
        )
    for v in range(info.batch_size):
        gate_in_place(*element(arguments, dims, v))
    return None, None


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, loc, seed_tensor, *ctx.numbers = inputs
    ctx.save_for_backward(x if needs_x(ctx, *ctx.numbers[-2:]) else None, loc, seed_tensor)


def needs_x(ctx: Any, low: float, high: float) -> bool:
    """Whether the derivatives that are asked for depend on x: without bounds the gate is linear in it."""
    bounded = low > -math.inf or high < math.inf
    return bool(ctx.needs_input_grad[1] or bounded)


def differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    """Gradients of the operator's arguments, from what was kept for them."""
    x, loc, seed_tensor = ctx.saved_tensors
    if ctx.needs_input_grad[1]:
        dx, dloc = _first_derivative(dy, x, loc, seed_tensor, *ctx.numbers)
    else:
        *numbers, low, high = ctx.numbers
        passed = dy if x is None else clamp_backward(dy, x, low, high)
        dx, dloc = _gate(passed, loc, seed_tensor, *numbers, -math.inf, math.inf), None
    return dx, dloc, *[None] * (len(ctx.numbers) + 1)


differentiable_gate = differentiable(_gate, differentiate, _keep_for_backward)
