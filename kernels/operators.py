"""Registering operators with PyTorch's dispatcher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

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
        The operator, to be called with positional arguments.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyassemble::{name}", fake, lib=_library)
    return getattr(torch.ops.pyassemble, name).default


def differentiable(operator: Any, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Give an operator its derivative."""
    torch.library.register_autograd(operator, backward, setup_context=setup_context, lib=_library)
