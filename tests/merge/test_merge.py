"""What merging promises on small networks: gates, selection, ratios, several teachers, seeds, bad input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import pyassemble as pa
from pyassemble.errors import (
    ArgumentTypeError,
    MismatchError,
    OutOfRangeError,
    TensorError,
    UnknownOptionError,
    UnsupportedNetworkError,
    UnsupportedOperationError,
    UntraceableError,
)
from tests.merge.networks import close, close_others, half
from tests.networks import scramble


class PaddedResNet(nn.Module):
    """Residual stages whose shortcuts pad channels with zeros, as in the CIFAR networks of He et al."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.na = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.nb = nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.na(self.a(x)))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.nb(self.b(x)))
        return self.head(x.flatten(1))


def perceptron(hidden: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def pair(make=perceptron, count: int = 2) -> list[nn.Module]:
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        network = make().eval()
        scramble(network, seed)
        networks.append(network)
    return networks


def test_padded_shortcuts_and_flattened_maps() -> None:
    networks = pair(PaddedResNet)
    x = torch.randn(3, 3, 8, 8)
    student = pa.merge(networks, x)
    # The stage's outer channels, which the shortcut leaves empty, are a group of their own.
    assert {name: len(group.loc) for name, group in student.gate_groups.items()} == {"stem": 16, "b": 16}
    with torch.no_grad(), student.opened():
        assert close(student(x), (networks[0](x) + networks[1](x)) / 2, 1e-5)
    keep = {"stem": torch.tensor([1, 3, 4, 5, 9, 11, 12, 15]), "b": torch.tensor([0, 2, 3, 7, 8, 9, 14, 15])}
    close_others(student, keep)
    compressed = student.compress(keep)
    assert isinstance(compressed, PaddedResNet)
    with torch.no_grad():
        assert close(compressed(x), student(x), 1e-5)


class Viewed(nn.Module):
    """The flattening of many a tutorial, and a parameter used by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.b = nn.Linear(4 * 8 * 8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)) * self.scale
        return self.head(F.relu(self.b(x.view(x.size(0), -1))))


def check_merged(make, x: Tensor, seed: int = 0) -> pa.WideStudent:
    """Mean of the teachers, also for another batch, and a random half equal to the other gates closed."""
    networks = pair(make)
    student = pa.merge(networks, x)
    for batch in (x, x[:1]):
        with torch.no_grad(), student.opened():
            assert close(student(batch), (networks[0](batch) + networks[1](batch)) / 2, 1e-5)
    keep = half(student, seed)
    close_others(student, keep)
    compressed = student.compress(keep)
    assert type(compressed) is type(networks[0])
    with torch.no_grad():
        assert close(compressed(x), student(x), 1e-4)
    return student


def test_views() -> None:
    check_merged(Viewed, torch.randn(3, 3, 8, 8))


class FixedScale(nn.Module):
    """Channels that a buffer treats differently, and others that are added to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 6)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 0.5, 3.0]))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(F.relu(self.a(x)) * self.scale)
        return self.head(F.relu(self.c(x)))


class Crossed(nn.Module):
    """Even channels meet odd ones in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(x[:, ::2] * torch.sigmoid(x[:, 1::2].flip(1)))


@pytest.mark.parametrize("seed", range(4))
def test_only_what_the_network_treats_alike_is_interchangeable(seed: int) -> None:
    student = check_merged(FixedScale, torch.randn(5, 3), seed)
    assert sorted(len(group.loc) for group in student.gate_groups.values()) == [2, 2, 2, 2, 2, 4, 12]
    check_merged(Crossed, torch.randn(5, 3), seed)


class Spelled(nn.Module):
    """Functions with named arguments, and a normalized shape that is read off a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.unsqueeze(input=self.a(input=x), dim=1)
        x = torch.flatten(input=F.relu(input=x), start_dim=1)
        return self.head(F.layer_norm(x, x.shape[-1:], self.weight))


def test_named_arguments() -> None:
    networks, x = pair(Spelled), torch.randn(5, 3)
    student = pa.merge(networks, x)
    with torch.no_grad(), student.opened():
        assert close(student(x), (networks[0](x) + networks[1](x)) / 2, 1e-5)


class InPlace(nn.Module):
    """Changes tensors in place and goes on with them, not with what the change gave."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.act(x)
        y = self.b(x)
        y.add_(x)
        return self.head(y.mul_(0.5))


def test_changes_in_place_are_followed() -> None:
    check_merged(InPlace, torch.randn(5, 3))


class Excited(nn.Module):
    """Squeeze and excitation as it is often written."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.excite(F.relu(self.squeeze(y)))).view(b, c, 1, 1)
        return self.head((x * y.expand_as(x)).mean((2, 3)))


