"""Alignments to report on, built from shapes alone."""

from __future__ import annotations

import pytest
import timm
import torch

from pyassemble.transfer import Alignment, align


@pytest.fixture(scope="session")
def efficientnets() -> Alignment:
    with torch.device("meta"):
        return align(timm.create_model("efficientnet_b0"), timm.create_model("efficientnet_b2"))


@pytest.fixture(scope="session")
def transformers() -> Alignment:
    with torch.device("meta"):
        source, target = timm.create_model("vit_tiny_patch16_224"), timm.create_model("deit_small_patch16_224")
    return align(source, target, standardization="graph")
