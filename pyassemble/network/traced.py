"""A network as a torch.fx graph whose steps are torch's layers and plain operations, for analyses that edit it.

Layers stay modules of the graph, so that train and eval mode mean in it what they mean in the network. Everything else
is traced into, so that a class of the user's own is seen as the operations it consists of. Every step is computed on an
example input while it is traced: a decision that depends on a shape is taken as it falls for that input, where plain
torch.fx gives up.
"""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_map

from pyassemble.errors import UntraceableError
from pyassemble.network.attention import SpelledOutAttention
from pyassemble.network.operations import ATTENTION, attention_arguments, is_path_dropout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A subclass of one of these (timm's norms with activation, "same" convolutions) is one step, as the class itself is.
LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.conv._ConvNd,
    nn.Linear,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)

_IN_PLACE = frozenset(
    (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.ifloordiv, operator.imod)
)

# Each retry makes one more class of modules opaque.
_MAX_RETRIES = 32


@dataclass(frozen=True)
class Traced:
    """A traced network.

    Attributes:
        graph: The forward pass in eval mode, over a copy of the network without the user's hooks.
        facts: What each node gives on the example input. A floating-point tensor is replaced by one of its shape and
            type on the meta device; other values, such as sizes and index tables, are kept.
        attention_dropouts: The probability of dropout that a step of attention has in train mode, where it has one: in
            eval mode, a function is called with 0.
    """

    graph: fx.GraphModule
    facts: dict[fx.Node, Any]
    attention_dropouts: dict[fx.Node, float] = field(default_factory=dict)


def trace(network: nn.Module, example_input: Any) -> Traced:
    """Traces a network's forward pass in eval mode, by the path that an example input takes.

    Optional arguments of ``forward`` take their defaults. Modules whose forward cannot be traced are one opaque step.

    Args:
        network: Any module; it is copied and stays as it is.
        example_input: A tensor, or a tuple of positional arguments, on the network's device.

    Raises:
        UntraceableError: The network does not take the input, its own forward cannot be traced, or it cannot be copied.
    """
    name = type(network).__name__
    twin = _eval_copy(network)
    arguments = example_arguments(example_input)
    _check_takes(twin, name, arguments)
    # The forward's further arguments, by their defaults.
    further = {
        parameter.name: parameter.default
        for parameter in list(inspect.signature(twin.forward).parameters.values())[len(arguments) :]
        if parameter.default is not inspect.Parameter.empty
    }
    opaque: set[type[nn.Module]] = set()
    for _ in range(_MAX_RETRIES):
        tracer = _Tracer(opaque, arguments)
        try:
            graph = tracer.recorded(twin, further)
        except Exception as error:  # whatever a foreign forward may raise
            if tracer.failed is None or tracer.failed in opaque:
                raise UntraceableError(f"{name} cannot be traced: {_first_line(error)}") from error
            opaque.add(tracer.failed)
        else:
            _follow_in_place(graph, twin, tracer.values)
            facts = {node: tree_map(_without_numbers, tracer.values.get(node)) for node in graph.nodes}
            dropouts = _attention_dropouts(graph, twin, _Tracer(opaque, arguments), further)
            return Traced(fx.GraphModule(twin, graph, name), facts, dropouts)
    raise UntraceableError(f"{name}: more than {_MAX_RETRIES} classes of modules cannot be traced")


def _attention_dropouts(
    graph: fx.Graph, root: nn.Module, tracer: _Tracer, further: dict[str, Any]
) -> dict[fx.Node, float]:
    """Probabilities of dropout that steps of attention have in train mode.

    Its probability is chosen before the function is called, so it is only seen where the network is in train mode: the
    modules that are traced into are, once more; layers, whose statistics this would change, are not. Where the network
    then goes another way, so that steps cannot be found again, none is known.
    """
    if not _attention_steps(graph):
        return {}
    for name, module in root.named_modules():
        module.training = not tracer.is_leaf_module(module, name)
    try:
        dropped = _attention_steps(tracer.recorded(root, further))
    except Exception:  # whatever a foreign forward may raise, in a mode in which it was not asked to run
        return {}
    finally:
        root.eval()
    found = {}
    for place, node in _attention_steps(graph).items():
        p = attention_arguments(dropped[place])[1] if place in dropped else 0.0
        if isinstance(p, float | int) and p > 0:
            found[node] = float(p)
    return found


def _attention_steps(graph: fx.Graph) -> dict[tuple[str, int], fx.Node]:
    """Steps of attention by the module that they are in, and their number in it."""
    found: dict[tuple[str, int], fx.Node] = {}
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.target in ATTENTION:
            stack = node.meta.get("nn_module_stack")
            module = str(next(reversed(stack.values()))[0]) if stack else ""
            found[module, counts[module]] = node
            counts[module] += 1
    return found


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Functions that libraries keep out of traces with ``torch.fx.wrap`` are traced too."""
    wrapped = fx._symbolic_trace._wrapped_fns_to_patch
    kept = dict(wrapped)
    wrapped.clear()
    try:
        yield
    finally:
        wrapped.update(kept)


def _follow_in_place(graph: fx.Graph, root: nn.Module, values: dict[fx.Node, Any]) -> None:
    """What uses a tensor after it was changed in place uses, in the graph, what the change gave."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        changed = node.args[0] if node.args else None
        if isinstance(changed, fx.Node) and is_tensor(values.get(changed)) and _works_in_place(node, root):
            for user in [user for user in changed.users if order[user] > order[node]]:
                user.replace_input_with(changed, node)


