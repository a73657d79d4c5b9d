"""Networks for tests: real architectures with random weights and non-trivial statistics."""

from __future__ import annotations

import timm
import torch
import torchvision
from torch import nn


def build(name: str, *, meta: bool = False, seed: int = 0) -> nn.Module:
    """``timm:NAME`` or ``torchvision:NAME`` with 10 classes; every weight and statistic moved off its initial value.

    ``NAME@SIDE`` is a vision transformer for images of that size.
    """
    library, _, model = name.partition(":")
    model, _, side = model.partition("@")
    with torch.device("meta" if meta else "cpu"):
        if library == "timm":
            network = timm.create_model(model, num_classes=10, **({"img_size": int(side)} if side else {}))
        else:
            options = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
            options |= {"image_size": int(side)} if side else {}
            network = torchvision.models.get_model(model, num_classes=10, **options)
    if not meta:
        scramble(network, seed)
    return network


def scramble(network: nn.Module, seed: int = 0) -> None:
    """Give every parameter and batch-norm statistic a value that no initialization would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))
                module.num_batches_tracked += 7


def images_for(network: nn.Module, batch: int = 2) -> torch.Tensor:
    """A batch of the size that the network was made for."""
    config = getattr(network, "pretrained_cfg", None)
    size = config["input_size"] if config else (3, 224, 224)
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))


def snapshot(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of everything a network holds."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same_state(network: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether a network holds the very bits of a snapshot."""
    state = network.state_dict()
    return state.keys() == before.keys() and all(
        torch.equal(_bits(before[name]), _bits(tensor)) for name, tensor in state.items()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    # NaN differs from itself; its bytes do not.
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor
