"""What the operations of a traced graph do to the dimensions of a tensor, by kind.

An analysis of channels has to know of an operation which elements of its inputs an element of its output depends on.
Five kinds answer that for nearly all of torch; the rest (layers, products, attention) has rules of its own. What is in
no table is not known, and analyses refuse it by name.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

ELEMENTWISE = "elementwise"  # element by element, with broadcasting
MOVEMENT = "movement"  # elements are put elsewhere, none is computed
REDUCTION = "reduction"  # over the dimensions of an argument `dim`
ALONG = "along"  # every element depends on all along the dimension of an argument `dim`
SPATIAL = "spatial"  # pooling and resizing: channel by channel, over the dimensions from the third on

# Names of methods, and of functions where they agree. torch's in-place twins end in an underscore.
_NAMES: dict[str, str] = {
    **dict.fromkeys(
        "add sub mul div true_divide truediv pow maximum minimum where addcmul lerp iadd imul isub itruediv neg "
        "relu gelu silu sigmoid hardswish hardsigmoid hardtanh tanh exp log log1p sqrt rsqrt abs clamp clamp_min "
        "clamp_max clip square erf sin cos softplus mish elu selu celu leaky_relu relu6 logsigmoid reciprocal dropout "
        "dropout2d alpha_dropout float half bfloat16 double to type_as type clone detach nan_to_num".split(),
        ELEMENTWISE,
    ),
    **dict.fromkeys(
        "reshape view reshape_as view_as flatten unflatten permute transpose t squeeze unsqueeze getitem cat concat "
        "stack split chunk unbind narrow select expand expand_as repeat tile repeat_interleave roll flip contiguous "
        "movedim swapaxes index_select swapdims channel_shuffle".split(),
        MOVEMENT,
    ),
    **dict.fromkeys("mean sum amax amin norm var std logsumexp".split(), REDUCTION),
    **dict.fromkeys("softmax log_softmax normalize".split(), ALONG),
    **dict.fromkeys(
        "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool2d interpolate lp_pool2d".split(),
        SPATIAL,
    ),
}

_FUNCTION_MODULES = ("torch", "torch.nn.functional", "torch._C._nn", "torch.functional", "_operator", "math")

_MODULES: tuple[tuple[type[nn.Module], str], ...] = (
    *(
        (kind, ELEMENTWISE)
        for kind in (
            nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.ReLU, nn.ReLU6,
            nn.GELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Tanh, nn.ELU, nn.SELU, nn.CELU,
            nn.LeakyReLU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
            nn.Threshold,
        )
    ),
    (nn.Flatten, MOVEMENT),
    (nn.Unflatten, MOVEMENT),
    (nn.ChannelShuffle, MOVEMENT),
    (nn.Softmax, ALONG),
    (nn.LogSoftmax, ALONG),
    *(
        (kind, SPATIAL)
        for kind in (
            nn.modules.pooling._AvgPoolNd, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
            nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._LPPoolNd, nn.Upsample,
            nn.modules.padding._ConstantPadNd, nn.modules.padding._ReflectionPadNd,
            nn.modules.padding._ReplicationPadNd,
        )
    ),
)  # fmt: skip

# What commutes with a mean over networks: the output layers may be followed by these alone.
_LINEAR_NAMES = frozenset(
    "add sub iadd isub neg dropout float half bfloat16 double to clone reshape view flatten unflatten permute "
    "transpose t squeeze unsqueeze getitem cat concat stack split chunk unbind narrow select expand contiguous "
    "movedim mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "interpolate mul div truediv".split()
)
_LINEAR_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd, nn.Upsample,
)  # fmt: skip


def operation_name(node: fx.Node) -> str:
    """Name of the operation of a function or method node, without the mark of an in-place twin."""
    if isinstance(node.target, str):
        name = node.target
    else:
        home = getattr(node.target, "__module__", None) or "torch"
        name = getattr(node.target, "__name__", "")
        if home not in _FUNCTION_MODULES:
            return f"{home}.{name}"
    return name.removesuffix("_") if not name.startswith("_") else name


def kind_of(node: fx.Node, root: nn.Module) -> str | None:
    """Kind of a node's operation; None where it has a rule of its own or is not known."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return next((kind for base, kind in _MODULES if isinstance(module, base)), _foreign_kind(module))
    if node.op in ("call_function", "call_method"):
        return _NAMES.get(operation_name(node))
    return None


