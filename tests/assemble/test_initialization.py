"""The least-squares start of stitches, against solving the same problem densely."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyassemble as pa
from pyassemble.assemble.initialization import fit_stitch, initialize_stitches
from pyassemble.errors import OutOfRangeError, TensorError, UnknownOptionError
from tests.assemble.small import problem, repository, shared_repository
from tests.networks import same_state, snapshot


def dense(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares 3 × 3 convolution by unfolding: its output."""
    columns = F.unfold(x.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    columns = torch.cat([columns, torch.ones(len(columns), 1)], 1)
    wanted = y.double().flatten(2).transpose(1, 2).flatten(0, 1)
    found = columns @ torch.linalg.lstsq(columns, wanted).solution
    return found.reshape(len(x), -1, y.shape[1]).transpose(1, 2).reshape(y.shape)


def test_is_the_dense_solution() -> None:
    x, y = torch.randn(20, 4, 6, 6), torch.randn(20, 5, 6, 6) + 3
    stitch = nn.Conv2d(4, 5, 3, padding=1)
    fit = fit_stitch(stitch, lambda i: x[i], lambda i: y[i], [torch.arange(10), torch.arange(10, 20)], ridge=1e-9)
    assert fit.after < fit.before
    torch.testing.assert_close(stitch(x).detach().double(), dense(x, y), rtol=1e-2, atol=1e-2)
    assert fit.after == pytest.approx(float((dense(x, y) - y).square().mean() / y.var()), rel=1e-3)


@pytest.mark.parametrize(
    ("stitch", "shape"),
    [
        (nn.Conv2d(4, 3, 3, stride=2, padding=1), (4, 8, 8)),
        (nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), (4, 5, 5)),
        (nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.AdaptiveAvgPool2d(3)), (4, 7, 7)),
        (nn.Sequential(nn.Conv2d(4, 3, 3, padding=1), nn.Upsample((9, 9), mode="bilinear")), (4, 5, 5)),
        (nn.Linear(6, 3), (10, 6)),
    ],
)
def test_recovers_a_stitch_of_any_kind(stitch: nn.Module, shape: tuple[int, ...]) -> None:
    import copy

    teacher = copy.deepcopy(stitch)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter)
    images = torch.randn(64, *shape)
    with torch.no_grad():
        fit = fit_stitch(stitch, lambda x: x, teacher, images.split(32), ridge=1e-8, iterations=200, tolerance=1e-6)
    assert fit.after < 1e-5 < fit.before


def test_what_the_images_do_not_determine_stays_small() -> None:
    x = torch.zeros(8, 3, 4, 4)
    x[:, 0] = torch.randn(8, 4, 4)
    stitch = nn.Conv2d(3, 2, 1)
    fit_stitch(stitch, lambda i: i, lambda i: i[:, :2] * 2, [x])
    assert float(stitch.weight[:, 1:].detach().abs().max()) < 1e-6
    assert float(stitch.weight[0, 0, 0, 0].detach()) == pytest.approx(2, rel=1e-2)


def test_nothing_to_learn() -> None:
    stitch = nn.Conv2d(3, 2, 1)
    fit = fit_stitch(stitch, lambda i: i, lambda i: torch.zeros(2, 2, 4, 4), [torch.randn(2, 3, 4, 4)])
    assert not stitch.weight.any()
    assert fit.after == 0


def test_bad_input() -> None:
    stitch, x = nn.Conv2d(3, 2, 1), torch.randn(2, 3, 4, 4)
    before = stitch.weight.detach().clone()
    for images, target, words in [
        ([], lambda i: i, "no images"),
        ([x], lambda i: i, r"makes \(2, 2, 4, 4\) of features \(2, 3, 4, 4\), the target's are \(2, 3, 4, 4\)"),
        ([x * float("nan")], lambda i: i[:, :2], "NaN"),
    ]:
        with pytest.raises(TensorError, match=words):
            fit_stitch(stitch, lambda i: i, target, images)
    with pytest.raises(OutOfRangeError, match="ridge -1"):
        fit_stitch(stitch, lambda i: i, lambda i: i[:, :2], [x], ridge=-1)
    assert torch.equal(stitch.weight, before)


class TestAssembly:
    def test_stitches_come_to_give_what_the_next_block_knows(self) -> None:
        networks, (images, _) = shared_repository(), problem(256)
        assembly = pa.Assembly.compose(networks, [("wide", 0, 1), ("deep", 2, 3), ("wide", 3, 4)], 3)
        blocks, head = snapshot(assembly.blocks), snapshot(assembly.head)
        fits = initialize_stitches(assembly, networks, images)
        assert len(fits) == 2
        assert all(fit.after < 0.5 < fit.before for fit in fits)
        assert same_state(assembly.blocks, blocks)
        assert same_state(assembly.head, head)
        fresh, _ = problem(64, seed=8)
        with torch.no_grad():
            own = nn.Sequential(*networks["deep"].segments[:2])(fresh)
            error = (assembly.stitches[1](assembly.blocks[0](fresh)) - own).square().mean() / own.var()
        assert float(error) < 0.5  # images that were not fitted

    def test_continuations_need_none(self) -> None:
        networks, (images, _) = shared_repository(), problem(8)
        assembly = pa.Assembly.compose(networks, [("wide", 0, 1), ("wide", 2, 4)], 3)
        assert initialize_stitches(assembly, networks, images) == []

    def test_another_repository(self) -> None:
        networks, (images, _) = shared_repository(), problem(8)
        assembly = pa.Assembly.compose(networks, [("wide", 0, 1), ("deep", 2, 5)], 3)
        other = pa.Repository({"else": repository().original("wide")}, torch.zeros(1, 3, 8, 8))
        with pytest.raises(UnknownOptionError, match="deep"):
            initialize_stitches(assembly, other, images)
        with pytest.raises(TensorError, match="no images"):
            initialize_stitches(assembly, networks, images[:0])
