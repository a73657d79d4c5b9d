"""The partition network: draws without replacement, their exact probabilities, and blocks from cuts."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, permutations

import pytest
import torch
from torch import Tensor, nn

from pyassemble.assemble.partition import (
    Embedding,
    PartitionNetwork,
    blocks_of,
    sample_without_replacement,
    set_log_probability,
)
from pyassemble.errors import OutOfRangeError, PyAssembleError, TensorError


def over_orders(logits: Tensor, chosen: tuple[int, ...]) -> float:
    """Textbook: every order of the set, each factor renormalized over what is left."""
    p = logits.double().softmax(-1).tolist()
    total = 0.0
    for order in permutations(chosen):
        left, probability = 1.0, 1.0
        for i in order:
            probability *= p[i] / left
            left -= p[i]
        total += probability
    return math.log(total)


class TestSetLogProbability:
    @pytest.mark.parametrize(("k", "c"), [(1, 1), (4, 1), (5, 2), (7, 3), (6, 5), (8, 6), (15, 3)])
    def test_is_the_sum_over_orders(self, k: int, c: int) -> None:
        logits = 2 * torch.randn(k, dtype=torch.float64)
        for chosen in list(combinations(range(k), c))[:20]:
            found = float(set_log_probability(logits, torch.tensor(chosen)))
            assert found == pytest.approx(over_orders(logits, chosen), abs=1e-9)

    @pytest.mark.parametrize(("k", "c"), [(4, 2), (7, 3), (8, 6), (9, 4)])
    def test_all_sets_sum_to_one(self, k: int, c: int) -> None:
        sets = torch.tensor(list(combinations(range(k), c)))
        logits = 3 * torch.randn(k, dtype=torch.float64)
        assert float(set_log_probability(logits, sets).exp().sum()) == pytest.approx(1, abs=1e-9)

    def test_order_does_not_matter(self) -> None:
        logits = torch.randn(6, dtype=torch.float64)
        values = [float(set_log_probability(logits, torch.tensor(p))) for p in permutations((4, 1, 3))]
        assert max(values) - min(values) < 1e-12

    def test_everything_is_certain(self) -> None:
        assert float(set_log_probability(50 * torch.randn(4), torch.tensor([3, 1, 0, 2]))) == 0

    def test_gradient(self) -> None:
        logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
        chosen = torch.tensor([[0, 2, 5], [4, 3, 1]])
        assert torch.autograd.gradcheck(lambda x: set_log_probability(x, chosen), logits)

    def test_holds_far_from_uniform(self) -> None:
        # 1 - p(first) is zero in floating point here.
        logits = torch.tensor([200.0, 0.0, 1.0, 2.0], requires_grad=True)
        value = set_log_probability(logits, torch.tensor([0, 3]))
        rest = torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)[2]
        assert value.item() == pytest.approx(float(rest), abs=1e-5)
        value.backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    def test_bad_input(self) -> None:
        logits = torch.zeros(8)
        for chosen, words in [
            (torch.tensor([0, 0]), "distinct"),
            (torch.tensor([0, 8]), "from 0 to 7"),
            (torch.tensor([0.0]), "int64"),
            (torch.arange(7), "1 to 6"),
        ]:
            with pytest.raises(PyAssembleError, match=words):
                set_log_probability(logits, chosen)
        with pytest.raises(TensorError, match="finite"):
            set_log_probability(torch.tensor([0.0, math.nan]), torch.tensor([0]))


class TestSampling:
    def test_frequencies_are_the_probabilities(self) -> None:
        logits = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0])
        draws = sample_without_replacement(logits.expand(20000, 5), 3, generator=torch.Generator().manual_seed(0))
        counted = Counter(map(tuple, draws.tolist()))
        statistic = 0.0
        for chosen in combinations(range(5), 3):
            expected = 20000 * math.exp(float(set_log_probability(logits, torch.tensor(chosen))))
            statistic += (counted[chosen] - expected) ** 2 / expected
        assert statistic < 27.9  # chi-square, 9 degrees of freedom, 1 in 1 000

    def test_seeded_distinct_and_ascending(self) -> None:
        logits = torch.zeros(50, 9)
        first, again = (
            sample_without_replacement(logits, 4, generator=torch.Generator().manual_seed(3)) for _ in range(2)
        )
        assert torch.equal(first, again)
        assert (first[:, 1:] > first[:, :-1]).all()

    def test_bad_input(self) -> None:
        with pytest.raises(OutOfRangeError, match="4 of 3 cut points"):
            sample_without_replacement(torch.zeros(3), 4)


class TestPartitionNetwork:
    def test_starts_uniform_and_learns(self) -> None:
        policy = PartitionNetwork(5, {"a": 4, "b": 7}, cuts=2)
        features = torch.randn(8, 5)
        logits = policy(features)
        assert {name: tuple(value.shape) for name, value in logits.items()} == {"a": (4,), "b": (7,)}
        uniform = -math.log(math.comb(4, 2)) - math.log(math.comb(7, 2))
        partition = policy.sample(logits, generator=torch.Generator().manual_seed(0))
        assert policy.log_probability(logits, partition).item() == pytest.approx(uniform, abs=1e-5)
        optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
        for _ in range(50):
            optimizer.zero_grad()
            (-policy.log_probability(policy(features), {"a": (1, 3), "b": (0, 6)})).backward()
            optimizer.step()
        assert policy.best(policy(features)) == {"a": (1, 3), "b": (0, 6)}

    def test_log_probability_adds_up_over_networks(self) -> None:
        policy = PartitionNetwork(5, {"a": 4, "b": 7}, cuts=3)
        nn.init.normal_(policy.heads[0].weight)
        logits = policy(torch.randn(8, 5))
        partition = {"a": (0, 1, 3), "b": (2, 4, 5)}
        alone = [set_log_probability(logits[n], torch.tensor(partition[n])) for n in partition]
        assert torch.equal(policy.log_probability(logits, partition), torch.stack(alone).sum())

    def test_names_the_network_that_is_too_short(self) -> None:
        with pytest.raises(OutOfRangeError, match=r"network 'b' has 2 cut points.*into 4 blocks; accepted: 1 to 2"):
            PartitionNetwork(5, {"a": 4, "b": 2}, cuts=3)
        with pytest.raises(PyAssembleError, match="at least one network"):
            PartitionNetwork(5, {})


def test_embedding_is_frozen_and_no_part_of_the_state() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    embedding = Embedding(network)
    images = torch.randn(2, 3, 8, 8)
    found = embedding(images)
    assert found.shape == (2, 6)
    assert not found.requires_grad
    assert not embedding.state_dict()
    assert not list(embedding.parameters())
    tokens = Embedding(nn.Flatten(2), channel_dim=-1)(images)
    torch.testing.assert_close(tokens, images.flatten(2).mean(1))


@pytest.mark.parametrize(
    ("cuts", "segments", "blocks"),
    [((0, 2, 3), 6, [(0, 0), (1, 2), (3, 3), (4, 5)]), ((4,), 6, [(0, 4), (5, 5)])],
)
def test_blocks_of(cuts: tuple[int, ...], segments: int, blocks: list[tuple[int, int]]) -> None:
    assert blocks_of(cuts, segments) == blocks
