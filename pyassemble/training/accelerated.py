"""What merging and assembling take from accelerate: device, mixed precision, and several processes that agree.

Both change which parameters take part from step to step, which a DistributedDataParallel wrapper does not allow; so the
loops call :func:`average_gradients` themselves between backward and the optimizer's step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pyassemble.errors import ArgumentTypeError, UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerate import Accelerator
    from torch import Tensor, nn

PRECISIONS = ("no", "bf16", "fp16")

#: What an earlier call asked for; None in a state that the caller has made.
_OURS = "_asked_by_pyassemble"


def make_accelerator(device: torch.device | str | None = None, *, mixed_precision: str | None = None) -> Accelerator:
    """This process's accelerator.

    Accelerate keeps one state a process: where the caller already has an ``Accelerator``, its settings are taken, and
    what contradicts them is refused. A state that an earlier call made gives way to the new one.

    Args:
        device: "cpu" keeps the computation off a GPU that is there; otherwise accelerate's choice: this process's GPU,
            or the CPU where there is none.
        mixed_precision: "no", "bf16" or "fp16"; accelerate's own setting (``accelerate launch``) by default.

    Returns:
        An accelerator. It does not move batches by itself.

    Raises:
        UnknownOptionError: Another precision.
        ArgumentTypeError: Accelerate is already set up in another way in this process.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if mixed_precision not in (None, *PRECISIONS):
        raise UnknownOptionError("mixed_precision", mixed_precision, PRECISIONS)
    cpu = device is not None and torch.device(device).type == "cpu"
    state: dict[str, Any] = AcceleratorState._shared_state
    asked = (cpu, mixed_precision)
    if state.get(_OURS) not in (None, asked) and state["num_processes"] == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    ours = asked if not state else None
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, device_placement=False)
    except ValueError as error:
        raise ArgumentTypeError(
            f"device {device}, mixed precision {mixed_precision}: accelerate is already set up otherwise in this "
            f"process ({str(error).splitlines()[0]})"
        ) from error
    state.setdefault(_OURS, ours)
    return accelerator


@torch.no_grad()
def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by their mean over all processes; nothing to do for a single one.

    Args:
        accelerator: This process's.
        parameters: The same ones, in the same order, in every process. One without a gradient counts as zero.
    """
    if accelerator.num_processes == 1:
        return
    trained = list(parameters)
    if not trained:
        return
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
    mean = mean_over_processes(accelerator, flat)
    parts = torch.split(mean, [p.numel() for p in trained])
    for parameter, gradient in zip(trained, parts, strict=True):
        parameter.grad = gradient.view_as(parameter).clone()


def mean_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Mean of a tensor over all processes, the same in each; without a gradient.

    Args:
        accelerator: This process's.
        values: Of one shape in every process.

    Returns:
        Tensor of that shape.
    """
    if accelerator.num_processes == 1:
        return values.detach()
    reduced: Tensor = accelerator.reduce(values.detach().clone(), "mean")
    return reduced
