"""Accuracy and AUROC against scikit-learn, cost against counting by hand."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from pyassemble.errors import TensorError
from pyassemble.training.metrics import measure_cost, measure_quality


def test_against_scikit_learn() -> None:
    labels = torch.randint(4, (300,))
    logits = torch.randn(300, 4) + F.one_hot(labels, 4)
    batches = [(logits[i : i + 64], labels[i : i + 64]) for i in range(0, 300, 64)]
    found = measure_quality(lambda x: x, batches, 4)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    probabilities = logits.softmax(1).double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = roc_auc_score(labels.numpy(), probabilities, multi_class="ovr", average="macro")
    assert found.auroc == pytest.approx(expected, abs=1e-6)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert found.images == 300


def test_a_class_that_does_not_occur_counts_for_nothing() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    found = measure_quality(lambda x: x, [(10.0 * F.one_hot(labels, 5), labels)], 5)
    assert (found.accuracy, found.auroc) == (1.0, 1.0)
    alone = measure_quality(lambda x: x, [(torch.randn(3, 5), torch.zeros(3, dtype=torch.int64))], 5)
    assert math.isnan(alone.auroc)


def test_no_batch_and_wrong_logits() -> None:
    assert math.isnan(measure_quality(lambda x: x, [], 5).accuracy)
    with pytest.raises(TensorError, match=r"logits of shape \(3, 4\) for 3 images"):
        measure_quality(lambda x: x, [(torch.randn(3, 4), torch.zeros(3, dtype=torch.int64))], 5)


def test_cost_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 5)).train()
    network[0].requires_grad_(False)
    cost = measure_cost(network, torch.zeros(4, 3, 8, 8))
    assert cost.flops == 2 * (36 * 8 * 27 + 288 * 5)
    assert cost.total == 8 * 27 + 8 + 16 + 288 * 5 + 5
    assert cost.trainable == cost.total - 8 * 27 - 8
    assert all(module.training for module in network.modules())


def test_attention_is_counted() -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=1)
    cost = measure_cost(network, torch.zeros(1, 3, 224, 224))
    n, d = 197, 192
    layers = 2 * n * d * (3 * d + d + 8 * d)
    attention = 2 * 2 * n * n * d
    assert cost.flops == 2 * 196 * 768 * d + layers + attention + 2 * d * 10
