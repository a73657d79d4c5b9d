"""The Frobenius score of whole networks."""

from __future__ import annotations

import importlib
import math

import pytest
import timm
import torch
from torch import Tensor, nn

import pyassemble as pa
from pyassemble.assemble.prefixes import Executions, run_chains
from pyassemble.assemble.score import score, score_batch, score_table
from pyassemble.errors import ArgumentTypeError, OutOfRangeError, PyAssembleError, TensorError, UnknownOptionError
from pyassemble.kernels import perturb
from tests.assemble.small import problem, shared_repository
from tests.networks import build, same_state, snapshot


class WithFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), nn.Linear(6, 2)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def by_formula(f: object, images: Tensor, alpha: float, seed: int) -> float:
    with torch.no_grad():
        clean, moved = f(images).double(), f(perturb(images, alpha, seed=seed)).double()  # type: ignore[operator]
    return math.log(float((clean - moved).flatten(1).norm(dim=1).mean()))


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:shufflenet_v2_x0_5", "timm:vit_tiny_patch16_224"])
def test_is_equation_4_of_any_network(name: str) -> None:
    network = build(name).eval()
    images = torch.randn(3, 3, 224, 224) if "vit" in name else torch.randn(5, 3, 40, 40)
    expected = by_formula(network, images, 0.05, 9)
    assert score(network, images, alpha=0.05, seed=9, batch_size=2) == pytest.approx(expected, abs=2e-3)


def test_features_where_there_are_any() -> None:
    network, images = WithFeatures().eval(), torch.randn(7, 3, 9, 9)
    assert score(network, images) == pytest.approx(by_formula(network.features, images, 0.01, 0), abs=1e-4)


def test_the_size_of_batches_does_not_matter() -> None:
    network, images = WithFeatures(), torch.randn(7, 3, 9, 9)
    values = [score(network, images, batch_size=size) for size in (1, 2, 7, 100)]
    assert max(values) - min(values) < 1e-5


def test_several_at_once_are_the_same() -> None:
    networks = [WithFeatures(), timm.create_model("resnet10t", num_classes=3), WithFeatures()]
    images = torch.randn(5, 3, 32, 32)
    found = score_batch(networks, images, seed=4)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    assert found.tolist() == [score(network, images, seed=4) for network in networks]
    assert len(score_batch([], images)) == 0


def test_beside_the_number_of_parameters() -> None:
    networks = {"a": WithFeatures(), "b": nn.Flatten()}
    table = score_table(networks, torch.randn(2, 3, 9, 9))
    assert [(row.name, row.parameters) for row in table] == [("a", 3 * 6 * 9 + 6 + 12 + 14), ("b", 0)]


def test_leaves_the_network_as_it_was() -> None:
    network = WithFeatures().train()
    network.body[1].eval()
    before = snapshot(network)
    score(network, torch.randn(4, 3, 9, 9))
    assert same_state(network, before)
    assert [network.training, network.body[1].training, network.body[0].training] == [True, False, True]
    with pytest.raises(TensorError, match=r"network 0 \(WithFeatures\) does not take images of shape \(B, 5, 9, 9\)"):
        score(network, torch.randn(4, 5, 9, 9))
    assert network.training


def test_bad_input() -> None:
    network, images = WithFeatures(), torch.randn(2, 3, 9, 9)
    nan = WithFeatures()
    nan.body[0].weight.data[0, 0, 0, 0] = math.nan
    for call, kind, words in [
        (lambda: score(nan, images), TensorError, r"network 0 \(WithFeatures\).*NaN"),
        (lambda: score_batch([network, nan], images), TensorError, r"network 1 \(WithFeatures\).*NaN"),
        (lambda: score(network, images[:0]), TensorError, "N at least 1"),
        (lambda: score(network, images * math.nan), TensorError, "the input"),
        (lambda: score(network, [1]), ArgumentTypeError, "images must be a tensor"),
        (lambda: score("resnet18", images), ArgumentTypeError, "torch.nn.Module"),
        (lambda: score_batch(network, images), ArgumentTypeError, "sequence"),
        (lambda: score(network, images, batch_size=0), OutOfRangeError, "batch_size"),
        (lambda: score(network, images, seed=-1), OutOfRangeError, "seed"),
        (lambda: score(nn.Flatten(0), images), TensorError, r"gave \(972,\) for 4 images"),
        (lambda: score(nn.LSTM(9, 2), images[:, 0]), TensorError, "gave tuple"),
    ]:
        with pytest.raises(kind, match=words):
            call()
        with pytest.raises(PyAssembleError):
            call()


