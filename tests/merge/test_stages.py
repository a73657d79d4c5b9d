"""Widening group by group: within its bound of memory, and as exact as widening everything at once."""

from __future__ import annotations

import copy
import gc
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

import pyassemble as pa
from tests.merge.networks import (
    QUICK_CONVOLUTIONAL,
    QUICK_SPANNING,
    SLOW_CONVOLUTIONAL,
    SLOW_SPANNING,
    TOLERANCE,
    close,
    release_memory,
    small_images_for,
    teachers,
)
from tests.merge.test_merge import PaddedResNet, pair
from tests.merge.test_train import QUICK, Small, problem, run, same, without_times
from tests.networks import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMORY = 1.3
#: Every architecture several times over takes its time.
QUICK_ARCHITECTURES = [
    "timm:mobilenetv3_small_050",
    "timm:regnety_002",
    "timm:ghostnet_050",
    "timm:test_vit",
    "torchvision:shufflenet_v2_x0_5",
]
SPANNING = [*QUICK_SPANNING, *SLOW_SPANNING]
#: Every third of the slow ones: a single one of them may take minutes.
SOME = (*QUICK_CONVOLUTIONAL, *SLOW_CONVOLUTIONAL[2::3], *QUICK_SPANNING, *SLOW_SPANNING[1::3])
#: In float64 and widened, its linear layers alone take many gigabytes.
TOO_LARGE = "torchvision:alexnet"
ALL = [name for name in SOME if name != TOO_LARGE]
ARCHITECTURES = [name if name in QUICK_ARCHITECTURES else pytest.param(name, marks=pytest.mark.slow) for name in ALL]


def size_of(networks: list[nn.Module]) -> int:
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def choose_at_random(student: pa.WideStudent, generator: torch.Generator) -> dict[str, Tensor]:
    """Shuts the gates of a random half of the present stage's units, and gives the others' numbers."""
    keep = {}
    with torch.no_grad():
        for name in student.stages[student.stage]:
            group = student.gate_groups[name]
            keep[name] = torch.randperm(len(group.loc), generator=generator)[: round(group.keep * len(group.loc))]
            shut = torch.ones(len(group.loc), dtype=torch.bool)
            shut[keep[name]] = False
            group.loc.normal_(1, 0.1, generator=generator)
            group.loc[shut] = -100.0
    return keep


@pytest.fixture
def _memory_released() -> Iterator[None]:
    yield
    release_memory()


@pytest.mark.usefixtures("_memory_released")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_stage_is_within_the_bound_and_goes_on_where_the_last_one_ended(name: str) -> None:
    networks = teachers(name)
    images = small_images_for(networks[0]).double()
    student = pa.merge(networks, images, memory=MEMORY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), student.opened():
        assert close(student(images), (networks[0](images) + networks[1](images)) / 2)
    assert sorted(name for stage in student.stages for name in stage) == sorted(student.gate_groups)
    while student.stage < len(student.stages):
        assert size_of([student]) <= MEMORY * size_of(networks)
        keep = choose_at_random(student, generator)
        with torch.no_grad():
            for weight in student.weight_parameters():  # weights between teachers are learned by now
                noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
                weight.add_(0.01 * weight.abs().mean() * noise)
            before = student(images)
            student.next_stage(keep)
            with student.opened():
                after = student(images)
        # Statistics over the channels that remain are others, as at the end of widening everything at once.
        assert close(after, before, torch.inf if name in SPANNING else TOLERANCE)
    assert not student.gate_parameters()
    compressed = student.compress()
    assert type(compressed) is type(networks[0])
    build(name, seed=7).double().load_state_dict(compressed.state_dict(), strict=True)
    with torch.no_grad():
        assert close(compressed(images), student(images))


