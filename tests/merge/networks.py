"""Architectures that merging is tested on, and what the tests do with them."""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyassemble.network.outputs import output_layers
from pyassemble.network.traced import trace
from tests.networks import build, images_for

if TYPE_CHECKING:
    import pyassemble as pa

#: Normalized by batch norms, or not at all.
QUICK_CONVOLUTIONAL = [
    "timm:resnet18",
    "timm:mobilenetv3_small_050",
    "timm:regnety_002",
    "timm:ghostnet_050",
    "timm:dla46x_c",
    "timm:repghostnet_050",
    "torchvision:shufflenet_v2_x0_5",
]
SLOW_CONVOLUTIONAL = [
    "timm:convmixer_768_32",
    "timm:cs3darknet_focus_s",
    "timm:cspnext_tiny",
    "timm:densenet121",
    "timm:dpn48b",
    "timm:efficientformerv2_s0",
    "timm:efficientnet_b0",
    "timm:ese_vovnet19b_slim_dw",
    "timm:fasternet_t0",
    "timm:hardcorenas_a",
    "timm:hrnet_w18_small",
    "timm:lcnet_035",
    "timm:legacy_seresnet18",
    "timm:levit_128s",
    "timm:mobilenetv2_050",
    "timm:nextvit_small",
    "timm:regnetx_002",
    "timm:repvit_m1",
    "timm:res2net50_14w_8s",
    "timm:resnext50_32x4d",
    "timm:resnetv2_18",
    "timm:rexnet_100",
    "timm:selecsls42",
    "timm:skresnet18",
    "timm:starnet_s050",
    "timm:tresnet_m",
    "timm:xception41p",
    "torchvision:googlenet",
    "torchvision:mnasnet0_5",
    "torchvision:alexnet",
]
#: With a normalization whose statistics span channels.
QUICK_SPANNING = ["timm:convnextv2_atto", "timm:test_vit", "timm:mobilevit_xxs"]
SLOW_SPANNING = [
    "timm:beit_base_patch16_224@64",
    "timm:convnext_atto_rms",
    "timm:davit_tiny",
    "timm:deit_tiny_patch16_224",
    "timm:eva02_tiny_patch14_224",
    "timm:hiera_tiny_224",
    "timm:pit_ti_224",
    "timm:pvt_v2_b0",
    "timm:swin_tiny_patch4_window7_224",
    "timm:vit_tiny_patch16_224",
    "torchvision:vit_b_16@64",
]

#: A wide student of one of these takes several gigabytes.
LARGE = ["timm:beit_base_patch16_224@64", "torchvision:alexnet", "torchvision:vit_b_16@64"]

#: What rounding may do in float64, in units of the largest number; random deep networks amplify it.
TOLERANCE = 1e-8


def teachers(name: str, count: int = 2) -> list[nn.Module]:
    """Networks of one architecture with random weights and statistics, in float64."""
    return [build(name, seed=seed).double().eval() for seed in range(count)]


def small_images_for(network: nn.Module) -> Tensor:
    """Smaller images than the network was made for, if it takes them: what is promised holds for all sizes."""
    images = images_for(network)
    config = getattr(network, "pretrained_cfg", None)
    patches = getattr(network, "patch_embed", None)
    side = min(images.shape[-1], 128)
    if config is None:
        side = getattr(network, "image_size", side)
    elif config["fixed_input_size"]:
        side = getattr(patches, "img_size", None) or images.shape[-1]
        side = side[0] if isinstance(side, tuple) else side
    return images[:, :, :side, :side].contiguous()


def release_memory() -> None:
    """Lets go of what lies in reference cycles, as wide students do, and gives it back to the system."""
    gc.collect()
    # GNU's allocator keeps what was freed in small pieces: over the slow tests, 18 GB of it were measured.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def close(left: Tensor, right: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors agree up to rounding."""
    return bool((left - right).abs().max() <= tolerance * right.abs().max() + 1e-12)


def half(student: pa.WideStudent, seed: int = 0) -> dict[str, Tensor]:
    """A random half of each group's units."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(len(group.loc), generator=generator)[: len(group.loc) // 2]
        for name, group in student.gate_groups.items()
    }


def close_others(student: pa.WideStudent, keep: dict[str, Tensor]) -> None:
    """Shut the gates of all units that are not kept."""
    with torch.no_grad():
        for name, group in student.gate_groups.items():
            shut = torch.ones(len(group.loc), dtype=torch.bool)
            shut[keep[name]] = False
            group.loc[shut] = -100.0


def names_of_output_layers(network: nn.Module, images: Tensor) -> list[str]:
    return sorted(str(node.target) for node in output_layers(trace(network, images)))


def inputs_of(layers: list[str], network: nn.Module, images: Tensor) -> list[Tensor]:
    """What enters each of some layers; before the layers that give a network's outputs, its hidden features."""
    seen: dict[str, Tensor] = {}

    def note(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0]

        return hook

    handles = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in layers]
