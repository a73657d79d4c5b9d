"""The algebraic promises of merging (SPEC section 2), on real architectures with random weights and statistics."""

from __future__ import annotations

import pytest
import torch

import pyassemble as pa
from tests.merge.networks import (
    QUICK_CONVOLUTIONAL,
    QUICK_SPANNING,
    SLOW_CONVOLUTIONAL,
    SLOW_SPANNING,
    close,
    close_others,
    half,
    inputs_of_output_layers,
    merged,
)
from tests.networks import build, same_state, snapshot

CONVOLUTIONAL = [*QUICK_CONVOLUTIONAL, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_CONVOLUTIONAL)]
SPANNING = [*QUICK_SPANNING, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_SPANNING)]


def test_enough_architectures() -> None:
    assert len({*QUICK_CONVOLUTIONAL, *SLOW_CONVOLUTIONAL, *QUICK_SPANNING, *SLOW_SPANNING}) >= 40


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *SPANNING])
def test_mean_of_teachers_and_one_teachers_features(name: str) -> None:
    networks, images, student = merged(name)
    before = [snapshot(network) for network in networks]
    with torch.no_grad(), student.opened():
        mean = (networks[0](images) + networks[1](images)) / 2
        assert close(student(images), mean)

    with torch.no_grad():
        for group in student.gate_groups.values():
            group.loc.fill_(100.0)  # open, in evaluation as well
    for teacher, network in enumerate(networks):
        keep = {group: torch.nonzero(gates.teacher == teacher)[:, 0] for group, gates in student.gate_groups.items()}
        compressed = student.compress(keep)
        assert type(compressed) is type(network)
        for features, expected in zip(
            inputs_of_output_layers(compressed, images), inputs_of_output_layers(network, images), strict=True
        ):
            assert close(features, expected)
        fresh = build(name, seed=7).double()
        fresh.load_state_dict(compressed.state_dict(), strict=True)
    assert all(same_state(network, state) for network, state in zip(networks, before, strict=True))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_compressed_is_wide_with_other_gates_closed(name: str) -> None:
    _, images, student = merged(name)
    keep = half(student)
    close_others(student, keep)
    compressed = student.compress(keep)
    with torch.no_grad():
        assert close(compressed(images), student(images))


@pytest.mark.parametrize("name", SPANNING)
def test_norms_across_channels_deviate_and_by_how_much_is_said(
    name: str, record_property: pytest.RecordProperty
) -> None:
    _, images, student = merged(name)
    keep = half(student)
    close_others(student, keep)
    compressed = student.compress(keep)
    with torch.no_grad():
        exact, seen = student(images), compressed(images)
    record_property("deviation", float((seen - exact).abs().max() / exact.abs().max()))
    assert torch.isfinite(seen).all()


@pytest.mark.parametrize("name", [*QUICK_CONVOLUTIONAL, *QUICK_SPANNING])
def test_off_diagonal_blocks_learn(name: str) -> None:
    _, images, student = merged(name)
    student.train()
    output = student(images)
    (output.square().mean() + student.sparsity_loss()).backward()
    without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
    assert not without
    assert all(group.loc.grad.abs().sum() > 0 for group in student.gate_groups.values())
    learning = 0
    for parameter in student.weight_parameters():
        off = (parameter == 0) & (parameter.grad != 0)
        learning += int(off.sum())
    assert learning > 0


@pytest.mark.parametrize("name", [*QUICK_CONVOLUTIONAL, *QUICK_SPANNING])
def test_saved_and_loaded(name: str) -> None:
    networks, images, student = merged(name)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.01)
    other = pa.merge(networks, images, seed=5)
    other.load_state_dict(student.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other(images), student(images))