def test_squeeze_and_excitation() -> None:
    check_merged(Excited, torch.randn(3, 3, 8, 8))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 8, padding_idx=0), nn.Parameter(torch.randn(1, 5, 8))
        self.a, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places
        return self.head((x + F.relu(self.a(x))).mean(1))


def test_embeddings() -> None:
    student = check_merged(Words, torch.randint(10, (3, 5)))
    assert student.graph.get_submodule("words").embedding_dim == 16


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.relu(self.a(x)))


def test_outputs_that_are_added_to_the_input() -> None:
    check_merged(Denoiser, torch.randn(3, 3, 8, 8))


def test_compressed_in_the_precision_of_the_student() -> None:
    x = torch.randn(3, 3, 8, 8)
    student = pa.merge(pair(Viewed), x).double()
    close_others(student, student.selection())
    for network in (student.compress(), student.compress(student.selection() | {"b": student.selection()["b"][:4]})):
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float64}
    with torch.no_grad():
        assert close(student.compress()(x.double()), student(x.double()), 1e-12)


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(3, 64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(F.relu(self.a(x)), 0.5, self.training))


def test_functional_dropout_follows_the_mode() -> None:
    student = check_merged(Dropped, torch.randn(5, 3))
    x = torch.randn(5, 3)
    with torch.no_grad(), student.opened():
        assert torch.equal(student(x), student(x))
        student.train()
        assert not torch.equal(student(x), student(x))


class Attending(nn.Module):
    """Attention whose weights are dropped in training, by the function's own argument or in torch's module."""

    def __init__(self, module: bool, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.project = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, heads, dropout=0.5, batch_first=True) if module else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.attention is not None:
            return self.head((x + self.attention(x, x, x)[0]).mean(1))
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)
        return self.head((x + self.project(y.transpose(1, 2).reshape(b, n, c))).mean(1))


