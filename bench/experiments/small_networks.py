"""The small networks of the experiments on 32×32 images, by name, and the precision each trains fastest in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
import torch
from cifar_resnet import DEPTHS, CifarResNet
from small_images import keep_resolution
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

CIFAR_RESNETS = tuple(f"resnet{depth}_cifar" for depth in DEPTHS)
"""The ones whose published weights are at hand."""


def cifar_resnet(name: str) -> CifarResNet:
    return CifarResNet(depth_of(name))


def depth_of(name: str) -> int:
    return int(name.removeprefix("resnet").removesuffix("_cifar"))


def _timm(name: str, final: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: keep_resolution(timm.create_model(name, num_classes=10, **options), final=final)


NARROW = (16, 32, 64, 128)

# The last map is 4×4 for plain ResNets and 2×2 for the others: at 4×4 those cost three times as much on a CPU.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: cifar_resnet(name) for name in ("resnet14_cifar", *CIFAR_RESNETS)},  # type: ignore[misc]
    "resnet18_narrow": _timm("resnet18", 4, channels=NARROW),
    "resnet34_narrow": _timm("resnet34", 4, channels=NARROW),
    "resnet14t_narrow": _timm("resnet14t", 4, channels=NARROW),
    "resnet18": _timm("resnet18", 4),
    "regnetx_002": _timm("regnetx_002", 2),
    "regnetx_004": _timm("regnetx_004", 2),
    "regnety_002": _timm("regnety_002", 2),
    "regnety_004": _timm("regnety_004", 2),
    "lcnet_035": _timm("lcnet_035", 2),
    "lcnet_050": _timm("lcnet_050", 2),
    "mobilenetv3_small_050": _timm("mobilenetv3_small_050", 2),
    "mobilenetv3_small_100": _timm("mobilenetv3_small_100", 2),
    "mobilenetv2_035": _timm("mobilenetv2_035", 2),
    "mobilenetv2_050": _timm("mobilenetv2_050", 2),
    "mnasnet_small": _timm("mnasnet_small", 2),
    "efficientnet_lite0": _timm("efficientnet_lite0", 2),
    "densenet121": _timm("densenet121", 4),
}


def build(name: str, seed: int, device: torch.device) -> nn.Module:
    """A network at the random initialization of a seed."""
    torch.manual_seed(seed)
    return NETWORKS[name]().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def precision_for(network: nn.Module, device: torch.device) -> torch.dtype | None:
    """bfloat16, but for depthwise convolutions on a CPU, where it was measured to be 2 to 3 times slower."""
    if device.type != "cpu":
        return torch.bfloat16
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in network.modules())
    return None if depthwise else torch.bfloat16
