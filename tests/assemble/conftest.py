"""A repository of small networks that several tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import timm
import torch
import torchvision
from torch import nn

import pyassemble as pa
from tests.assemble import channels_last
from tests.networks import scramble

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 64


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Several threads lose much of their time waiting for each other in networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_networks() -> dict[str, nn.Module]:
    """Convolutions, tokens, and maps with channels last; from timm and torchvision."""
    torch.manual_seed(1)
    networks = {
        "resnet": timm.create_model("resnet10t", num_classes=10),
        "mobile": timm.create_model("mobilenetv3_small_050", num_classes=10),
        "vit": timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=10),
        "last": channels_last.network(),
        "vision": torchvision.models.resnet18(num_classes=10),
    }
    for network in networks.values():
        scramble(network)
    return networks


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def networks() -> dict[str, nn.Module]:
    return small_networks()


@pytest.fixture(scope="session")
def repository(networks: dict[str, nn.Module], images: torch.Tensor) -> pa.Repository:
    return pa.Repository(networks, images[:1], sources={"last": f"{channels_last.__file__}:network"})
