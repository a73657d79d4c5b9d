"""The logistic-regression start of heads, against scikit-learn's, and what it does for an assembly."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.linear_model import LogisticRegression

import pyassemble as pa
from pyassemble.assemble import FeatureShape, Head, fit_head, initialize_head, initialize_stitches
from pyassemble.errors import ArgumentTypeError, OutOfRangeError, TensorError
from pyassemble.training import evaluate
from tests.assemble.small import CLASSES, problem, shared_repository
from tests.networks import same_state, snapshot


def head_for(channels: int, classes: int) -> Head:
    return Head(FeatureShape("map", channels, 2, 3), classes)


def clusters(count: int, channels: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, channels, generator=generator)
    noise = torch.randn(count, channels, 2, 3, generator=generator)
    return centres[labels][:, :, None, None] + 2 * noise + 5, labels


def test_is_the_logistic_regression_of_another_library() -> None:
    features, labels = clusters(200, 6, 4)
    head = head_for(6, 4)
    loss = fit_head(head, features.split(64), labels, penalty=0.02)
    pooled = features.mean((2, 3)).double()
    scaled = ((pooled - pooled.mean(0)) / pooled.std(0, correction=0)).numpy()
    # Theirs is the sum over images and half the squared weights, divided by C.
    theirs = LogisticRegression(C=1 / (2 * 0.02 * len(labels)), tol=1e-10, max_iter=1000).fit(scaled, labels.numpy())
    wanted = torch.tensor(theirs.predict_log_proba(scaled))
    with torch.no_grad():
        torch.testing.assert_close(head(features).double().log_softmax(1), wanted, rtol=1e-3, atol=1e-3)
    assert loss == pytest.approx(float(torch.nn.functional.nll_loss(wanted, labels)), rel=1e-4)


def test_the_weights_before_do_not_matter_and_features_may_have_any_scale() -> None:
    features, labels = clusters(100, 5, 3)
    found = []
    for scale in (1.0, 1e-3, 1e4):
        torch.manual_seed(int(scale))
        head = head_for(5, 3)
        fit_head(head, [features * scale], labels)
        with torch.no_grad():
            found.append(head(features * scale))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-2, atol=1e-2)


def test_a_channel_that_hardly_varies_gets_hardly_a_weight() -> None:
    features, labels = clusters(50, 4, 3)
    features[:, 1], features[:, 2], features[:, 3] = 0.0, 7.0, 0.0
    features[0, 3] = 1e-4
    head = head_for(4, 3)
    fit_head(head, [features], labels)
    weight = head.classifier.weight.detach()
    assert weight.isfinite().all()
    assert float(weight[:, 1:3].abs().max()) < 1e-6
    assert float(weight[:, 3].abs().max()) < 2 * float(weight[:, 0].abs().max())  # not 10 000 times


def test_tokens() -> None:
    features, labels = clusters(60, 5, 3)
    tokens = features.flatten(2).transpose(1, 2)
    by_tokens, by_map = Head(FeatureShape("tokens", 5, 2, 3), 3), head_for(5, 3)
    assert fit_head(by_tokens, [tokens], labels) == pytest.approx(fit_head(by_map, [features], labels), rel=1e-6)


def test_an_assembly_of_networks_that_know_the_task_classifies_before_training() -> None:
    images, labels = problem(256)
    repository = shared_repository()
    assembly = pa.Assembly.compose(repository, [("wide", 0, 1), ("deep", 2, 3)], CLASSES)
    drawn = evaluate(assembly, images[128:], labels[128:])
    initialize_stitches(assembly, repository, images[:128])
    blocks, stitches = snapshot(assembly.blocks), snapshot(assembly.stitches)
    loss = initialize_head(assembly, images[:128], labels[:128], batch_size=50)
    assert same_state(assembly.blocks, blocks)
    assert same_state(assembly.stitches, stitches)
    with torch.no_grad():
        own = torch.nn.functional.cross_entropy(assembly(images[:128]), labels[:128])
    assert loss == pytest.approx(float(own), rel=1e-3)
    assert evaluate(assembly, images[128:], labels[128:]) > max(0.6, drawn + 0.2)


def test_bad_input() -> None:
    features, labels = clusters(10, 4, 3)
    head = head_for(4, 3)
    before = copy.deepcopy(head.state_dict())
    for batches, wanted, options, error, words in [
        ([], labels, {}, TensorError, "no images"),
        ([features], labels[:9], {}, TensorError, r"labels \(9,\).*accepted: \(10,\)"),
        ([features], labels.float(), {}, TensorError, r"float32; accepted: \(10,\) of torch.int64"),
        ([features], labels + 1, {}, TensorError, "labels from . to 3; accepted: 0 to 2"),
        ([features[:, :3]], labels, {}, TensorError, r"features \(10, 3, 2, 3\); accepted: \('B', 4, 2, 3\)"),
        ([features / 0], labels, {}, TensorError, "NaN or infinity"),
        ([features], labels, {"penalty": 0.0}, OutOfRangeError, "penalty 0.0"),
        ([features], labels, {"iterations": 0}, OutOfRangeError, "iterations 0"),
    ]:
        with pytest.raises(error, match=words):
            fit_head(head, batches, wanted, **options)
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())
    assembly = pa.Assembly.compose(shared_repository(), [("wide", 0, 1), ("deep", 2, 3)], CLASSES)
    with pytest.raises(OutOfRangeError, match="batch_size 0"):
        initialize_head(assembly, *problem(4), batch_size=0)
    assembly.head = torch.nn.Identity()
    with pytest.raises(ArgumentTypeError, match="Identity; accepted: a Head"):
        initialize_head(assembly, *problem(4))
