"""What a transfer refuses, that it says why, and that the target stays as it was."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import pyassemble as pa
from pyassemble import PyAssembleError
from pyassemble.errors import (
    EmptyNetworkError,
    NoCommonLayerError,
    TensorError,
    UnknownOptionError,
    UnsupportedNetworkError,
    WeightsFileError,
)
from tests.networks import same_state, scramble, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator


def network(seed: int = 0) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 2)
    )
    scramble(layers, seed)
    return layers


def refused(source: object, target: nn.Module, error: type[PyAssembleError], match: str, **options: object) -> None:
    before = snapshot(target)
    with pytest.raises(error, match=match):
        pa.transfer(source, target, **options)
    assert same_state(target, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["3.weight", "5.bias", "1.running_var"])
def test_non_finite_weights(name: str, value: float) -> None:
    source = network(1)
    source.state_dict()[name].view(-1)[1] = value
    refused(source, network(), TensorError, rf"source tensor {name} of shape \(.*\) holds 1 NaN or infinite")


def test_large_finite_weights_are_not_mistaken_for_infinite_ones() -> None:
    source = nn.Linear(4, 4)
    nn.init.constant_(source.weight, 3e38)
    target = nn.Linear(4, 4)
    pa.transfer(source, target)
    assert torch.equal(source.weight, target.weight)


def test_values_beyond_the_targets_range() -> None:
    source = network(1)
    with torch.no_grad():
        source[3].weight[0] = 1e6
    refused(source, network().half(), TensorError, r"source tensor 3\.weight .*float32.* beyond the range .*float16")


def test_meta_networks() -> None:
    with torch.device("meta"):
        hollow = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    refused(hollow, network(), TensorError, r"source tensor 0\.weight of shape \(4, 3, 3, 3\) is on the meta device")
    with pytest.raises(TensorError, match=r"target tensor 0\.weight .* meta device"):
        pa.transfer(network(), hollow)
    with pytest.raises(TensorError, match=r"magnitude.*0\.weight"):
        pa.transfer(hollow, network(), method="magnitude", dry_run=True)


def test_empty_networks_and_nothing_in_common() -> None:
    refused(nn.Sequential(nn.ReLU()), network(), EmptyNetworkError, "source network Sequential")
    refused({}, network(), EmptyNetworkError, "source network dict")
    refused(network(), nn.Sequential(nn.LayerNorm(3)), EmptyNetworkError, "target network Sequential.*graph")
    refused(nn.Linear(2, 2), nn.Conv2d(2, 2, 1), NoCommonLayerError, "source has Linear; the target has Conv2d")


def test_unknown_method() -> None:
    refused(
        network(),
        network(),
        UnknownOptionError,
        "method 'crop'; known: clip, clip_norm, full, magnitude",
        method="crop",
    )


@pytest.mark.parametrize("target", [None, {}, "resnet18"])
def test_targets_that_are_no_module(target: object) -> None:
    with pytest.raises(UnsupportedNetworkError, match=r"target must be a torch\.nn\.Module"):
        pa.transfer(network(), target)


def test_lazy_networks() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    refused(lazy, network(), UnsupportedNetworkError, "'0'.*lazy")
    with pytest.raises(UnsupportedNetworkError, match=r"'0'.*lazy"):
        pa.transfer(network(), lazy)


def test_quantized_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.randn(2, 6), 0.1, 0, torch.qint8)
    refused({"weight": quantized}, nn.Linear(6, 2), TensorError, "source tensor weight .* is quantized")


def test_integer_weights() -> None:
    refused(
        {"weight": torch.ones(2, 6, dtype=torch.int8)}, nn.Linear(6, 2), TensorError, r"weight .* holds torch\.int8"
    )


def test_sparse_weights() -> None:
    refused({"weight": torch.eye(4).to_sparse()}, nn.Linear(4, 4), TensorError, "layout torch.sparse_coo")


def test_complex_weights() -> None:
    source, target = nn.Linear(3, 3, dtype=torch.complex64), nn.Linear(3, 3)
    refused(source, target, TensorError, "complex")
    onto = nn.Linear(3, 3, dtype=torch.complex128)
    pa.transfer(source, onto)
    torch.testing.assert_close(onto.weight, source.weight.to(torch.complex128))
    pa.transfer(source, onto, method="clip_norm")


def test_inference_mode_targets() -> None:
    with torch.inference_mode():
        target = nn.Linear(3, 3)
    refused(nn.Linear(3, 3), target, TensorError, "weight .* inference mode")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    target = network()
    good = tmp_path / "good.safetensors"
    save_file(network(1).state_dict(), good)
    content = good.read_bytes()
    for name, damaged in {
        "cut": content[:-9],
        "header": content[:20],
        "empty": b"",
        "foreign": b"GIF89a" + content,
    }.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        refused(path, target, WeightsFileError, f"{name}.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"not a pickle")
    refused(tmp_path / "bad.pt", target, WeightsFileError, r"bad\.pt")
    refused(tmp_path / "absent.safetensors", target, WeightsFileError, r"absent\.safetensors")


class Evil:
    """Would leave a mark if it were unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2), "evil": Evil(tmp_path / "mark")}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", nn.Linear(2, 2), WeightsFileError, r"evil\.pt")
    assert not (tmp_path / "mark").exists()