def _works_in_place(node: fx.Node, root: nn.Module) -> bool:
    match node.op:
        case "call_module":
            return getattr(root.get_submodule(str(node.target)), "inplace", False) is True
        case "call_method" | "call_function":
            name = str(getattr(node.target, "__name__", node.target))
            marked = name.endswith("_") and not name.startswith("_")
            return marked or node.target in _IN_PLACE or node.kwargs.get("inplace") is True
    return False


def _eval_copy(network: nn.Module) -> nn.Module:
    try:
        twin = copy.deepcopy(network).eval()
    except Exception as error:  # whatever a foreign __deepcopy__ may raise
        raise UntraceableError(f"{type(network).__name__} cannot be copied: {_first_line(error)}") from error
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        if type(module) is nn.MultiheadAttention:
            module.__class__ = SpelledOutAttention
    return twin


def _check_takes(network: nn.Module, name: str, arguments: tuple[Any, ...]) -> None:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(*arguments)
    except Exception as error:  # whatever a foreign forward may raise
        shapes = ", ".join(str(tuple(part.shape)) for part in arguments if is_tensor(part))
        raise UntraceableError(
            f"{name} does not take an example input of shape {shapes}: {_first_line(error)}"
        ) from error


class _Proxy(fx.Proxy):
    """A traced value that can be made a number, as it falls for the example input."""

    def __int__(self) -> int:
        return int(self._value())

    def __index__(self) -> int:
        return operator.index(self._value())

    def __float__(self) -> float:
        return float(self._value())

    def _value(self) -> Any:
        return self.tracer.values[self.node]  # type: ignore[attr-defined]


class _Tracer(fx.Tracer):
    """Computes each step as it is traced, and asks the numbers where torch.fx has to give up."""

    def __init__(self, opaque: set[type[nn.Module]], arguments: tuple[Any, ...]) -> None:
        super().__init__(autowrap_functions=())
        self.opaque = opaque
        self.arguments = iter(arguments)
        self.failed: type[nn.Module] | None = None
        self.values: dict[fx.Node, Any] = {}
        self.computing = False

    def recorded(self, root: nn.Module, further: dict[str, Any]) -> fx.Graph:
        """The graph of a network, some of whose arguments have fixed values."""
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _unwrapped():
            warnings.simplefilter("ignore")
            return self.trace(root, concrete_args=further or None)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) in self.opaque or isinstance(m, LAYERS) or is_path_dropout(m):
            return True
        return type(m) is not SpelledOutAttention and super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **named: Any
    ) -> fx.Node:
        if not args and "input" in kwargs and kind in ("call_function", "call_module"):
            # torch's own name of the first argument; analyses look for it in the first place.
            args, kwargs = (kwargs["input"],), {key: value for key, value in kwargs.items() if key != "input"}
        node = super().create_node(kind, target, args, kwargs, *rest, **named)
        self.values[node] = self._compute(node)
        return node

    def _compute(self, node: fx.Node) -> Any:
        args = fx.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, self.values.__getitem__)
        with self._plain():
            match node.op:
                case "placeholder":
                    return next(self.arguments, args[0] if args else None)
                case "get_attr":
                    return _attribute(self.root, str(node.target))
                case "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
                case "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                case "call_function":
                    return node.target(*args, **kwargs)  # type: ignore[operator]
        return None

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """Modules compute, without being traced."""
        before, self.computing = self.computing, True
        try:
            yield
        finally:
            self.computing = before

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: Any) -> bool:
        return bool(self.values[obj.node])

    def iter(self, obj: Any) -> Iterator[Any]:
        value = self.values[obj.node]
        return (obj[place] for place in range(len(value)))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.computing:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            # The innermost module on the way out is the one that cannot be traced.
            if self.failed is None:
                self.failed = type(m)
            raise


def describe(node: fx.Node, root: nn.Module) -> str:
    """A node in an error's words: what it calls, and inside which module."""
    if node.op == "call_module":
        return f"module {node.target!r} ({type(root.get_submodule(str(node.target))).__name__})"
    if node.op == "get_attr":
        return f"tensor {node.target!r}"
    if node.op == "placeholder":
        return f"input {node.target!r}"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    stack = node.meta.get("nn_module_stack")
    inside = f" in module {next(reversed(stack.values()))[0]!r}" if stack else ""
    return f"operation {name!r} (node {node.name!r}{inside})"


def example_arguments(example_input: Any) -> tuple[Any, ...]:
    """An example input as positional arguments."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def is_tensor(value: object) -> bool:
    """Whether a value of the graph is one tensor."""
    return isinstance(value, torch.Tensor)


def holds_tensor(value: Any) -> bool:
    """Whether a value of the graph is a tensor or a tuple with one in it."""
    return is_tensor(value) or (isinstance(value, tuple | list) and any(map(holds_tensor, value)))


def _attribute(root: nn.Module, name: str) -> Any:
    path, _, last = name.rpartition(".")
    return getattr(root.get_submodule(path), last)


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:200]


def _without_numbers(value: Any) -> Any:
    # Detached: what a parameter was moved to could not be copied, nor the student that keeps it.
    return value.detach().to("meta") if is_tensor(value) and value.is_floating_point() else value