@pytest.mark.parametrize("module", [False, True])
def test_dropout_of_attention_follows_the_mode(module: bool) -> None:
    x = torch.randn(5, 6, 3)
    student = check_merged(lambda: Attending(module), x)
    keep = {name: torch.arange(len(group.loc) * 3 // 4) for name, group in student.gate_groups.items()}
    other = student.compress(keep)  # a graph of other widths
    for network in (student, other):
        with torch.no_grad(), student.opened():
            assert torch.equal(network.eval()(x), network(x))
            assert not torch.equal(network.train()(x), network(x))


def test_one_of_two_single_heads() -> None:
    student = pa.merge(pair(lambda: Attending(module=False, heads=1)), x := torch.randn(5, 6, 3))
    keep = {
        name: torch.tensor([1]) if group.unit == "head" else torch.arange(3, 3 + len(group.loc) // 4)
        for name, group in student.gate_groups.items()
    }
    assert sorted(map(len, keep.values())) == [1, 4]
    close_others(student, keep)
    with torch.no_grad():
        assert close(student.compress(keep)(x), student(x), 1e-5)


def test_copies_are_compressed_to_other_widths() -> None:
    student = copy.deepcopy(pa.merge(pair(Viewed), torch.randn(3, 3, 8, 8)))
    assert student.compress({"b": torch.arange(4)}).get_submodule("b").out_features == 4


def test_students_are_copied() -> None:
    x = torch.randn(3, 3, 8, 8)
    student = pa.merge(pair(Viewed), x)
    twin = copy.deepcopy(student)
    with torch.no_grad():
        assert torch.equal(twin(x), student(x))
        expected = student(x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(student(x), expected)
        assert not torch.equal(twin.compress()(x), student.compress()(x))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_teachers(count: int) -> None:
    networks = pair(count=count)
    x = torch.randn(7, 3)
    student = pa.merge(networks, x)
    with torch.no_grad(), student.opened():
        assert close(student(x), torch.stack([network(x) for network in networks]).mean(0), 1e-6)
    assert student.gate_groups["0"].teacher.tolist() == [t for t in range(count) for _ in range(6)]
    assert student.compress()[0].out_features == 6


def test_other_ratios() -> None:
    networks = pair(PaddedResNet)
    x = torch.randn(3, 3, 8, 8)
    student = pa.merge(networks, x, keep=0.75)
    small = student.compress()
    assert small.get_submodule("a").out_channels == 12
    close_others(student, student.selection())
    with torch.no_grad():
        assert close(small(x), student(x), 1e-5)


class Shuffled(nn.Module):
    """Halves of the channels that are shuffled, twice, as in ShuffleNet; each time spelled in another way."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 2)
        self.spelled, self.module = spelled, nn.ChannelShuffle(2)

    def shuffle(self, x: Tensor) -> Tensor:
        if self.spelled == "module":
            return self.module(x)
        if self.spelled == "function":
            return F.channel_shuffle(x, 2)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer in (self.a, self.b):
            left, right = x.chunk(2, 1)
            x = self.shuffle(torch.cat((left, F.relu(layer(right))), 1))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("spelled", ["views", "module", "function"])
def test_shuffled_channels(spelled: str) -> None:
    x = torch.randn(3, 3, 4, 4)
    student = check_merged(lambda: Shuffled(spelled), x)
    assert "shuffle" not in str(student.graph.graph)  # channels are known by their new places, nothing is moved
    # A half that keeps more than the other, and a ratio that divides no part of a layer's channels but all together.
    keep = student.selection()
    for name in list(keep)[::2]:
        keep[name] = torch.arange(len(student.gate_groups[name].loc) - 1)
    with torch.no_grad():
        for group in student.gate_groups.values():
            group.loc.fill_(1.0)
    close_others(student, keep)
    with torch.no_grad():
        assert close(student.compress(keep)(x), student(x), 1e-5)
    student = pa.merge(pair(lambda: Shuffled(spelled)), x, keep=0.75)
    small = student.compress()
    assert small.get_submodule("stem").out_channels == 12
    assert small.get_submodule("head").in_features == 12
    close_others(student, student.selection())
    with torch.no_grad():
        assert close(small(x), student(x), 1e-5)


def test_a_ratio_is_shared_out_among_parts_of_a_layer() -> None:
    student = pa.merge(pair(lambda: Shuffled("views")), torch.randn(3, 3, 4, 4), keep=0.75)
    sizes = {name: len(group.loc) for name, group in student.gate_groups.items()}
    counts = {name: len(kept) for name, kept in student.selection().items()}
    layers = {name.partition("#")[0] for name in counts}
    assert len(layers) < len(counts)
    for layer in layers:
        mine = [name for name in counts if name.partition("#")[0] == layer]
        assert sum(counts[name] for name in mine) == 0.75 * sum(sizes[name] for name in mine)
        assert all(abs(counts[name] - 0.75 * sizes[name]) < 1 for name in mine)
    with pytest.raises(OutOfRangeError, match=r"stem, stem#2.*share of 0.0625 is 1; accepted are .* of at least"):
        pa.merge(pair(lambda: Shuffled("views")), torch.randn(3, 3, 4, 4), keep=0.0625)


def test_teachers_of_other_classes() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, classes)).eval() for classes in (2, 4, 3)]
    x = torch.randn(5, 3)
    with pytest.raises(MismatchError, match="union"):
        pa.merge(networks, x)
    student = pa.merge(networks, x, head="union")
    with torch.no_grad(), student.opened():
        assert close(student(x), torch.cat([network(x) for network in networks], 1), 1e-6)
    keep = {"0": torch.tensor([0, 4, 8, 9, 13, 17])}
    close_others(student, keep)
    compressed = student.compress(keep)
    assert compressed[2].out_features == 9
    with torch.no_grad():
        assert close(compressed(x), student(x), 1e-6)
    small = student.compress({"0": torch.tensor([0, 4, 8])})
    assert small(x).shape == (5, 9)


def test_selection_follows_loc_with_ties_to_the_lower_number() -> None:
    student = pa.merge(pair(), torch.randn(4, 3))
    loc = student.gate_groups["0"].loc
    with torch.no_grad():
        loc.copy_(torch.tensor([5.0, 1, 1, 1, 1, 1, 1, 1, 9, 1, 1, 1]))
    assert student.selection()["0"].tolist() == [0, 1, 2, 3, 4, 8]


def test_gates_draw_anew_each_step_and_alike_within_one() -> None:
    networks = pair(PaddedResNet)
    x = torch.randn(1, 3, 8, 8).expand(64, -1, -1, -1)
    student = pa.merge(networks, x).train()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    entering: dict[str, Tensor] = {}
    for name, site in student.graph.get_submodule("gate_sites").named_children():
        site.register_forward_hook(lambda _, args, out, name=name: entering.__setitem__(name, (args[0], out)))
    first = student(x)
    gates = {
        name: torch.where(x == 0, torch.nan, y / x).nanmean((2, 3)) for name, (x, y) in entering.items() if x.ndim == 4
    }
    known = ~(gates["a"].isnan() | gates["b"].isnan())
    assert known.sum() > 100
    assert torch.allclose(gates["a"][known], gates["b"][known], atol=1e-4)  # one residual stream, one draw
    assert not torch.equal(first, student(x))
    with torch.no_grad():
        assert torch.equal(student.eval()(x), student(x))


def test_same_seed_same_student() -> None:
    networks, x = pair(), torch.randn(4, 3)
    outputs = [pa.merge(networks, x, seed=seed).train()(x) for seed in (3, 3, 4)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_sparsity_loss_is_the_published_one() -> None:
    student = pa.merge(pair(), torch.randn(4, 3), keep=0.5)
    loc = student.gate_groups["0"].loc.detach().double()
    probability = torch.sigmoid(loc - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1, dtype=torch.float64))).mean()
    assert student.sparsity_loss().item() == pytest.approx(((0.5 - probability) ** 2).item(), rel=1e-5)


def test_schedule() -> None:
    schedule = pa.SparsitySchedule(0.01)
    values = [schedule.step() for _ in range(3)]
    assert values[0] == pytest.approx(0.01 + 0.05 * 0.1)
    assert values[1] == pytest.approx(values[0] + 0.05 * values[0] ** 0.5)
    again = pa.SparsitySchedule()
    again.load_state_dict(schedule.state_dict())
    assert again.step() == schedule.step()
    with pytest.raises(OutOfRangeError):
        pa.SparsitySchedule(-1.0)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


class TokenMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Linear(3, 4), nn.Linear(5, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mix(x.transpose(1, 2)).transpose(1, 2))


class NonlinearEnd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))))


class OwnScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)) * self.scale)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cumsum(self.a(x), 1))


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.relu(F.linear(x, self.b.weight, self.b.bias)))


class OutputUsed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.b(F.relu(self.a(x)))
        return x, self.c(x)


class Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.head = nn.Linear(3, 4), nn.MaxPool1d(2, return_indices=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.a(x))[0])


class NormOfPositions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv1d(3, 4, 1), nn.LayerNorm(4), nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x)))


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (TokenMixer, (2, 5, 3), "'mix'"),
        (NonlinearEnd, (2, 3), "'relu'"),
        (OwnScale, (2, 3), "'scale'"),
        (Unknown, (2, 3), "'cumsum'"),
        (UsedTwice, (2, 3), "'b.weight'"),
        (OutputUsed, (2, 3), "'c' .* uses what module 'b'"),
        (Indices, (2, 5, 3), "'pool'"),
        (NormOfPositions, (2, 3, 4), "'norm'"),
    ],
)
def test_operations_that_cannot_be_merged_are_named(make, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=message):
        pa.merge(pair(make), torch.randn(shape))


def parametrized() -> nn.Sequential:
    network = perceptron()
    nn.utils.parametrizations.weight_norm(network[0])
    return network


def pruned() -> nn.Sequential:
    network = perceptron()
    prune.random_unstructured(network[2], "weight", 0.5)
    return network


def test_refusals() -> None:
    a, b = pair()
    x = torch.randn(4, 3)
    cases = [
        (ArgumentTypeError, "at least two", lambda: pa.merge([a], x)),
        (ArgumentTypeError, "at least two", lambda: pa.merge(a, x)),
        (ArgumentTypeError, "example_input", lambda: pa.merge([a, b], "x")),
        (MismatchError, "twice", lambda: pa.merge([a, a], x)),
        (MismatchError, r"'0.weight' has shape \(7, 3\)", lambda: pa.merge([a, perceptron(7).eval()], x)),
        (MismatchError, "Linear", lambda: pa.merge([a, nn.Linear(3, 2).eval()], x)),
        (UnsupportedNetworkError, "train mode", lambda: pa.merge([a, copy.deepcopy(b).train()], x)),
        (TensorError, "float16", lambda: pa.merge([copy.deepcopy(a).half(), copy.deepcopy(b).half()], x)),
        (MismatchError, "float64", lambda: pa.merge([a, copy.deepcopy(b).double()], x)),
        (TensorError, "meta", lambda: pa.merge([a, copy.deepcopy(b).to("meta")], x)),
        (UnsupportedNetworkError, "shared modules", lambda: pa.merge(pair(Shared), x)),
        (UnsupportedNetworkError, "one tensor", lambda: pa.merge(pair(Tied), x)),
        (UnsupportedNetworkError, "'0' .*parametrized", lambda: pa.merge(pair(parametrized), x)),
        (UnsupportedNetworkError, "'2' .*'weight_orig'", lambda: pa.merge(pair(pruned), x)),
        (UntraceableError, r"\(4, 5\)", lambda: pa.merge([a, b], torch.randn(4, 5))),
        (OutOfRangeError, "share of 0.3", lambda: pa.merge([a, b], x, keep=0.3)),
        (UnknownOptionError, "head", lambda: pa.merge([a, b], x, head="both")),
        (OutOfRangeError, "keep", lambda: pa.merge([a, b], x, keep=1.5)),
        (UnknownOptionError, "'9'", lambda: pa.merge([a, b], x).compress({"9": torch.arange(6)})),
        (OutOfRangeError, r"\[0, 12\)", lambda: pa.merge([a, b], x).compress({"0": torch.tensor([0, 12])})),
        (OutOfRangeError, "different", lambda: pa.merge([a, b], x).compress({"0": torch.tensor([1, 1])})),
    ]
    broken = copy.deepcopy(b)
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan
    cases.append((TensorError, "not finite", lambda: pa.merge([a, broken], x)))
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