class TestAssemblies:
    def test_is_the_score_of_the_features_before_the_head(self) -> None:
        repository, (images, _) = shared_repository(), problem(12)
        assembly = pa.Assembly.compose(repository, [("wide", 0, 1), ("deep", 3, 5)], 3, seed=1)
        expected = by_formula(assembly.features, images, 0.01, 0)
        assert score(assembly, images) == pytest.approx(expected, abs=1e-4)

    def test_images_of_another_size(self) -> None:
        assembly = pa.Assembly.compose(shared_repository(), [("wide", 0, 4)], 3)
        with pytest.raises(TensorError, match=r"shape \(B, 3, 9, 9\); accepted: \(B, 3, 8, 8\)"):
            score(assembly, torch.zeros(2, 3, 9, 9))

    def test_segments_of_one_repository_run_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        repository, (images, _) = shared_repository(), problem(12)
        rows = [
            [("wide", 0, 2), ("deep", 4, 5)],
            [("wide", 0, 2), ("deep", 3, 5)],
            [("wide", 0, 1), ("wide", 4, 4)],
            [("deep", 0, 1), ("wide", 3, 4)],
        ]
        assemblies = [pa.Assembly.compose(repository, row, 3, seed=k) for k, row in enumerate(rows)]
        alone = [score(assembly, images) for assembly in assemblies]
        seen: list[Executions] = []

        def counted(*arguments: object) -> object:
            found = run_chains(*arguments)  # type: ignore[arg-type]
            seen.append(found[1])
            return found

        monkeypatch.setattr(importlib.import_module("pyassemble.assemble.score"), "run_chains", counted)
        assert score_batch(assemblies, images).tolist() == alone
        # wide 0, 1, 2 once for three of them; nothing else is common.
        assert seen == [Executions(requested=5 + 6 + 3 + 4, executed=(3 + 2 + 3 + 1) + 4)]

    def test_trained_blocks_are_not_taken_for_the_repositorys(self) -> None:
        repository, (images, labels) = shared_repository(), problem(16)
        row = [("wide", 0, 2), ("deep", 4, 5)]
        one, other = (pa.Assembly.compose(repository, row, 3) for _ in range(2))
        assert score_batch([one, other], images).unique().numel() == 1
        other.finetune((images, labels), epochs=1, mode="full")
        found = score_batch([one, other], images)
        assert found[0] != found[1]
        assert found.tolist() == [score(one, images), score(other, images)]


def test_statistics_of_the_batch_divide_the_gain_of_an_untrained_network_out() -> None:
    images = torch.randn(8, 3, 9, 9)
    quiet, loud = WithFeatures(), WithFeatures()
    loud.load_state_dict(quiet.state_dict())
    with torch.no_grad():
        loud.body[0].weight.mul_(20)
        loud.body[0].bias.mul_(20)
    before = snapshot(loud)
    stored = score_batch([quiet, loud], images)
    assert float(stored[1] - stored[0]) == pytest.approx(math.log(20), abs=1e-3)
    found = score_batch([quiet, loud], images, statistics="batch")
    assert float(found[1] - found[0]) == pytest.approx(0, abs=1e-3)
    assert same_state(loud, before)


def test_statistics_of_the_batch_are_those_of_training() -> None:
    network, images = WithFeatures().train(), torch.randn(6, 3, 9, 9)
    both = torch.cat([images, perturb(images, 0.05, seed=4)])
    layer = network.body[1]
    tracked = [buffer.clone() for buffer in layer.buffers()]
    found = score(network, images, alpha=0.05, seed=4, statistics="batch")
    assert all(torch.equal(a, b) for a, b in zip(tracked, layer.buffers(), strict=True))
    assert layer.training
    assert layer.track_running_stats
    with torch.no_grad():
        output = network.features(both)
    assert found == pytest.approx(math.log(float((output[:6] - output[6:]).flatten(1).norm(dim=1).mean())), abs=1e-3)


def test_unknown_statistics_are_refused() -> None:
    with pytest.raises(UnknownOptionError, match="statistics"):
        score(WithFeatures(), torch.randn(2, 3, 9, 9), statistics="running")
