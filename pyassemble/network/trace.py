"""The order in which a network uses its modules and parameters, from a trace of its forward pass.

Three ways, tried in turn, none of which touches the caller's network or computes a number:

1. a symbolic torch.fx trace in which what cannot be traced is one opaque step;
2. a run on fake tensors that records each parameter as it is used, where an example input is known: the caller's, or
   the input size that timm records on its networks;
3. definition order of its children, each traced by itself where that works, with a StandardizationWarning.
"""

from __future__ import annotations

import warnings
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pyassemble.errors import StandardizationWarning
from pyassemble.network.symbolic import copied, reason, symbolic_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def use_order(network: nn.Module, example_input: Any = None) -> dict[str, int]:
    """First use of every parameter, buffer and childless module in one forward pass in eval mode.

    Args:
        network: Any module; it is copied without its tensors and stays as it is.
        example_input: A tensor, or a tuple of positional arguments, for networks that fx cannot trace.

    Returns:
        Position by name, for the names that were seen; names never used by the forward pass are absent.

    Warns:
        StandardizationWarning: The forward pass as a whole could not be traced.
    """
    reasons: list[str] = []
    skeleton = _skeleton(network, reasons)
    if skeleton is None:
        _warn(network, reasons, "its layers are taken in definition order")
        return {}
    for way in (_by_symbolic_trace, lambda net: _by_fake_run(net, network, example_input)):
        try:
            with torch.random.fork_rng(devices=[]):
                return way(skeleton)
        except Exception as error:  # whatever a foreign forward may raise
            reasons.append(reason(error))
    _warn(network, reasons, "its parts are taken in definition order, each traced by itself where possible")
    order: dict[str, int] = {}
    _by_parts(skeleton, "", order)
    return order


def _warn(network: nn.Module, reasons: list[str], consequence: str) -> None:
    warnings.warn(
        f"{type(network).__name__} could not be traced ({'; '.join(reasons)}): {consequence}. "
        "An example_input may help.",
        StandardizationWarning,
        stacklevel=3,
    )


def _by_parts(module: nn.Module, name: str, order: dict[str, int]) -> None:
    """Children in definition order, each in its own order of use as far as it can be traced."""
    prefix = f"{name}." if name else ""
    for tensor_name, _ in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        order.setdefault(prefix + tensor_name, len(order))
    for child_name, child in module.named_children():
        if next(child.children(), None) is None:
            _note_module(order, child, prefix + child_name)
            continue
        try:
            inside = _by_symbolic_trace(child)
        except Exception:  # whatever a foreign forward may raise
            _by_parts(child, prefix + child_name, order)
        else:
            for used in sorted(inside, key=inside.__getitem__):
                order.setdefault(f"{prefix}{child_name}.{used}", len(order))


def _skeleton(network: nn.Module, reasons: list[str]) -> nn.Module | None:
    """A copy in eval mode that shares the parameters: tracing may set attributes, modes and buffers on it."""
    try:
        return copied(network, {id(parameter): parameter for parameter in network.parameters()})
    except Exception as error:
        reasons.append(f"it cannot be copied: {reason(error)}")
        return None


def _by_symbolic_trace(network: nn.Module) -> dict[str, int]:
    return _order_of(symbolic_trace(network).graph, network)


def _order_of(graph: fx.Graph, network: nn.Module) -> dict[str, int]:
    order: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            order.setdefault(node.target, len(order))
        elif node.op == "call_module":
            _note_module(order, network.get_submodule(node.target), node.target)
    return order


def _note_module(order: dict[str, int], module: nn.Module, name: str) -> None:
    """Everything inside an opaque module, in definition order."""
    for inner_name, inner in module.named_modules(prefix=name):
        own = chain(inner.named_parameters(recurse=False), inner.named_buffers(recurse=False))
        for tensor_name, _ in own:
            order.setdefault(f"{inner_name}.{tensor_name}" if inner_name else tensor_name, len(order))
        if next(inner.children(), None) is None:
            order.setdefault(inner_name, len(order))


class _Recorder(TorchFunctionMode):
    """Notes each known tensor when a torch function first receives it."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.order: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        # Reading an attribute (shape, device, dtype) is no use of the tensor.
        if getattr(func, "__name__", "") != "__get__":
            for value in tree_leaves((args, kwargs)):
                name = self.names.get(id(value))
                if name is not None:
                    self.order.setdefault(name, len(self.order))
        return func(*args, **(kwargs or {}))


def _by_fake_run(skeleton: nn.Module, network: nn.Module, example_input: Any) -> dict[str, int]:
    inputs = _example_inputs(network, example_input)
    if inputs is None:
        raise ValueError("no example_input to run it on")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        state = dict(chain(skeleton.named_parameters(), skeleton.named_buffers()))
        fakes = {name: _fake(mode, tensor) for name, tensor in state.items()}
        recorder = _Recorder({id(fake): name for name, fake in fakes.items()})
        with recorder:
            torch.func.functional_call(skeleton, fakes, tree_map(lambda leaf: _fake(mode, leaf), inputs))
    return recorder.order


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    return mode.from_tensor(value.detach(), static_shapes=True) if isinstance(value, torch.Tensor) else value


def _example_inputs(network: nn.Module, example_input: Any) -> tuple[Any, ...] | None:
    if example_input is not None:
        return example_input if isinstance(example_input, tuple) else (example_input,)
    # timm records the input size a network was made for, as (channels, height, width).
    config = getattr(network, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, dict) else None
    if size is None:
        return None
    parameter = next(network.parameters(), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    device = parameter.device if parameter is not None else None
    return (torch.empty(1, *size, dtype=dtype, device=device),)
