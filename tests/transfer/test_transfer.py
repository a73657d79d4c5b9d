from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import pyassemble as pa
from pyassemble.transfer import METHODS
from tests.networks import build, images_for, same_state, scramble, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CNNS = [
    "timm:resnet18", "timm:efficientnet_b0", "timm:mobilenetv3_small_050", "timm:regnety_002", "timm:densenet121",
    "timm:nfnet_l0", "timm:resnetv2_50", "timm:mixnet_s", "timm:ghostnet_100", "timm:hrnet_w18_small", "timm:dla34",
    "timm:rexnet_100", "timm:repvgg_a0", "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
    "torchvision:googlenet", "torchvision:mnasnet0_5", "torchvision:resnext50_32x4d",
]  # fmt: skip
TRANSFORMERS = [
    "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224", "timm:convnext_atto", "timm:mixer_s32_224",
    "timm:cait_xxs24_224", "timm:levit_128s", "timm:mobilevit_xxs", "timm:poolformer_s12", "timm:xcit_nano_12_p8_224",
    "timm:deit_tiny_distilled_patch16_224", "torchvision:vit_b_32", "torchvision:swin_v2_t",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "standardization"),
    [(name, "blocks") for name in CNNS] + [(name, "graph") for name in TRANSFORMERS + CNNS[:4]],
)
def test_identity_transfer_gives_the_same_bits_and_undo_takes_them_back(name: str, standardization: str) -> None:
    source, target = build(name, seed=1).eval(), build(name, seed=2).eval()
    source_before, before = snapshot(source), snapshot(target)
    images = images_for(source)
    with torch.no_grad():
        expected = source(images)
        assert not any(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))
        report = pa.transfer(source, target, standardization=standardization)
        assert torch.equal(target(images), expected)
    assert report.coverage == 1.0
    assert report.untouched == ()
    assert same_state(source, source_before)
    report.undo()
    assert same_state(target, before)
    report.undo()
    assert same_state(target, before)


