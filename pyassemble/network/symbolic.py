"""A symbolic torch.fx trace that gets through foreign networks: what cannot be traced becomes one opaque step.

A module whose forward cannot be traced (control flow on shapes, iteration over tensors) is taken as one step and the
trace is repeated, so no list of such modules has to be kept.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import TYPE_CHECKING, Any

from torch import fx, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Each retry makes one more class of modules opaque; of every twentieth timm architecture none needed more than 1.
_MAX_RETRIES = 32


class Tracer(fx.Tracer):
    """Traces into every module but torch's own layers, childless modules, chosen layers, and classes that failed.

    Attributes:
        outputs: What each module returned when it was last called: proxies, perhaps inside tuples or lists.
        failed: Class of the module that ended the trace; None while none has.
    """

    def __init__(self, opaque: set[type[nn.Module]], is_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.opaque = opaque
        self.is_layer = is_layer
        self.outputs: dict[str, Any] = {}
        self.failed: type[nn.Module] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one step of the graph."""
        if type(m) in self.opaque or super().is_leaf_module(m, module_qualified_name) or self.is_layer(m):
            return True
        return next(m.children(), None) is None

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Notes what a module returns, or that it is the one that cannot be traced."""
        try:
            output = super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module on the way out is the one that cannot be traced.
            if self.failed is None:
                self.failed = type(m)
            raise
        self.outputs[self.path_of_module(m)] = output
        return output


def _no_layer(module: nn.Module) -> bool:
    return False


def symbolic_trace(network: nn.Module, is_layer: Callable[[nn.Module], bool] = _no_layer) -> Tracer:
    """Traces a network; arguments of its forward that have a default keep it.

    Args:
        network: Any module. Tracing may set attributes on it: hand in a copy (:func:`copied`).
        is_layer: Modules to keep as one step beside those that always are.

    Returns:
        The tracer, with ``graph`` and ``outputs``.

    Raises:
        Exception: Whatever the network's own forward raises on proxies.
    """
    opaque: set[type[nn.Module]] = set()
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(network.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    for _ in range(_MAX_RETRIES):
        tracer = Tracer(opaque, is_layer)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tracer.trace(network, concrete_args=defaults or None)
        except Exception:
            if tracer.failed is None or tracer.failed in opaque:
                raise
            opaque.add(tracer.failed)
        else:
            return tracer
    raise RuntimeError(f"more than {_MAX_RETRIES} classes of modules cannot be traced")


def copied(network: nn.Module, tensors: Mapping[int, Any]) -> nn.Module:
    """A copy in eval mode, without hooks: the user's hooks expect numbers, and may note them.

    Args:
        network: Any module; it stays as it is.
        tensors: What stands in the copy for each tensor, by the tensor's ``id``; other tensors are copied.
    """
    duplicate = copy.deepcopy(network, dict(tensors)).eval()
    for module in duplicate.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return duplicate


def reason(error: Exception) -> str:
    """A foreign error in one short line."""
    text = str(error).strip().split("\n")[0].split(". ")[0]
    return f"{type(error).__name__}: {text}"[:160]
