"""The repository of the assembly experiment: published CIFAR ResNets, and small timm networks trained here for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from cifar10 import Images, Normalize, read
from cifar_resnet import MEAN, STD, pretrained
from safetensors.torch import load_file, save_file
from small_networks import CIFAR_RESNETS, NETWORKS, build, depth_of, precision_for

from pyassemble.atomic import replacing
from pyassemble.training import fit, in_order, random_crop, random_flip

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

TRAINED_HERE = ("regnetx_002", "mobilenetv3_small_050")
NAMES = (*CIFAR_RESNETS, *TRAINED_HERE)
SEED = 11


def source(name: str, data: Path, cache: Path, *, images: int, epochs: int) -> nn.Module:
    """A source with its weights, trained first if it is not a published one and has not been before.

    Args:
        name: One of NAMES.
        data: Folder with cifar10/ and cifar_resnets/.
        cache: Folder that keeps what was trained; the file says on how much.
        images: How many of the last training images it is trained on: not those that the experiment trains on.
        epochs: How long.

    Returns:
        The network, in eval mode.
    """
    if name in CIFAR_RESNETS:
        published = pretrained(depth_of(name), data / "cifar_resnets")
        return published.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
    assert name in NETWORKS
    device = torch.device("cpu")
    network = build(name, SEED, device)
    file = cache / f"{name}-{images}x{epochs}.safetensors"
    if not file.exists():
        whole = read(data / "cifar10", "train")
        part = Images(whole.pixels[-images:], whole.labels[-images:])
        fit(
            network,
            part.pixels,
            part.labels,
            epochs=epochs,
            batch_size=64,
            learning_rate=3e-3,
            seed=SEED,
            autocast=precision_for(network, device),
            prepare=Normalize(MEAN, STD),
            augment=in_order(random_flip, random_crop),
        )
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
    network.load_state_dict(load_file(file))
    return network.eval()
