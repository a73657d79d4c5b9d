"""Registering operators with PyTorch's dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Lower-level than torch.library.custom_op, whose wrapper imports torch._dynamo on an operator's first call: measured
# at 1.3 to 2 s of processor time, as much as compiling the gate.
_library: Any = torch.library.Library("pyassemble", "FRAGMENT")  # type: ignore[no-untyped-call]


def operator(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register a functional operator for all devices.

    Args:
        schema: Name, arguments and results in PyTorch's schema language.
        implementation: Called with real tensors, which it looks at to tell devices apart.
        fake: Called with fake tensors, returns others of the right shape, type and strides.

    Returns:
        The operator, to be called with positional arguments. ``torch.vmap`` runs it for each element of the batch.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyassemble::{name}", fake, lib=_library)
    registered = getattr(torch.ops.pyassemble, name).default

    def batched(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        outputs = [registered(*element(arguments, dims, v)) for v in range(info.batch_size)]
        if not outputs:  # one call tells the shapes, and is thrown away
            outputs = [registered(*element(arguments, dims, None))]
        if isinstance(outputs[0], torch.Tensor):
            return _stack(outputs, info.batch_size), 0
        stacked = tuple(_stack(parts, info.batch_size) for parts in zip(*outputs, strict=True))
        return stacked, (0,) * len(stacked)

    torch.library.register_vmap(registered, batched, lib=_library)
    return registered


def ordinary(*tensors: Any) -> bool:
    """Whether these are plain dense tensors on the CPU, and nothing but autograd looks on at what is done to them."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and torch._C._get_tracing_state() is None
        and all(type(t) in _PLAIN and torch._C._dispatch_keys(t) == _ORDINARY for t in tensors)
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
# Any other device or layout, a fake or wrapped tensor, one that is yet to be negated: each has other keys.
_ORDINARY = torch._C._dispatch_keys(torch.empty(0, device="cpu"))


def element(argument: Any, dim: Any, number: int | None) -> Any:
    """One element of what ``torch.vmap`` batched along dim: all of it where dim is None, zeros where number is."""
    if isinstance(argument, (list, tuple)):
        return [element(a, d, number) for a, d in zip(argument, dim, strict=True)]
    if dim is None:
        return argument
    if number is None:
        shape = list(argument.shape)
        del shape[dim]
        return argument.new_zeros(shape)
    return argument.select(dim, number)


def _stack(parts: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    return torch.stack(tuple(parts)) if count else parts[0].new_empty((0, *parts[0].shape))


def differentiable(
    operator: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]
) -> Callable[..., Any]:
    """Give an operator its derivative.

    Returns:
        The operator, to be called in its place: the transforms of ``torch.func`` do not look at derivatives that were
        registered, but at those of a ``torch.autograd.Function``.
    """
    torch.library.register_autograd(operator, backward, setup_context=setup_context, lib=_library)

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*arguments: Any) -> Any:
            return operator(*arguments)

    Transformed.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
    Transformed.backward = staticmethod(backward)  # type: ignore[method-assign]

    def call(*arguments: Any) -> Any:
        # Dynamo of torch 2.14 fails in a Function under vmap, but follows the operator's own rule; under
        # torch.func.grad it refuses both.
        if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
            return Transformed.apply(*arguments)
        return operator(*arguments)

    return call
