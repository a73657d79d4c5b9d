"""A start for stitches from unlabelled images: the least-squares map from one network's features to another's.

A stitch is linear in its parameters, whatever it is made of (convolution, transposed convolution, resizing, tokens), so
the best parameters for given features x and wanted features y solve

    min over theta of  || S(x; theta) - y ||^2 + r || theta ||^2

The normal equations of this are solved by conjugate gradients, for which the stitch's own forward and backward passes
are the matrix: it is never formed (at 2 048 channels and a 3 x 3 kernel it would have 340 million entries).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyassemble.assemble.stitches import Stitch
from pyassemble.errors import OutOfRangeError, TensorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyassemble.assemble.assembly import Assembly
    from pyassemble.assemble.repository import Repository

ITERATIONS = 60
RIDGE = 1e-4


@dataclass(frozen=True)
class Fit:
    """How well a stitch was fitted.

    Attributes:
        before: Mean squared error with the parameters it had, divided by the targets' variance.
        after: The same with those of least squares; at most about 1, as zero weights and the mean give 1.
        iterations: Of conjugate gradients.
    """

    before: float
    after: float
    iterations: int


@torch.no_grad()
def fit_stitch(
    stitch: nn.Module,
    source: Callable[[Tensor], Tensor],
    target: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    *,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    tolerance: float = 1e-4,
) -> Fit:
    """Gives a stitch the parameters that map the source's features to the target's best.

    Args:
        stitch: Linear in its parameters; changed in place.
        source: Images -> what the stitch will be given.
        target: Images -> what its output should be, for instance what the network of the next block has there itself.
        images: Batches, a few hundred images in all. Features of all of them are held in memory.
        ridge: r, as a fraction of the largest curvature met; what the images do not determine stays near zero.
        iterations: At most so many.
        tolerance: Of the normal equations' residual, relative to that of zero parameters; ends the iterations.

    Returns:
        The errors before and after.

    Raises:
        OutOfRangeError: ridge or iterations below their range.
        TensorError: No images, or features whose shapes do not go together or that are not finite.
    """
    if not ridge >= 0 or iterations < 1:
        raise OutOfRangeError(
            f"ridge {ridge}, iterations {iterations}; accepted: ridge 0 or more, at least 1 iteration"
        )
    pairs = [(source(batch), target(batch)) for batch in images]
    _check(stitch, pairs)
    parameters = {name: parameter.detach() for name, parameter in stitch.named_parameters()}
    variance = _variance([y for _, y in pairs])
    before = _error(stitch, parameters, pairs) / variance
    zero = {name: torch.zeros_like(value) for name, value in parameters.items()}
    system = _NormalEquations(stitch, [x for x, _ in pairs], zero)
    right = system.transposed([y - system.constant(i) for i, (_, y) in enumerate(pairs)])
    solution, done = _conjugate_gradients(system, right, zero, ridge, iterations, tolerance)
    for name, parameter in stitch.named_parameters():
        parameter.copy_(solution[name])
    return Fit(before, _error(stitch, solution, pairs) / variance, done)


Vector = dict[str, Tensor]


class _NormalEquations:
    """theta -> A^T A theta, where A theta + constant is the stitch's output on all batches."""

    def __init__(self, stitch: nn.Module, inputs: list[Tensor], zero: Vector) -> None:
        self._stitch, self._inputs = stitch, inputs
        self._buffers = dict(stitch.named_buffers())
        self._zero = zero
        self._constants: list[Tensor] = [functional_call(stitch, {**zero, **self._buffers}, (x,)) for x in inputs]

    def constant(self, i: int) -> Tensor:
        return self._constants[i]

    def times(self, vector: Vector) -> Vector:
        return self.transposed(
            [
                functional_call(self._stitch, {**vector, **self._buffers}, (x,)) - constant
                for x, constant in zip(self._inputs, self._constants, strict=True)
            ]
        )

    def transposed(self, outputs: list[Tensor]) -> Vector:
        """A^T applied to outputs, one a batch: the gradient of their product with A theta."""
        total = {name: torch.zeros_like(value) for name, value in self._zero.items()}
        for x, output in zip(self._inputs, outputs, strict=True):
            with torch.enable_grad():
                theta = {name: value.detach().requires_grad_(True) for name, value in self._zero.items()}
                value = (functional_call(self._stitch, {**theta, **self._buffers}, (x,)) * output).sum()
                gradients = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
            for name, gradient in zip(theta, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient
        return total


def _conjugate_gradients(
    system: _NormalEquations, right: Vector, zero: Vector, ridge: float, iterations: int, tolerance: float
) -> tuple[Vector, int]:
    solution = {name: value.clone() for name, value in zero.items()}
    residual = {name: value.clone() for name, value in right.items()}
    direction = {name: value.clone() for name, value in right.items()}
    first = squared = _dot(residual, residual)
    if first == 0:
        return solution, 0
    curvature: float | None = None
    for iteration in range(1, iterations + 1):
        product = system.times(direction)
        if curvature is None:
            # The right-hand side points mostly where the curvature is large: its Rayleigh quotient stands for that.
            curvature = _dot(direction, product) / squared
        for name in product:
            product[name] += ridge * curvature * direction[name]
        step = squared / _dot(direction, product)
        for name in solution:
            solution[name] += step * direction[name]
            residual[name] -= step * product[name]
        following = _dot(residual, residual)
        if following <= tolerance**2 * first:
            return solution, iteration
        for name in direction:
            direction[name] = residual[name] + (following / squared) * direction[name]
        squared = following
    return solution, iterations


def _dot(a: Vector, b: Vector) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def _error(stitch: nn.Module, parameters: Vector, pairs: list[tuple[Tensor, Tensor]]) -> float:
    buffers = dict(stitch.named_buffers())
    total = sum(
        float((functional_call(stitch, {**parameters, **buffers}, (x,)) - y).double().square().sum()) for x, y in pairs
    )
    return total / sum(y.numel() for _, y in pairs)


def _variance(targets: list[Tensor]) -> float:
    count = sum(y.numel() for y in targets)
    mean = sum(float(y.double().sum()) for y in targets) / count
    return max(sum(float((y.double() - mean).square().sum()) for y in targets) / count, 1e-30)


def _check(stitch: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    if not pairs or not len(pairs[0][0]):
        raise TensorError("no images to fit a stitch on; accepted: batches of at least one image")
    for x, y in pairs:
        found = stitch(x).shape
        if found != y.shape:
            raise TensorError(
                f"the stitch makes {tuple(found)} of features {tuple(x.shape)}, the target's are {tuple(y.shape)}; "
                "accepted: one shape"
            )
        if not (x.isfinite().all() and y.isfinite().all()):
            raise TensorError(f"features {tuple(x.shape)} and {tuple(y.shape)} hold NaN or infinity; accepted: numbers")


def initialize_stitches(
    assembly: Assembly,
    repository: Repository,
    images: Tensor,
    *,
    ridge: float = RIDGE,
    iterations: int = ITERATIONS,
    batch_size: int = 64,
) -> list[Fit]:
    """Gives an assembly's stitches a least-squares start, first to last, from unlabelled images.

    Each stitch learns to make, of what the assembly gives it, what the next block would find in its own network. A
    stitch is fitted behind those before it as they then are, so it also makes up for what they leave over.

    Args:
        assembly: Changed in place; its blocks and head stay as they are.
        repository: The networks that it was made of.
        images: (N, C, H, W), a few hundred; on any device.
        ridge: As in :func:`fit_stitch`.
        iterations: As in :func:`fit_stitch`.
        batch_size: Images at a time.

    Returns:
        One entry for each stitch, in order; a block that continues its network needs none.

    Raises:
        UnknownOptionError: The repository lacks one of the assembly's networks.
        TensorError: No images, or features that are not finite.
        OutOfRangeError: A number outside its range.
    """
    batches = [batch.to(repository.device) for batch in torch.split(images, batch_size)] if len(images) else []
    fits = []
    for number, row in enumerate(assembly.recipe.blocks):
        stitch = assembly.stitches[number]
        if not isinstance(stitch, Stitch):
            continue
        before = list(zip(assembly.stitches[:number], assembly.blocks[:number], strict=True))
        target = nn.Sequential(*repository[row.network].segments[: row.first])
        source = nn.Sequential(*(module for pair in before for module in pair))
        fits.append(fit_stitch(stitch, source, target, batches, ridge=ridge, iterations=iterations))
    return fits
