from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyassemble.errors import UnsupportedNetworkError
from pyassemble.network import Element, Layer, standardize
from tests.networks import build
from tests.oracles.blocks import blocks as oracle

LEAVES = (
    lambda: nn.Conv2d(3, 4, 3),
    lambda: nn.BatchNorm2d(4),
    lambda: nn.Linear(4, 2),
    lambda: nn.ReLU(),
    lambda: nn.LayerNorm(4),
    lambda: nn.ConvTranspose1d(2, 2, 2),
)

trees = st.recursive(
    st.sampled_from(range(len(LEAVES))), lambda inner: st.lists(inner, min_size=0, max_size=5), max_leaves=30
)


def module_of(tree: int | list) -> nn.Module:
    if isinstance(tree, int):
        return LEAVES[tree]()
    return nn.Sequential(*[module_of(child) for child in tree])


def names_by_element(network: nn.Module) -> list[str | list[str]]:
    sequence = standardize(network, "blocks")
    assert [e.start for e in sequence.elements[1:]] == [e.stop for e in sequence.elements[:-1]]
    names = [layer.name for layer in sequence.layers]
    return [names[e.start : e.stop] if e.is_block else names[e.start] for e in sequence.elements]


def expected(network: nn.Module) -> list[str | list[str]]:
    names = {module: name for name, module in network.named_modules()}
    return [[names[m] for m in item] if isinstance(item, list) else names[item] for item in oracle(network)]


@settings(max_examples=300, deadline=None)
@given(trees)
def test_random_module_trees_group_as_published(tree: int | list) -> None:
    network = module_of(tree)
    assert names_by_element(network) == expected(network)


@pytest.mark.parametrize(
    "name",
    ["timm:resnet50", "timm:densenet121", "timm:mobilevit_s", "timm:hrnet_w18_small", "timm:vgg11", "timm:dla34",
     "timm:vit_tiny_patch16_224", "timm:xcit_nano_12_p8_224", "timm:nasnetalarge", "torchvision:inception_v3",
     "torchvision:shufflenet_v2_x0_5", "torchvision:maxvit_t"],
)  # fmt: skip
def test_real_architectures_group_as_published(name: str) -> None:
    network = build(name, meta=True)
    assert names_by_element(network) == expected(network)


def test_layers_of_a_small_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 2))
    sequence = standardize(network)
    assert sequence.layers == (
        Layer("0", "Conv2d", (8, 3, 3, 3)),
        Layer("1", "BatchNorm2d", (8,)),
        Layer("2", None, ()),
        Layer("3", "Linear", (2, 8)),
    )
    assert sequence.elements == tuple(Element(i, i + 1, False) for i in range(4))
    assert sequence.scored == 3
    assert not sequence.approximate


def test_a_lone_layer_is_a_network() -> None:
    assert standardize(nn.Linear(2, 3)).layers == (Layer("", "Linear", (3, 2)),)


def test_subclasses_count_as_their_base() -> None:
    class Weird(nn.Conv2d):
        pass

    assert standardize(nn.Sequential(Weird(1, 1, 1), nn.ReLU())).layers[0].kind == "Conv2d"


def test_missing_and_shared_children() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 1, 1)
            self.none = None
            self.again = self.a
            self.inner = nn.Sequential(self.a, nn.ReLU())

    # A child met twice in one parent counts once; in another parent it takes its place again, under its first name.
    assert [layer.name for layer in standardize(Network()).layers] == ["a", "a", "inner.1"]


def test_weightless_scored_layers_score_nothing() -> None:
    sequence = standardize(nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 3, 1)))
    assert sequence.layers[0].kind is None
    assert sequence.scored == 1


def test_a_weight_without_elements_scores_nothing() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        network = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 3))
    assert standardize(network).scored == 1


def test_wrappers_are_looked_through() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    for wrapped in (torch.compile(network), nn.DataParallel(network)):
        assert standardize(wrapped) == standardize(network)


@pytest.mark.parametrize("standardization", ["blocks", "graph"])
@pytest.mark.parametrize("layer", [nn.LazyConv2d(4, 3), nn.LazyLinear(4), nn.LazyBatchNorm2d()])
def test_lazy_layers_are_refused_by_name(layer: nn.Module, standardization: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), layer)
    with pytest.raises(UnsupportedNetworkError, match=r"'1(\.weight)?'.*lazy.*forward pass"):
        standardize(network, standardization)


@pytest.mark.parametrize("standardization", ["blocks", "graph"])
def test_scripted_networks_are_refused(standardization: str) -> None:
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(UnsupportedNetworkError, match="TorchScript"):
        standardize(scripted, standardization)


@pytest.mark.parametrize("thing", [3, None, object(), [nn.Linear(2, 2)]])
def test_other_things_are_refused(thing: object) -> None:
    with pytest.raises(UnsupportedNetworkError, match=r"torch\.nn\.Module"):
        standardize(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize("standardization", ["blocks", "graph"])
def test_quantized_layers_are_refused_and_quantizable_ones_are_not(standardization: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the quantized tensors that users still hold
        network = nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.Linear(4, 4))
    with pytest.raises(UnsupportedNetworkError, match=r"quantized\.modules\.linear\.Linear.*float network"):
        standardize(network, standardization)
    network = nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.FloatFunctional())
    assert standardize(network, standardization).scored == 1