@pytest.mark.parametrize("options", [{"count": 3}, {"keep": 0.75}])
def test_several_teachers_and_other_ratios(options: dict[str, Any]) -> None:
    networks = [network.double() for network in pair(PaddedResNet, options.pop("count", 2))]
    images = torch.randn(3, 3, 8, 8).double()
    student = pa.merge(networks, images, memory=1.2, **options)
    assert len(student.stages) == 2
    while student.stage < len(student.stages):
        assert size_of([student]) <= 1.2 * size_of(networks)
        keep = choose_at_random(student, torch.Generator().manual_seed(1))
        with torch.no_grad():
            before = student(images)
            student.next_stage(keep)
            with student.opened():
                assert close(student(images), before)


class Paired(nn.Module):
    """Channels of two layers, of different size before them, meet in rows."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.a, self.b, self.head = nn.Linear(3, 64), nn.Linear(64, 16), nn.Linear(3, 16), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.a(F.relu(self.wide(x))), self.b(x)), 1)
        return self.head(F.relu(x.view(x.shape[0], 2, 16)).flatten(1))


def test_a_network_that_cannot_be_widened_group_by_group_is_refused_before_training() -> None:
    networks, x = pair(Paired), torch.randn(4, 3)
    pa.merge(networks, x)
    with pytest.raises(pa.UnsupportedOperationError, match="'view'"):
        pa.merge(networks, x, memory=MEMORY)


class Chain(nn.Module):
    """Three layers between groups, one of them so large that it is never affordable with weights between teachers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 8), nn.Linear(8, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        logits: Tensor = self.head(x)
        return logits


def chains() -> list[nn.Module]:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return [Chain().eval() for _ in range(2)]


def test_weights_between_teachers_come_when_there_is_room() -> None:
    student = pa.merge(chains(), torch.randn(4, 2), memory=1.3)
    assert student.stages == [["a", "c"], ["b"]]

    def weights(network: nn.Module) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in network.named_parameters() if "weight" in name}

    shapes = [weights(student.graph)]
    while student.stage < len(student.stages):
        student.next_stage()
        shapes.append(weights(student.graph))
    assert shapes[0]["b.weight"] == (128, 16)  # entered by what is being chosen
    assert shapes[0]["c.blocks.0.weight"] == shapes[0]["c.blocks.1.weight"] == (64, 64)
    assert shapes[1]["b.weight"] == (128, 8)
    assert shapes[1]["c.weight"] == (64, 128)  # one side is chosen: there is room
    assert shapes[2] == weights(Chain())


def test_only_the_present_stages_gates_are_at_work() -> None:
    networks = chains()
    student = pa.merge(networks, torch.randn(4, 2), memory=1.3).train()
    loss = student(torch.randn(8, 2)).square().mean() + student.sparsity_loss()
    loss.backward()
    groups = student.gate_groups
    assert [name for name, group in groups.items() if group.loc.grad is not None] == ["a", "c"]
    assert all(weight.grad is not None for weight in student.weight_parameters())
    expected = sum(groups[name].sparsity_loss().item() for name in ("a", "c"))
    assert student.sparsity_loss().item() == pytest.approx(expected, rel=1e-5)
    off_diagonal = student.graph.get_parameter("b.weight").grad[:64, 8:]
    assert float(off_diagonal.abs().sum()) > 0
    student.next_stage({"a": torch.arange(8)})
    assert student.open_gates()["a"] == [8, 0]
    assert [parameter.shape for parameter in student.gate_parameters()] == [groups["b"].loc.shape]
    student.next_stage()
    assert student.sparsity_loss().item() == 0


def test_compressed_in_the_midst_of_stages() -> None:
    x = torch.randn(16, 2)
    student = pa.merge(chains(), x, memory=1.3)
    choose_at_random(student, torch.Generator().manual_seed(0))
    student.next_stage()
    fixed = student.selection()["a"]
    compressed = student.compress({"b": torch.arange(64)})
    assert type(compressed) is Chain
    assert student.compress({"a": fixed})(x).shape == (16, 3)


