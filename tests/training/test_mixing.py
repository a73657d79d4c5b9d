"""Mixup and CutMix from a seed, and seeds that depend on nothing but their purpose."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pyassemble.training.mixing import Mixing
from pyassemble.training.seeding import derived_generator, derived_seed, global_seeds


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(size, 3, 8, 8), torch.arange(size) % 4


def test_same_seed_same_draws_whatever_numpy_does() -> None:
    images, labels = batch()
    before = images.clone()
    results = []
    for seed in (1, 1, 2):
        mixing, drawn = Mixing(4, seed), []
        for _ in range(3):
            np.random.random(seed + 3)  # noqa: NPY002
            state = np.random.get_state()[1].copy()  # noqa: NPY002
            drawn.append(mixing(images, labels))
            assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
        results.append(drawn)
    for (a, b), (c, d) in zip(results[0], results[1], strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert not torch.equal(results[0][0][0], results[2][0][0])
    assert not torch.equal(results[0][0][0], results[0][1][0])
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_targets_are_distributions(size: int) -> None:
    images, labels = batch(size)
    mixed, targets = Mixing(4, 0)(images, labels)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    if size % 2:  # cannot be paired
        assert torch.equal(mixed[-1], images[-1])
        assert int(targets[-1].argmax()) == int(labels[-1])


def test_none() -> None:
    images, labels = batch()
    mixed, targets = Mixing(4, 0, mixup=0, cutmix=0, smoothing=0)(images, labels)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, 4).float())


def test_derived_seeds() -> None:
    seeds = {derived_seed(s, *p) for s in range(5) for p in [(), (0,), (1,), (0, 0), ("a",), ("a", 0), ("aa",), ("b",)]}
    assert len(seeds) == 40
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = [torch.rand(3, generator=derived_generator(2**63 - 1, "x", 3)) for _ in range(2)]
    assert torch.equal(*draws)


def test_global_seeds_are_put_back() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    drawn = []
    for _ in range(2):
        with global_seeds(2**63 - 1):
            drawn.append((float(torch.rand(1)), np.random.rand(), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    with pytest.raises(KeyError), global_seeds(3):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
