"""Graph standardization over the zoos: every twelfth timm architecture and all of torchvision's."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from pyassemble.errors import StandardizationWarning
from pyassemble.network import standardize

TIMM = timm.list_models()[::12]
TORCHVISION = torchvision.models.list_models()
# Their forward passes take lists of images and loop over data: no trace follows them.
UNTRACEABLE = (*torchvision.models.list_models(torchvision.models.detection), "raft_large", "raft_small")


def hollow(library: str, name: str) -> nn.Module:
    options = {}
    if library == "torchvision":
        dense = (torchvision.models.detection, torchvision.models.segmentation)
        if any(name in torchvision.models.list_models(part) for part in dense):
            options = {"weights_backbone": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecates its own defaults
        try:
            with torch.device("meta"):
                return timm.create_model(name) if library == "timm" else torchvision.models.get_model(name, **options)
        except (RuntimeError, NotImplementedError):
            # Its initialization computes with values, which the meta device does not have.
            return torchvision.models.get_model(name, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "name"), [("timm", name) for name in TIMM] + [("torchvision", name) for name in TORCHVISION]
)
def test_graph_standardization_takes_every_architecture(library: str, name: str) -> None:
    network = hollow(library, name)
    if name in UNTRACEABLE:
        with pytest.warns(StandardizationWarning):
            sequence = standardize(network, "graph")
        with pytest.warns(StandardizationWarning):
            assert sequence == standardize(network, "graph")
    else:
        sequence = standardize(network, "graph")
    modules = dict(network.named_modules())
    taken = 0
    for layer in sequence.layers:
        module = modules.get(layer.name)
        if module is not None:
            taken += sum(parameter.numel() for parameter in module.parameters(recurse=False))
            continue
        tensor = network.get_parameter(layer.name)
        taken += tensor.numel()
        if layer.name.endswith("in_proj_weight"):
            taken += network.get_parameter(layer.name.replace("weight", "bias")).numel()
    # Each parameter is in one element; those that are tied count once on both sides.
    assert taken >= sum(parameter.numel() for parameter in network.parameters())
