"""The training-free score: how far a perturbation of the images moves a network's last features (PA-DNN, eq. 4).

    score(M) = log( 1/N  sum over images i of || f(x_i) - f(x_i + alpha e_i) ||_F ),   e_i ~ U(0, 1)

Higher is better. f is the output of the last block: what ``network.features`` gives where a network has such a method
(an assembly's tensor before its head), else the network's output.

The published score takes batch normalization as it is stored. In a network that was never trained that is mean 0 and
variance 1, and the score is then little else than the network's gain; ``statistics="batch"`` normalizes by the images'
own (see :mod:`pyassemble.assemble.batch_statistics`).
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyassemble.assemble.assembly import Assembly
from pyassemble.assemble.batch_statistics import normalizing_by
from pyassemble.assemble.prefixes import Executions, Step, refuse_non_finite, run_chains
from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError
from pyassemble.kernels import frobenius_score, perturb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BATCH = 64


@dataclass(frozen=True)
class Scored:
    """A network's score beside what a ranking by size alone would go by.

    Attributes:
        name: The network's.
        score: Eq. 4, higher is better.
        parameters: How many the network has, each counted once.
    """

    name: str
    score: float
    parameters: int


def score(
    network: nn.Module,
    images: Tensor,
    *,
    alpha: float = 0.01,
    seed: int = 0,
    batch_size: int = BATCH,
    statistics: str = "stored",
) -> float:
    """Scores a network without training it.

    Args:
        network: Any module that takes a batch of images; run in eval mode without gradients, and left as it was.
        images: (N, C, H, W); the publication takes 2 048. They are moved to the network's device batch by batch.
        alpha: Amplitude of the perturbation.
        seed: Of the perturbation, in [0, 2**63).
        batch_size: Images at a time, each with its perturbed twin; with stored statistics it does not change the result
            beyond rounding.
        statistics: Of batch normalization: "stored", as published, or those of each "batch" of images and their twins,
            for networks that were not trained.

    Returns:
        The score; -inf if the perturbation moves nothing.

    Raises:
        ArgumentTypeError: Not a module, or not a tensor.
        OutOfRangeError: alpha, the seed or the batch size is outside its range.
        TensorError: Images or features that cannot be scored: of the wrong shape, or not finite.
        UnknownOptionError: Other statistics.
    """
    found = score_batch([network], images, alpha=alpha, seed=seed, batch_size=batch_size, statistics=statistics)
    return float(found[0])


def score_batch(
    networks: Sequence[nn.Module],
    images: Tensor,
    *,
    alpha: float = 0.01,
    seed: int = 0,
    batch_size: int = BATCH,
    statistics: str = "stored",
) -> Tensor:
    """Scores several networks on the same images and perturbations, in one launch of the fused kernel a batch.

    Assemblies that begin with the same segments of one repository share their execution.

    Args:
        networks: Any modules that take a batch of images.
        images: (N, C, H, W).
        alpha: Amplitude of the perturbation.
        seed: Of the perturbation.
        batch_size: Images at a time.
        statistics: As :func:`score`.

    Returns:
        (n,) float32 on the CPU, in the order of the networks.

    Raises:
        ArgumentTypeError: Not modules, or not a tensor.
        OutOfRangeError: alpha, the seed or the batch size is outside its range.
        TensorError: Images or features that cannot be scored; the message names the network.
        UnknownOptionError: Other statistics.
    """
    if isinstance(networks, nn.Module) or not all(isinstance(network, nn.Module) for network in networks):
        raise ArgumentTypeError("networks must be a sequence of torch.nn.Module")
    chains = [chain_of(network, f"network {k} ({type(network).__name__})") for k, network in enumerate(networks)]
    with evaluating(networks), normalizing_by(networks, statistics):
        scores, _ = score_chains(
            chains, images, device=_device(networks), alpha=alpha, seed=seed, batch_size=batch_size
        )
    return scores


def score_table(
    networks: Mapping[str, nn.Module],
    images: Tensor,
    *,
    alpha: float = 0.01,
    seed: int = 0,
    batch_size: int = BATCH,
    statistics: str = "stored",
) -> list[Scored]:
    """Scores named networks and counts their parameters.

    Args:
        networks: By name.
        images: (N, C, H, W).
        alpha: Amplitude of the perturbation.
        seed: Of the perturbation.
        batch_size: Images at a time.
        statistics: As :func:`score`.

    Returns:
        One entry a network, in the order given.

    Raises:
        PyAssembleError: As :func:`score_batch` raises.
    """
    found = score_batch(
        list(networks.values()), images, alpha=alpha, seed=seed, batch_size=batch_size, statistics=statistics
    )
    return [
        Scored(name, float(value), sum(parameter.numel() for parameter in network.parameters()))
        for (name, network), value in zip(networks.items(), found, strict=True)
    ]


@torch.no_grad()
def score_chains(
    chains: Sequence[Sequence[Step]],
    images: Tensor,
    *,
    device: torch.device,
    alpha: float = 0.01,
    seed: int = 0,
    batch_size: int = BATCH,
) -> tuple[Tensor, Executions]:
    """Scores chains of modules, common prefixes run once a batch.

    Args:
        chains: Each ends in the features that are scored. Their modules must be in eval mode.
        images: (N, C, H, W).
        device: Where the modules are.
        alpha: Amplitude of the perturbation.
        seed: Of the perturbation.
        batch_size: Images at a time.

    Returns:
        (K,) float32 on the CPU, and the block executions that it took.

    Raises:
        PyAssembleError: As :func:`score_batch` raises.
    """
    _check_images(images)
    if batch_size < 1:
        raise OutOfRangeError(f"batch_size {batch_size}; accepted: at least 1")
    # All images at once, so that an image's noise does not depend on the size of the batches.
    perturbed = perturb(images, alpha, seed=seed)
    total = torch.zeros(len(chains), dtype=torch.float64)
    executions = Executions()
    for start in range(0, len(images), batch_size):
        chosen = slice(start, start + batch_size)
        both = torch.cat([images[chosen].to(device), perturbed[chosen].to(device)])
        outputs, ran = run_chains(chains, both)
        executions += ran
        half = len(both) // 2
        for chain, output in zip(chains, outputs, strict=True):
            _check_output(chain[-1].name, output, 2 * half)
        found = frobenius_score([o[:half] for o in outputs], [o[half:] for o in outputs]).cpu()
        for chain, value in zip(chains, found.tolist(), strict=True):
            if math.isnan(value) or value == math.inf:
                refuse_non_finite(chain, both)
        total += half * found.double().exp()
    return (total / len(images)).log().float(), executions


def chain_of(network: nn.Module, name: str) -> list[Step]:
    """A network as steps to its features: an assembly by segments and stitches, any other as one step.

    Args:
        network: Any module.
        name: What messages call it.

    Returns:
        The steps; a module that occurs in several networks gives steps of one key.
    """
    if isinstance(network, Assembly):
        return _steps_of(network, name)
    features = getattr(network, "features", None)
    function = features if callable(features) else network

    def run(images: Tensor) -> Tensor:
        try:
            output: Tensor = function(images)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            what = " ".join(str(error).split()) or type(error).__name__
            raise TensorError(f"{name} does not take images of shape (B, {_sizes(images)}): {what}") from error
        return output

    return [Step(id(network), run, name)]


def _steps_of(assembly: Assembly, name: str) -> list[Step]:
    expected = assembly.recipe.input_shape.size

    def checked(images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != expected:
            taken = ", ".join(map(str, expected))
            raise TensorError(f"{name} does not take images of shape (B, {_sizes(images)}); accepted: (B, {taken})")
        return images

    steps: list[Step] = [Step(expected, checked, name, counts=False)]
    for number, row in enumerate(assembly.recipe.blocks):
        stitch, block = assembly.stitches[number], assembly.blocks[number]
        if not isinstance(stitch, nn.Identity):
            steps.append(Step(id(stitch), stitch, f"{name}, the stitch before block {number}", counts=False))
        assert isinstance(block, nn.Sequential)
        for index, segment in enumerate(block, start=row.first):
            # Each assembly has modules of its own, but segments of one repository share their tensors' memory.
            memory = tuple(tensor.data_ptr() for tensor in (*segment.parameters(), *segment.buffers()))
            words = f"{name}, segment {index} of source {row.network!r}"
            steps.append(Step((row.network, index, memory), segment, words))
    return steps


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode for the block's time; every module's own flag is put back."""
    flags = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _sizes(images: Tensor) -> str:
    return ", ".join(map(str, images.shape[1:]))


def _device(networks: Sequence[nn.Module]) -> torch.device:
    for network in networks:
        for parameter in network.parameters():
            return parameter.device
    return torch.device("cpu")


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ArgumentTypeError(f"images must be a tensor, not {type(images).__name__}")
    if images.ndim < 2 or len(images) == 0:
        raise TensorError(f"images of shape {tuple(images.shape)}; accepted: (N, C, H, W) with N at least 1")


def _check_output(name: str, output: Tensor, samples: int) -> None:
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != samples:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TensorError(f"{name} gave {found} for {samples} images; accepted: a tensor with one row an image")