def test_a_union_of_other_classes_group_by_group() -> None:
    torch.manual_seed(0)
    networks = []
    for classes in (2, 4):
        network = Chain()
        network.head = nn.Linear(64, classes)
        networks.append(network.eval())
    x = torch.randn(5, 2)
    student = pa.merge(networks, x, head="union", memory=1.3)
    with torch.no_grad(), student.opened():
        assert close(student(x), torch.cat([network(x) for network in networks], 1), 1e-5)
    while student.stage < len(student.stages):
        keep = choose_at_random(student, torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = student(x)
            student.next_stage(keep)
            with student.opened():
                assert close(student(x), before, 1e-5)
    assert student.compress()(x).shape == (5, 6)


def tensors_alive() -> list[Tensor]:
    """All tensors of this process that have a storage: not sparse ones, nor those inside torch.func's transforms."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter) and not thing.is_meta]
    return [tensor for tensor in tensors if tensor.layout is torch.strided and not is_functorch_wrapped_tensor(tensor)]


def bytes_beside(others: list[Tensor]) -> int:
    """Bytes of all storages but those of some tensors."""
    own = {other.untyped_storage().data_ptr() for other in others}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_alive()}
    return sum(size for place, size in storages.items() if place not in own)


def test_what_is_really_allocated_while_training() -> None:
    networks, x = chains(), torch.randn(4, 2)
    own = 2 * 4 * size_of(networks)  # parameters and momentum, float32
    before = tensors_alive()  # held, so that what other tests left is neither freed nor its place used again
    student = pa.merge(networks, x, memory=1.3).train()
    most = 0
    for _ in student.stages:
        parameters = [*student.weight_parameters(), *student.gate_parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
        student(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        most = max(most, bytes_beside(before))
        del optimizer, parameters
        student.next_stage()
    # Beside parameters and their momentum there are the positions of channels, a few numbers each.
    assert most < 1.3 * own + 20_000
    assert most > 1.1 * own  # the measurement sees what is there


@pytest.fixture(scope="module")
def whole() -> pa.MergeResult:
    """What a run that nobody interrupts gives."""
    return run(TestTraining().student(), epochs=6)


class TestTraining:
    def student(self, memory: float | None = 1.25) -> pa.WideStudent:
        return pa.merge([build_small(seed) for seed in (0, 1)], problem(2)[0], memory=memory)

    def test_stages_share_the_epochs(self) -> None:
        student = self.student()
        assert len(student.stages) == 2
        seen: list[float] = []

        def measure(entry: dict[str, Any]) -> None:
            if entry["stage"] == "importance":
                seen.append(size_of([student]) / size_of([build_small(0), build_small(1)]))

        result = run(student, epochs=24, after_epoch=measure)
        learning = [entry for entry in result.history if entry["stage"] == "importance"]
        assert [entry["groups"] for entry in learning] == [stage for stage in student.stages for _ in range(6)]
        assert len(seen) == 12
        assert max(seen) <= 1.25
        lambdas = [entry["lambda"] for entry in learning]
        assert lambdas[:6] == lambdas[6:]
        schedule = pa.SparsitySchedule(QUICK.first_lambda, 2 * QUICK.growth)
        assert lambdas[:6] == [schedule.step() for _ in range(6)]
        assert type(result.network) is type(build_small(0))
        with torch.no_grad():
            images, labels = problem()
            assert (result.network(images).argmax(1) == labels).float().mean() > 0.8

    @pytest.mark.parametrize("entries", [2, 3, 4, 5, 6])
    def test_interrupted(self, tmp_path: Path, entries: int, whole: pa.MergeResult) -> None:
        seen: list[dict[str, Any]] = []

        def interrupt(entry: dict[str, Any]) -> None:
            seen.append(entry)
            if len(seen) == entries:
                raise KeyboardInterrupt

        student = self.student()
        with pytest.raises(KeyboardInterrupt):
            run(student, epochs=6, checkpoint=tmp_path / "a", after_epoch=interrupt)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        # A student as it was built, and the one that was interrupted, whichever stage it has reached.
        for wide, folder in ((self.student(), "a"), (student, "b")):
            resumed = run(wide, epochs=6, checkpoint=tmp_path / folder)
            assert same(resumed, whole)
            assert without_times(resumed.history) == without_times(whole.history)

    def test_another_bound_is_another_run(self, tmp_path: Path) -> None:
        run(self.student(), checkpoint=tmp_path)
        for memory in (None, 4.0):
            with pytest.raises(pa.CheckpointError, match="stages"):
                run(self.student(memory), checkpoint=tmp_path)

    def test_too_few_epochs(self) -> None:
        with pytest.raises(pa.OutOfRangeError, match=r"of which 1 for importance; accepted: at least 2 of these"):
            run(self.student(), epochs=2)
        run(self.student(), epochs=3, settings=replace(QUICK, importance_share=2 / 3))


def build_small(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Small().eval()


def test_state_of_a_later_stage_is_loaded() -> None:
    x = torch.randn(4, 2)
    student = pa.merge(chains(), x, memory=1.3, seed=3)
    choose_at_random(student, torch.Generator().manual_seed(0))
    student.next_stage()
    other = pa.merge(chains(), x, memory=1.3)
    other.load_state_dict(student.state_dict(), strict=True)
    assert other.stage == 1
    with torch.no_grad():
        assert torch.equal(other(x), student(x))
        assert torch.equal(other.compress()(x), student.compress()(x))
    first = pa.merge(chains(), x, memory=1.3)
    other.load_state_dict(first.state_dict(), strict=True)  # and back
    assert other.stage == 0
    assert torch.equal(other(x), first(x))
    twin = copy.deepcopy(student)
    twin.next_stage()
    assert (twin.stage, student.stage) == (2, 1)


@pytest.mark.parametrize(
    ("memory", "error", "words"),
    [
        (0.9, pa.OutOfRangeError, r"memory 0.9 times the teachers' 9,910 parameters; accepted: .* at least 1.028"),
        (float("nan"), pa.OutOfRangeError, "memory nan"),
        ("1.3", pa.ArgumentTypeError, "memory must be a number, not str"),
        (True, pa.ArgumentTypeError, "not bool"),
    ],
)
def test_bad_bounds(memory: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pa.merge(chains(), torch.randn(4, 2), memory=memory)


def test_bad_choices() -> None:
    student = pa.merge(chains(), torch.randn(4, 2), memory=1.3)
    with pytest.raises(pa.UnknownOptionError, match="'b'"):
        student.next_stage({"b": torch.arange(64)})
    student.next_stage()
    with pytest.raises(pa.OutOfRangeError, match="'a': its units are chosen since an earlier stage"):
        student.compress({"a": torch.tensor([0])})
    student.next_stage()
    with pytest.raises(pa.OutOfRangeError, match="all units are chosen"):
        student.next_stage()


def test_optimizers_of_earlier_stages_are_let_go() -> None:
    student = TestTraining().student()
    seen: list[int] = []

    def count(entry: dict[str, Any]) -> None:
        gc.collect()
        seen.append(sum(type(thing) is torch.optim.SGD for thing in gc.get_objects()))

    run(student, epochs=6, after_epoch=count)
    assert max(seen) == 1


@pytest.mark.parametrize("memory", [None, 1.3])
def test_pickled_whole(tmp_path: Path, memory: float | None) -> None:
    x = torch.randn(4, 2)
    student = pa.merge(chains(), x, memory=memory, seed=3).train()
    if memory is not None:
        choose_at_random(student, torch.Generator().manual_seed(0))
        student.next_stage()
    torch.save(student, tmp_path / "student.pt")
    loaded = torch.load(tmp_path / "student.pt", weights_only=False)
    assert loaded.training
    assert loaded.stages == student.stages
    assert loaded.stage == student.stage
    assert torch.equal(loaded(x), student(x))  # the next draw, too
    with torch.no_grad():
        assert torch.equal(loaded.compress()(x), student.compress()(x))
        assert loaded.compress({"b": torch.arange(5)})(x).shape == (4, 3)