def _foreign_kind(module: nn.Module) -> str | None:
    return ELEMENTWISE if is_path_dropout(module) else None


def is_path_dropout(module: nn.Module) -> bool:
    """Whether a module drops whole residual branches in training (stochastic depth)."""
    from timm.layers.drop import DropPath
    from torchvision.ops import StochasticDepth

    return isinstance(module, DropPath | StochasticDepth)


def acts_elementwise(module: nn.Module) -> bool:
    """Whether a module without weights acts on every element by itself, by its class or by what its forward does."""
    if any(isinstance(module, base) for base, kind in _MODULES if kind == ELEMENTWISE):
        return True
    try:
        graph = symbolic_trace(module).graph
    except Exception:  # whatever a foreign forward may raise
        return False
    steps = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    return all(node.op != "call_module" and kind_of(node, module) == ELEMENTWISE for node in steps)


def clamp_bounds(module: nn.Module | None) -> tuple[float, float] | None:
    """Between what an activation clamps, such as (0, inf) of ReLU; None if it does anything else."""
    if type(module) is nn.ReLU:
        return 0.0, math.inf
    if isinstance(module, nn.Hardtanh) and type(module) in (nn.ReLU6, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    return None


def is_linear(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node's operation, applied to means of tensors, gives the mean of its results."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _LINEAR_MODULES)
    if node.op not in ("call_function", "call_method"):
        return False
    name = operation_name(node)
    if name == "div" or name == "truediv":
        return not _is_tensor_node(node.args[1])
    if name == "mul":
        return not all(_is_tensor_node(argument) for argument in node.args[:2])
    return name in _LINEAR_NAMES


def _is_tensor_node(argument: object) -> bool:
    return hasattr(argument, "meta") and getattr(argument, "meta", {}).get("is_tensor", True)


def dims_of(args: Any, kwargs: Any, ndim: int, *, position: int = 1) -> tuple[int, ...]:
    """The dimensions that an operation's ``dim`` argument names, as non-negative numbers; all where there is none."""
    dim = kwargs.get("dim", args[position] if len(args) > position else None)
    if dim is None:
        return tuple(range(ndim))
    chosen = dim if isinstance(dim, tuple | list | torch.Size) else (dim,)
    return tuple(sorted(d % ndim for d in chosen))


def functions(*names: Callable[..., Any]) -> frozenset[Callable[..., Any]]:
    """A set of functions, for tests of a node's target."""
    return frozenset(names)


MATMULS = functions(torch.matmul, operator.matmul, torch.bmm)
ATTENTION = functions(F.scaled_dot_product_attention)
NORM_FUNCTIONS = functions(F.layer_norm, F.rms_norm)
LINEAR = functions(F.linear)
CONVOLUTIONS = functions(F.conv1d, F.conv2d, F.conv3d)


def linear_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    """Input, weight and bias of ``F.linear``."""
    return _argument(node, 0, "input"), _argument(node, 1, "weight"), _argument(node, 2, "bias")


def is_weight_of(parameter: fx.Node, user: fx.Node) -> bool:
    """Whether a node multiplies by a parameter as the weight of a linear layer."""
    return user.target in LINEAR and linear_arguments(user)[1] is parameter


def convolution_arguments(node: fx.Node) -> tuple[fx.Node, fx.Node, Any]:
    """Input, weight and number of groups of ``F.conv2d`` and its siblings."""
    groups = _argument(node, 6, "groups")
    return _argument(node, 0, "input"), _argument(node, 1, "weight"), 1 if groups is None else groups


def attention_arguments(node: fx.Node) -> tuple[dict[str, Any], Any]:
    """Arguments of ``F.scaled_dot_product_attention`` by name, and its probability of dropout among them."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return given, given.pop("dropout_p", 0.0)


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