def crop(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SPEC 1.5, element by element in every dimension."""
    if source.dim() == 0:
        return source
    result = target.clone()
    offsets = [(max(0, (s - t) // 2), max(0, (t - s) // 2), min(s, t))
               for s, t in zip(source.shape, target.shape, strict=True)]  # fmt: skip
    inside = torch.cartesian_prod(*[torch.arange(n) for _, _, n in offsets]).reshape(-1, len(offsets))
    for index in inside.tolist():
        to = tuple(i + o[1] for i, o in zip(index, offsets, strict=True))
        of = tuple(i + o[0] for i, o in zip(index, offsets, strict=True))
        result[to] = source[of]
    return result


class Small(nn.Module):
    """A network of chosen widths with every kind of scored tensor."""

    def __init__(self, width: int, kernel: int, classes: int, seed: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, kernel)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.ConvTranspose2d(width, width + 1, 2)
        self.line = nn.Conv1d(width, width + 2, 3, bias=False)
        self.head = nn.Linear(width + 2, classes)
        scramble(self, seed)


@pytest.mark.parametrize(("wide", "narrow"), [((8, 5, 7), (5, 3, 4)), ((5, 3, 4), (8, 5, 7)), ((6, 4, 9), (7, 2, 4))])
def test_every_written_region_is_the_centre_crop(wide: tuple[int, int, int], narrow: tuple[int, int, int]) -> None:
    source, target = Small(*wide, seed=1), Small(*narrow, seed=2)
    before, given = snapshot(target), snapshot(source)
    report = pa.transfer(source, target)
    after = target.state_dict()
    assert {record.target for record in report.tensors} == set(before)
    for record in report.tensors:
        assert record.source == record.target
        torch.testing.assert_close(
            after[record.target], crop(given[record.source], before[record.target]), rtol=0, atol=0
        )
        changed = (after[record.target] != before[record.target]).sum()
        assert changed <= record.written == record.covered * before[record.target].numel()
    total = sum(tensor.numel() for tensor in before.values())
    assert report.coverage == pytest.approx(sum(record.written for record in report.tensors) / total)
    report.undo()
    assert same_state(target, before)


def test_real_networks_of_different_size_receive_centre_crops() -> None:
    source, target = build("timm:mobilenetv3_small_075", seed=1), build("timm:mobilenetv3_small_100", seed=2)
    before, given = snapshot(target), snapshot(source)
    report = pa.transfer(source, target)
    after = target.state_dict()
    written = {record.target: record for record in report.tensors}
    assert 0.3 < report.coverage < 1
    assert set(report.untouched) == set(before) - set(written)
    for name, tensor in after.items():
        if name not in written:
            assert torch.equal(tensor, before[name])
            continue
        record = written[name]
        region = record.target_region
        torch.testing.assert_close(tensor[region], given[record.source][record.source_region], rtol=0, atol=0)
        untouched = torch.ones(tensor.shape, dtype=torch.bool)
        untouched[region] = False
        assert torch.equal(tensor[untouched], before[name][untouched])
    with torch.no_grad():
        assert torch.isfinite(target.eval()(images_for(target))).all()
    report.undo()
    assert same_state(target, before)


def test_buffers_stay_behind_on_request() -> None:
    source, target = Small(4, 3, 2, seed=1), Small(4, 3, 2, seed=2)
    before = snapshot(target)
    report = pa.transfer(source, target, buffers=False)
    assert report.untouched == ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in report.untouched)


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_reports_what_a_transfer_does(method: str) -> None:
    source, target = Small(8, 5, 7, seed=1), Small(5, 3, 9, seed=2)
    before = snapshot(target)
    planned = pa.transfer(source, target, method=method, dry_run=True)
    assert same_state(target, before)
    assert planned.dry_run
    planned.undo()
    assert same_state(target, before)
    done = pa.transfer(source, target, method=method)
    assert [(r.source, r.target, r.written) for r in planned.tensors] == [
        (r.source, r.target, r.written) for r in done.tensors
    ]
    assert planned.coverage == done.coverage
    assert planned.untouched == done.untouched
    assert not same_state(target, before)


def test_a_dry_run_needs_no_values() -> None:
    source, target = build("timm:efficientnet_b0", meta=True), build("timm:efficientnet_b2", meta=True)
    report = pa.transfer(source, target, dry_run=True)
    assert report.alignment.pairs == pa.align(source, target).pairs
    assert 0.3 < report.coverage < 0.9
    assert "would be written" in str(report)


def test_full_repeats_source_channels_around_the_centre() -> None:
    source, target = (
        nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7)),
    )
    scramble(source, 1)
    before = snapshot(target)
    report = pa.transfer(source, target, method="full", seed=5)
    weight, given = target[0].weight, source[0].weight
    assert report.coverage == 1.0
    torch.testing.assert_close(weight[2:5, 1:3, 1:2, 1:2], given)  # the source, whole, in the centre
    output = next(record for record in report.tensors if record.target == "0.weight").source_region[0]
    # The bias follows the weight's output channels; every output of the target is one of the source's.
    assert torch.equal(target[0].bias, source[0].bias[output])
    for row in weight.sum((1, 2, 3)).isnan():
        assert not row
    assert all(any(torch.equal(value, other) for other in source[0].bias) for value in target[0].bias)
    again = nn.Sequential(nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7))
    pa.transfer(source, again, method="full", seed=5)
    assert torch.equal(again[0].weight, weight)
    pa.transfer(source, again, method="full", seed=6)
    assert not torch.equal(again[0].weight, weight)
    report.undo()
    assert same_state(target, before)


def test_magnitude_keeps_the_heaviest_channels() -> None:
    source, target = (
        nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)),
    )
    scramble(source, 1)
    pa.transfer(source, target, method="magnitude")
    weight = source[0].weight.detach()
    out = weight.abs().sum((1, 2, 3)).topk(5).indices.sort().values
    inputs = weight[out].abs().sum((0, 2, 3)).topk(4).indices.sort().values
    assert torch.equal(target[0].weight, weight[out][:, inputs])
    assert torch.equal(target[0].bias, source[0].bias[out])
    # A batch norm has no inputs: its own largest weights lead, and its statistics follow them.
    kept = source[1].weight.abs().topk(5).indices.sort().values
    assert torch.equal(target[1].weight, source[1].weight[kept])
    assert torch.equal(target[1].running_var, source[1].running_var[kept])


def test_magnitude_starts_at_zero_where_the_source_is_smaller() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(5, 4)
    before = snapshot(target)
    pa.transfer(source, target, method="magnitude")
    assert torch.equal(target.weight[:2, :3], source.weight)
    assert torch.equal(target.bias[:2], source.bias)
    assert torch.equal(target.weight[2:], before["weight"][2:])


@pytest.mark.parametrize(
    "make", [lambda n, m: nn.Linear(n, m), lambda n, m: nn.Conv2d(n, m, 3), lambda n, m: nn.ConvTranspose2d(n, m, 3)]
)
def test_clip_norm_keeps_the_variance_of_outputs(make: Callable[[int, int], nn.Module]) -> None:
    source, target, clipped = make(6, 9), make(11, 13), make(11, 13)
    clipped.load_state_dict(target.state_dict())
    before = snapshot(target)
    report = pa.transfer(source, target, method="clip_norm")
    pa.transfer(source, clipped)

    def variance(layer: nn.Module) -> float:
        fan_in = layer.weight.numel() / layer.bias.numel()
        return fan_in * float(layer.weight.detach().double().square().mean())

    assert variance(target) == pytest.approx(variance(source), rel=1e-5)
    scale = next(record.scale for record in report.tensors if record.target == "weight")
    torch.testing.assert_close(target.weight, clipped.weight * scale)
    assert torch.equal(target.bias, clipped.bias)
    report.undo()
    assert same_state(target, before)


def test_transposed_convolutions_choose_outputs_in_their_second_dimension() -> None:
    source, target = nn.ConvTranspose2d(4, 8, 2), nn.ConvTranspose2d(4, 5, 2)
    scramble(source)
    pa.transfer(source, target, method="magnitude")
    out = source.weight.detach().abs().sum((0, 2, 3)).topk(5).indices.sort().values
    assert torch.equal(target.weight, source.weight[:, out])
    assert torch.equal(target.bias, source.bias[out])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_converted_and_kept(dtype: torch.dtype) -> None:
    source, target = Small(4, 3, 2, seed=1).to(dtype), Small(4, 3, 2, seed=2)
    target.conv.weight.requires_grad_(False)
    pa.transfer(source, target)
    assert target.conv.weight.dtype == torch.float32
    assert not target.conv.weight.requires_grad
    assert target.head.weight.requires_grad
    assert target.head.weight.is_leaf
    torch.testing.assert_close(target.conv.weight, source.conv.weight.float(), rtol=0, atol=0)
    pa.transfer(Small(4, 3, 2, seed=3), source)
    assert source.conv.weight.dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_source_on_another_device() -> None:
    source, target = Small(4, 3, 2, seed=1).cuda(), Small(4, 3, 2, seed=2)
    pa.transfer(source, target)
    assert torch.equal(target.conv.weight, source.conv.weight.cpu())
    pa.transfer(target, source)


def test_sources_known_by_their_tensors(tmp_path: Path) -> None:
    source, by_module = build("timm:resnet18", seed=1), build("timm:resnet34", seed=2)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    torch.save(source.state_dict(), tmp_path / "source.pt")
    expected = pa.transfer(source, by_module)
    assert not expected.alignment.approximate
    for given in (source.state_dict(), str(tmp_path / "source.pt")):
        target = build("timm:resnet34", seed=2)
        report = pa.transfer(given, target)
        assert report.alignment.approximate
        assert report.coverage > 0.9 * expected.coverage
        shared = {
            r.target for r in report.tensors if (r.source, r.target) in {(e.source, e.target) for e in expected.tensors}
        }
        assert len(shared) > 0.9 * len(expected.tensors)
        for name in shared:
            assert torch.equal(target.state_dict()[name], by_module.state_dict()[name])
    target = build("timm:resnet18", seed=2)
    report = pa.transfer(tmp_path / "source.safetensors", target)
    assert report.coverage > 0.98
    report = pa.transfer(source.state_dict(), target, buffers=False)
    assert not any("running" in record.target for record in report.tensors)


def test_tied_weights_take_their_first_match() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.middle = nn.Conv1d(4, 4, 1)
            self.last = nn.Linear(4, 4)
            self.last.weight = self.first.weight

    source = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4))
    target = Tied()
    report = pa.transfer(source, target)
    assert target.last.weight is target.first.weight
    assert torch.equal(target.first.weight, source[0].weight)
    assert torch.equal(target.last.bias, source[2].bias)
    assert [record.target for record in report.tensors if record.target.endswith("weight")] == [
        "first.weight",
        "middle.weight",
    ]
    assert report.coverage == 1.0
    before = snapshot(target)
    target2 = Tied()
    pa.transfer(target, target2)
    assert same_state(target, before)


def test_weights_that_overlap_in_memory_are_written_once() -> None:
    memory = torch.zeros(6, 4)
    target = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    target[0].weight = nn.Parameter(memory[:4])
    target[1].weight = nn.Parameter(memory[2:])
    source = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    report = pa.transfer(source, target)
    assert [record.target for record in report.tensors] == ["0.weight"]
    assert torch.equal(target[0].weight, source[0].weight)


def test_a_network_onto_itself_is_unchanged() -> None:
    network = Small(4, 3, 2, seed=1)
    before = snapshot(network)
    pa.transfer(network, network).undo()
    assert same_state(network, before)


def test_a_source_that_shares_the_targets_memory() -> None:
    target = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    source = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    source[0].weight, source[1].weight = target[1].weight, target[0].weight
    first, second = (layer.weight.detach().clone() for layer in target)
    pa.transfer(source, target)  # swaps: the second must not read what the first wrote
    assert torch.equal(target[0].weight, second)
    assert torch.equal(target[1].weight, first)


def test_undo_restores_nan_payloads_and_negative_zeros() -> None:
    target = nn.Linear(2, 2)
    with torch.no_grad():
        target.weight[0, 0] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)
        target.weight[0, 1] = -0.0
    before = snapshot(target)
    pa.transfer(nn.Linear(2, 2), target).undo()
    assert same_state(target, before)
    assert torch.equal(target.weight.view(torch.int32), before["weight"].view(torch.int32))


def test_undo_keeps_what_was_changed_elsewhere() -> None:
    source, target = nn.Linear(2, 2), nn.Linear(4, 4)
    before = snapshot(target)
    report = pa.transfer(source, target)
    with torch.no_grad():
        target.weight += 1
    report.undo()
    assert torch.equal(target.weight[1:3, 1:3], before["weight"][1:3, 1:3])
    assert torch.equal(target.weight[0], before["weight"][0] + 1)


def test_undo_buffers_are_reused_only_when_their_report_is_gone() -> None:
    targets = [Small(4, 3, 2, seed=i) for i in range(4)]
    befores = [snapshot(target) for target in targets]
    sources = [Small(4, 3, 2, seed=10 + i) for i in range(4)]
    reports = [pa.transfer(source, target) for source, target in zip(sources, targets, strict=True)]
    del reports[1]
    again = pa.transfer(sources[0], targets[1])  # may take over the buffer of the report that is gone
    for i, report in zip((0, 2, 3), reports, strict=True):
        report.undo()
        assert same_state(targets[i], befores[i])
    again.undo()
    assert same_state(targets[1], sources[1].state_dict())


def test_undo_follows_a_target_to_another_dtype_and_back() -> None:
    source, target = Small(4, 3, 2, seed=1), Small(4, 3, 2, seed=2)
    before = snapshot(target)
    report = pa.transfer(source, target)
    target.double()
    report.undo()
    target.float()
    assert same_state(target, before)
