"""The nearest networks of a zoo, as everybody calls for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torch import nn

import pyassemble as pa
from pyassemble.network.backend import VARIABLE, sequence
from pyassemble.network.standardize import standardize
from tests.networks import build

if TYPE_CHECKING:
    from pyassemble.zoo import Zoo

ARCHITECTURES = (
    "timm:resnet18",
    "timm:mobilenetv3_small_050",
    "timm:vit_tiny_patch16_224",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
    "torchvision:squeezenet1_0",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:resnet18",
)


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    return {name: build(name, meta=True) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def zoo(modules: dict[str, nn.Module]) -> Zoo:
    zoo = pa.Zoo()
    for name, module in modules.items():
        zoo.add(name, module)
    return zoo


def brute_force(modules: dict[str, nn.Module], query: nn.Module, similarity: str) -> list[tuple[str, float]]:
    found = [(name, pa.similarity(m, query, directed=similarity == "directed")) for name, m in modules.items()]
    return sorted(found, key=lambda item: -item[1])  # stable: ties stay in the order of adding


@pytest.mark.parametrize("similarity", ["symmetric", "directed"])
def test_real_architectures(zoo: Zoo, modules: dict[str, nn.Module], similarity: str) -> None:
    for query in (
        build("timm:resnet10t", meta=True),
        build("torchvision:mobilenet_v2", meta=True),
        modules["timm:resnet18"],
    ):
        expected = brute_force(modules, query, similarity)
        for k in (1, 3, len(modules), len(modules) + 5):
            assert zoo.nearest(query, k, similarity=similarity) == expected[:k]
        assert zoo.nearest(query, 4, similarity=similarity, workers=1) == expected[:4]


def test_ties_in_the_order_of_adding(zoo: Zoo, modules: dict[str, nn.Module]) -> None:
    found = zoo.nearest(modules["torchvision:resnet18"], 2)
    assert found == [("timm:resnet18", 1.0), ("torchvision:resnet18", 1.0)]


def test_defaults(zoo: Zoo) -> None:
    found = zoo.nearest(nn.Sequential(nn.Conv2d(3, 64, 7)))
    assert len(found) == len(ARCHITECTURES)  # fewer than ten
    values = [value for _, value in found]
    assert values == sorted(values, reverse=True)


def test_none_asked_for_and_none_there(zoo: Zoo) -> None:
    assert zoo.nearest(nn.Linear(2, 2), 0) == []
    assert pa.Zoo().nearest(nn.Linear(2, 2)) == []


def test_nothing_in_common() -> None:
    zoo = pa.Zoo()
    zoo.add("b", nn.Conv2d(3, 4, 3))
    zoo.add("a", nn.BatchNorm2d(3))
    assert zoo.nearest(nn.Linear(2, 2), 5) == [("b", 0.0), ("a", 0.0)]


def test_added_after_a_search(zoo: Zoo, modules: dict[str, nn.Module]) -> None:
    growing = pa.Zoo()
    query = build("timm:resnet10t", meta=True)
    for i, (name, module) in enumerate(modules.items()):
        growing.add(name, module)
        expected = brute_force(dict(list(modules.items())[: i + 1]), query, "symmetric")
        assert growing.nearest(query, 20) == expected
    assert growing.nearest(query, 20) == zoo.nearest(query, 20)


def test_a_state_dict_and_a_file(zoo: Zoo, tmp_path: object) -> None:
    network = build("timm:resnet10t")
    assert zoo.nearest(network.state_dict(), 3)[0][0] == "timm:resnet18"


def test_on_numba(zoo: Zoo, modules: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["timm:mobilenetv3_small_050", "torchvision:squeezenet1_0"]
    small = zoo.select(names)
    expected = small.nearest(modules[names[0]], 2)
    monkeypatch.setenv(VARIABLE, "numba")
    found = small.nearest(modules[names[0]], 2)
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-12)
    assert small.nearest(modules[names[0]], 2) == brute_force(
        {n: modules[n] for n in names}, modules[names[0]], "symmetric"
    )


def test_most_of_timm_is_not_aligned() -> None:
    zoo = pa.Zoo.timm()
    engine = zoo._current_engine()
    for query in (build("torchvision:resnet18", meta=True), build("timm:vit_tiny_patch16_224", meta=True)):
        layers = sequence(standardize(query, "blocks"))
        for symmetric in (False, True):
            for k, share in ((1, 0.2), (10, 0.5)):
                numbers, values, aligned = engine.nearest(layers, k, symmetric, 2)
                assert aligned < share * len(zoo)
                everything = engine.nearest(layers, len(zoo), symmetric, 2)
                assert numbers.tolist() == everything[0][:k].tolist()
                assert values.tobytes() == everything[1][:k].tobytes()


def test_bad_questions(zoo: Zoo) -> None:
    with pytest.raises(pa.UnknownOptionError, match="unknown similarity 'cosine'; known: symmetric, directed"):
        zoo.nearest(nn.Linear(2, 2), similarity="cosine")
    with pytest.raises(ValueError, match="k must not be negative, is -1"):
        zoo.nearest(nn.Linear(2, 2), -1)
    with pytest.raises(ValueError, match="workers must be -1"):
        zoo.nearest(nn.Linear(2, 2), workers=0)
    with pytest.raises(pa.EmptyNetworkError, match="the network ReLU has no convolution"):
        zoo.nearest(nn.ReLU())