def test_parametrized_sources_give_their_computed_weight() -> None:
    source, target = nn.Linear(4, 4), nn.Linear(4, 4)
    parametrizations.orthogonal(source)
    pa.transfer(source, target)
    torch.testing.assert_close(target.weight, source.weight, rtol=0, atol=0)


@pytest.mark.parametrize("standardization", ["blocks", "graph"])
def test_reading_a_parametrized_source_does_not_advance_its_state(standardization: str) -> None:
    source = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4))).train()
    before = snapshot(source)
    pa.transfer(source, nn.Sequential(nn.Linear(4, 4)), standardization=standardization)
    assert same_state(source, before)
    assert all(module.training for module in source.modules())


@pytest.mark.parametrize("method", ["clip", "clip_norm", "full", "magnitude"])
def test_parametrized_targets_are_set_through_their_inverse(method: str) -> None:
    source, target, plain = nn.Conv2d(2, 3, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(4, 5, 3)
    parametrizations.weight_norm(target)
    with torch.no_grad():
        plain.weight.copy_(target.weight)
        plain.bias.copy_(target.bias)
    before = snapshot(target)
    originals = list(target.parametrizations.weight.parameters())
    report = pa.transfer(source, target, method=method)
    pa.transfer(source, plain, method=method)
    torch.testing.assert_close(target.weight, plain.weight)
    assert all(a is b for a, b in zip(originals, target.parametrizations.weight.parameters(), strict=True))
    report.undo()
    assert same_state(target, before)


class OneWay(nn.Module):
    """A parametrization that cannot be inverted."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.exp()


def test_parametrizations_without_an_inverse() -> None:
    target = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    parametrize.register_parametrization(target[1], "weight", OneWay())
    refused(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        target,
        TensorError,
        r"1\.weight is parametrized by OneWay.*right_inverse",
    )


def test_weights_computed_by_hooks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm is deprecated, and still in use
        hooked = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))
    refused(
        nn.Sequential(nn.Linear(3, 3)),
        hooked,
        TensorError,
        r"0\.weight is computed by a hook from .*weight_g.*parametrizations",
    )


def test_expanded_targets() -> None:
    target = network()
    target[5].weight = nn.Parameter(torch.zeros(2, 1).expand(2, 6))
    refused(network(1), target, TensorError, r"5\.weight of shape \(2, 6\) is expanded")


@pytest.mark.parametrize(("raised", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (RuntimeError, TensorError)])
def test_an_error_while_writing_puts_everything_back(
    raised: type[BaseException], seen: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYASSEMBLE_BACKEND", "numba")  # writes one by one
    target, writes = network(), 0
    before = snapshot(target)
    copy_ = torch.Tensor.copy_
    written = {tensor.data_ptr() for tensor in target.state_dict().values()}

    def failing(self: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        nonlocal writes
        writes += self.data_ptr() in written
        if writes == 4:
            writes += 1
            raise raised
        return copy_(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", failing)
    with pytest.raises(seen):
        pa.transfer(network(1), target)
    monkeypatch.undo()
    assert writes > 4  # some before the error, and those that put them back
    assert not same_state(target, network(1).state_dict())
    assert same_state(target, before)


@pytest.mark.parametrize(("raised", "seen"), [(KeyboardInterrupt, KeyboardInterrupt), (RuntimeError, TensorError)])
def test_an_interrupt_after_the_core_has_written_puts_everything_back(
    raised: type[BaseException], seen: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = network()
    before = snapshot(target)
    written = []

    def failing(tensors: list[torch.Tensor]) -> None:
        written.append(not same_state(target, before))
        raise raised

    monkeypatch.setattr(sys.modules["pyassemble.transfer.overwritten"], "increment_version", failing)
    with pytest.raises(seen):
        pa.transfer(network(1), target)
    assert written == [True]
    assert same_state(target, before)


def test_a_source_that_another_thread_mends_meanwhile_is_refused_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = network(1), network()
    before = snapshot(target)
    last = list(source.parameters())[-1]
    last.data.view(-1)[-1] = float("nan")

    def mended(slot: object) -> None:
        last.data.view(-1)[-1] = 0.0

    monkeypatch.setattr(sys.modules["pyassemble.transfer.transfer"], "refuse_nonfinite", mended)
    with pytest.raises(TensorError, match="was changed while it was read"):
        pa.transfer(source, target)
    assert same_state(target, before)


def test_autograd_notices_that_a_saved_weight_was_overwritten() -> None:
    target = network()
    loss = target(torch.randn(2, 3, 5, 5)).square().sum()
    pa.transfer(network(1), target)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_compiled_target_computes_with_the_new_weights() -> None:
    source, target = network(1).eval(), network(2).eval()
    compiled = torch.compile(target, backend="eager")
    images = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        compiled(images)
        report = pa.transfer(source, compiled)
        assert torch.equal(compiled(images), source(images))
    assert {record.target for record in report.tensors} == set(target.state_dict())


@pytest.fixture
def one_process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_target_under_ddp(one_process_group: None) -> None:
    source, target = network(1), network(2)
    wrapped = nn.parallel.DistributedDataParallel(target)
    report = pa.transfer(source, wrapped)
    assert report.coverage == 1.0
    assert same_state(target, source.state_dict())
    wrapped(torch.randn(2, 3, 5, 5)).sum().backward()
    assert target[0].weight.grad is not None


def test_autograd_sees_the_write() -> None:
    target = nn.Linear(3, 3)
    loss = (target.weight * target(torch.ones(1, 3))).sum()
    pa.transfer(nn.Linear(3, 3), target)
    # The saved weight is gone; a silent wrong gradient would be worse than this error.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_errors_are_the_packages_own_and_of_the_usual_kind() -> None:
    assert issubclass(TensorError, PyAssembleError)
    assert issubclass(TensorError, ValueError)
    assert issubclass(UnsupportedNetworkError, TypeError)


def test_the_source_is_never_written() -> None:
    source = network(1)
    before, kept = snapshot(source), copy.deepcopy(source)
    for method in ("clip", "clip_norm", "full", "magnitude"):
        pa.transfer(source, network(2), method=method)
    assert same_state(source, before)
    assert same_state(kept, before)


def settled(*sizes: int) -> nn.Sequential:
    layers = [parametrizations.spectral_norm(nn.Linear(a, b)) for a, b in pairwise(sizes)]
    return nn.Sequential(*layers)


def test_a_power_iteration_settles_on_the_new_weight() -> None:
    source, target = settled(16, 16, 4), settled(16, 16, 4)
    for _ in range(50):
        source.train()(torch.randn(2, 16))
    before = snapshot(target)
    images = torch.randn(8, 16)
    report = pa.transfer(source.eval(), target.eval())
    with torch.no_grad():
        torch.testing.assert_close(target(images), source(images), rtol=1e-2, atol=1e-2)
    report.undo()
    assert same_state(target, before)


def test_a_parametrization_that_cannot_take_the_weight() -> None:
    target = nn.Sequential(nn.Linear(8, 8), parametrizations.orthogonal(nn.Linear(8, 8)))
    refused(network_of_linears(8), target, TensorError, r"1\.weight of shape \(8, 8\) is parametrized by _Orthogonal")


def network_of_linears(size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, size), nn.Linear(size, size))


def test_a_stateful_parametrization_is_undone_with_its_state() -> None:
    source, target = (parametrizations.orthogonal(nn.Linear(16, 16)) for _ in range(2))
    before = snapshot(target)
    report = pa.transfer(source, target)
    torch.testing.assert_close(target.weight, source.weight, rtol=1e-4, atol=1e-5)
    assert report.coverage == 1.0
    report.undo()
    assert same_state(target, before)


def test_an_error_in_a_later_layer_leaves_earlier_parametrizations_alone() -> None:
    target = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 8))
    parametrize.register_parametrization(target[1], "weight", OneWay())
    source = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 8))
    refused(source, target, TensorError, r"1\.weight .*right_inverse")


class Picky(nn.Module):
    """A parametrization that refuses values once it is in place."""

    picky = False

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        if self.picky:
            raise ValueError("not this one")
        return weight


def test_a_parametrization_that_refuses_the_value() -> None:
    target = nn.Linear(2, 2)
    parametrize.register_parametrization(target, "weight", Picky())
    target.parametrizations.weight[0].picky = True
    refused(nn.Linear(2, 2), target, TensorError, r"weight is parametrized by Picky, which refuses it \(not this one")


def test_a_default_device_does_not_move_the_undo() -> None:
    target = network()
    before = snapshot(target)
    for method in ("clip", "full"):
        with torch.device("meta"):
            report = pa.transfer(network_on_cpu(), target, method=method)
        report.undo()
        assert same_state(target, before)


def network_on_cpu() -> nn.Sequential:
    with torch.device("cpu"):
        return network(1)


@pytest.mark.parametrize("method", ["clip", "clip_norm", "full", "magnitude"])
def test_every_method_names_what_it_cannot_read(method: str) -> None:
    with torch.device("meta"):
        hollow = nn.Linear(6, 2)
    refused(hollow, nn.Linear(6, 2), TensorError, "source tensor weight .*meta", method=method)
    refused({"weight": torch.eye(4).to_sparse()}, nn.Linear(4, 4), TensorError, "layout", method=method)
    target = nn.Linear(4, 4)
    target.weight = nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False)
    with pytest.raises(TensorError, match=r"target tensor weight .*layout"):
        pa.transfer(nn.Linear(4, 4), target, method=method)


def test_eight_bit_floats() -> None:
    source = {"weight": torch.randn(4, 4).to(torch.float8_e4m3fn)}
    target = nn.Linear(4, 4)
    pa.transfer(source, target)
    assert torch.equal(target.weight, source["weight"].float())


def test_lazy_and_parametrized_state_dicts() -> None:
    refused(nn.Sequential(nn.LazyLinear(2)).state_dict(), network(), UnsupportedNetworkError, r"'0\.weight' is lazy")
    source = nn.Sequential(nn.Linear(6, 2), parametrizations.weight_norm(nn.Linear(6, 2)))
    refused(source.state_dict(), network(), UnsupportedNetworkError, r"1\.parametrizations\.weight\.original0")


@pytest.mark.parametrize("seed", ["a", None, 1.5])
def test_seeds(seed: object) -> None:
    refused(network(1), network(), UnknownOptionError, "seed .*integer.*Generator", seed=seed)


def test_clip_norm_refuses_to_overflow() -> None:
    source, target = nn.Linear(8, 4), nn.Linear(128, 64, dtype=torch.float16)
    nn.init.constant_(source.weight, 30000.0)
    nn.init.zeros_(target.weight)
    refused(
        source,
        target,
        TensorError,
        r"weight of shape \(64, 128\) .*float16.* cannot be scaled by 4",
        method="clip_norm",
    )


def test_integer_and_mask_buffers_stay_with_the_target() -> None:
    class Masked(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 4, 3)
            self.register_buffer("index", torch.arange(9))
            self.register_buffer("mask", torch.rand(4, 3, 3, 3))

    source, target = Masked(), Masked()
    mask = target.mask.clone()
    report = pa.transfer(source, target)
    assert torch.equal(target.weight, source.weight)
    assert torch.equal(target.mask, mask)
    assert report.coverage == 1.0


def test_a_clip_norm_dry_run_knows_its_scales() -> None:
    source, target = nn.Linear(6, 4), nn.Linear(12, 8)
    before = snapshot(target)
    planned = pa.transfer(source, target, method="clip_norm", dry_run=True)
    assert same_state(target, before)
    done = pa.transfer(source, target, method="clip_norm")
    assert [record.scale for record in planned.tensors] == [record.scale for record in done.tensors]
    assert done.tensors[0].scale != 1.0
