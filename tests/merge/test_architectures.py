"""The algebraic promises of merging (SPEC section 2), on real architectures with random weights and statistics.

All tests of an architecture share one wide student, which each leaves as it found it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import pyassemble as pa
from tests.merge.networks import (
    LARGE,
    QUICK_CONVOLUTIONAL,
    QUICK_SPANNING,
    SLOW_CONVOLUTIONAL,
    SLOW_SPANNING,
    close,
    close_others,
    inputs_of,
    names_of_output_layers,
    release_memory,
    small_images_for,
    teachers,
)
from tests.networks import build, same_state, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = [*QUICK_CONVOLUTIONAL, *QUICK_SPANNING]
SLOW = [*SLOW_CONVOLUTIONAL, *SLOW_SPANNING]
SPANNING = {*QUICK_SPANNING, *SLOW_SPANNING}


@dataclass
class Merging:
    """Two networks of an architecture and the wide student of them."""

    name: str
    networks: list[nn.Module]
    before: list[dict[str, Tensor]]
    images: Tensor
    student: pa.WideStudent


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def merging(request: pytest.FixtureRequest) -> Merging:
    release_memory()  # of the last architecture
    networks = teachers(request.param)
    before = [snapshot(network) for network in networks]
    images = small_images_for(networks[0]).double()
    return Merging(request.param, networks, before, images, pa.merge(networks, images))


@pytest.fixture
def student(merging: Merging) -> Iterator[pa.WideStudent]:
    """The shared student, whose gates and statistics a test may change, but not its weights."""
    shared = merging.student
    changing = [*shared.gates.parameters(), *shared.buffers()]
    before = [tensor.detach().clone() for tensor in changing]
    yield shared
    shared.eval()
    shared.zero_grad(set_to_none=True)
    with torch.no_grad():
        for tensor, value in zip(changing, before, strict=True):
            tensor.copy_(value)


def test_enough_architectures() -> None:
    assert len({*QUICK, *SLOW}) >= 40
    assert len({*QUICK, *SLOW} - {*LARGE}) >= 40


def test_mean_of_teachers(merging: Merging, student: pa.WideStudent) -> None:
    first, second = merging.networks
    with torch.no_grad(), student.opened():
        assert close(student(merging.images), (first(merging.images) + second(merging.images)) / 2)
    for network, state in zip(merging.networks, merging.before, strict=True):
        assert same_state(network, state)


def test_one_teachers_features(merging: Merging, student: pa.WideStudent) -> None:
    with torch.no_grad():
        for group in student.gate_groups.values():
            group.loc.fill_(100.0)  # open, in evaluation as well
    layers = names_of_output_layers(merging.networks[0], merging.images)
    fresh = build(merging.name, seed=7).double()
    for teacher, network in enumerate(merging.networks):
        keep = {group: torch.nonzero(gates.teacher == teacher)[:, 0] for group, gates in student.gate_groups.items()}
        compressed = student.compress(keep)
        assert type(compressed) is type(network)
        expected = inputs_of(layers, network, merging.images)
        for found, features in zip(inputs_of(layers, compressed, merging.images), expected, strict=True):
            assert close(found, features)
        fresh.load_state_dict(compressed.state_dict(), strict=True)


def test_compressed_by_loc_is_wide_with_other_gates_closed(
    merging: Merging, student: pa.WideStudent, record_property: pytest.RecordProperty
) -> None:
    generator = torch.Generator().manual_seed(0)
    keep = {}
    with torch.no_grad():
        for name, group in student.gate_groups.items():
            group.loc.normal_(1, 0.5, generator=generator)
            keep[name] = torch.sort(torch.topk(group.loc, len(group.loc) // 2).indices).values
    selection = student.selection()
    assert all(torch.equal(selection[name], kept) for name, kept in keep.items())
    close_others(student, keep)
    compressed = student.compress()
    with torch.no_grad():
        exact, seen = student(merging.images), compressed(merging.images)
    if merging.name in SPANNING:
        # Statistics over the channels that remain are others; by how much is said.
        record_property("deviation", float((seen - exact).abs().max() / exact.abs().max()))
        assert torch.isfinite(seen).all()
    else:
        assert close(seen, exact)


def test_compressed_to_other_widths(merging: Merging, student: pa.WideStudent) -> None:
    generator = torch.Generator().manual_seed(1)
    keep = {}
    for name, group in student.gate_groups.items():
        count = round(len(group.loc) * 2 / 3)
        keep[name] = torch.randperm(len(group.loc), generator=generator)[:count]
    close_others(student, keep)
    compressed = student.compress(keep)
    with torch.no_grad():
        exact, seen = student(merging.images), compressed(merging.images)
    if merging.name in SPANNING:
        assert torch.isfinite(seen).all()
    else:
        assert close(seen, exact)


def test_off_diagonal_blocks_learn(merging: Merging, student: pa.WideStudent) -> None:
    learning: dict[nn.Parameter, int] = {}

    def note(parameter: nn.Parameter) -> None:
        learning[parameter] = int(((parameter == 0) & (parameter.grad != 0)).sum())
        parameter.grad = None  # all of them at once take as much memory as the student

    handles = [weight.register_post_accumulate_grad_hook(note) for weight in student.weight_parameters()]
    try:
        student.train()
        (student(merging.images).square().mean() + student.sparsity_loss()).backward()
    finally:
        for handle in handles:
            handle.remove()
    without = [name for name, parameter in student.graph.named_parameters() if parameter not in learning]
    assert not without
    assert sum(learning.values()) > 0
    assert all(group.loc.grad.abs().sum() > 0 for group in student.gate_groups.values())


def test_saved_and_loaded(merging: Merging, student: pa.WideStudent) -> None:
    if merging.name in LARGE:
        pytest.skip("two wide students of it take more than 10 GB")
    other = pa.merge(merging.networks, merging.images, seed=5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    other.load_state_dict(student.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other(merging.images), student(merging.images))
