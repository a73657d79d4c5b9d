"""Stitches give exactly the size that is asked for, whatever comes in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pyassemble.assemble import Continuation, FeatureShape, Head, stitch

SIDES = st.integers(1, 17)
CHANNELS = st.integers(1, 5)
MAPS = st.builds(FeatureShape, st.just("map"), CHANNELS, SIDES, SIDES, st.just(0), st.booleans())
TOKENS = st.builds(FeatureShape, st.just("tokens"), CHANNELS, SIDES, SIDES, st.integers(0, 3))
SHAPES = st.one_of(MAPS, TOKENS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(shape: FeatureShape, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *shape.size, generator=generator(3))


def square(channels: int, side: int) -> FeatureShape:
    return FeatureShape("map", channels, side, side)


@given(source=SHAPES, target=SHAPES, batch=st.integers(0, 3))
@example(source=square(3, 56), target=square(4, 7), batch=1)
@example(source=square(2, 7), target=square(2, 56), batch=1)
@example(source=FeatureShape("map", 2, 12, 3), target=FeatureShape("map", 3, 4, 9), batch=2)
@settings(max_examples=300, deadline=None)
def test_every_pair_of_shapes_gives_exactly_the_target(source: FeatureShape, target: FeatureShape, batch: int) -> None:
    layer = stitch(source, target, generator=generator())
    given_features = features(source, batch).requires_grad_()
    out = layer(given_features)
    assert out.shape == (batch, *target.size)
    assert out.isfinite().all()
    if batch:
        out.square().sum().backward()
        assert all(parameter.grad is not None for parameter in layer.parameters())
        assert given_features.grad is not None


@given(source=SHAPES, target=SHAPES)
@example(source=FeatureShape("map", 1, 3, 2, channels_last=True), target=FeatureShape("map", 4, 3, 1))
@settings(max_examples=60, deadline=None)
def test_as_in_double_precision(source: FeatureShape, target: FeatureShape) -> None:
    layer = stitch(source, target, generator=generator())
    found = layer(features(source))
    expected = layer.double()(features(source).double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@given(source=SHAPES, target=SHAPES, factor=st.floats(0.05, 2))
@settings(max_examples=60, deadline=None)
def test_a_factor_of_the_input_folds_in(source: FeatureShape, target: FeatureShape, factor: float) -> None:
    layer = stitch(source, target, generator=generator())
    expected = layer(features(source) * factor)
    layer.scale_(factor)
    torch.testing.assert_close(layer(features(source)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "target", "kind", "stride"),
    [
        ((56, 56), (7, 14), nn.Conv2d, (8, 4)),
        ((14, 14), (14, 14), nn.Conv2d, (1, 1)),
        ((7, 7), (14, 28), nn.ConvTranspose2d, (2, 4)),
        ((14, 7), (14, 7), nn.Conv2d, (1, 1)),
        ((20, 20), (7, 6), nn.Conv2d, (2, 3)),  # not whole: the floor
        ((3, 3), (7, 10), nn.ConvTranspose2d, (2, 3)),
        ((12, 3), (4, 9), nn.Conv2d, (3, 1)),  # one axis shrinks, the other grows
    ],
)
def test_the_layer_is_as_published(
    source: tuple[int, int], target: tuple[int, int], kind: type[nn.Module], stride: tuple[int, int]
) -> None:
    layer = stitch(FeatureShape("map", 3, *source), FeatureShape("map", 5, *target), generator=generator())
    assert type(layer.convolution) is kind
    assert layer.convolution.kernel_size == (3, 3)
    assert layer.convolution.stride == stride
    assert (layer.convolution.in_channels, layer.convolution.out_channels) == (3, 5)


def test_whole_ratios_need_nothing_but_the_convolution() -> None:
    down = stitch(square(3, 12), square(5, 4), generator=generator())
    x = features(down.source)
    expected = functional.conv2d(x, down.convolution.weight, down.convolution.bias, stride=3, padding=1)
    assert torch.equal(down(x), expected)
    up = stitch(square(3, 4), square(5, 12), generator=generator())
    assert torch.equal(up(features(up.source)), up.convolution(features(up.source)))


def test_other_ratios_pool_or_resize_what_the_convolution_leaves() -> None:
    layer = stitch(square(3, 20), square(5, 7), generator=generator())
    left = layer.convolution(features(layer.source))
    assert left.shape[2:] == (10, 10)
    assert torch.equal(layer(features(layer.source)), functional.adaptive_avg_pool2d(left, 7))
    layer = stitch(square(3, 3), square(5, 7), generator=generator())
    left = layer.convolution(features(layer.source))
    assert left.shape[2:] == (6, 6)
    resized = functional.interpolate(left, size=(7, 7), mode="bilinear", align_corners=False)
    assert torch.equal(layer(features(layer.source)), resized)


def test_tokens_lose_their_prefix_and_gain_the_targets() -> None:
    source = FeatureShape("tokens", 3, 4, 6, prefix_tokens=2)
    layer = stitch(source, FeatureShape("tokens", 5, 4, 6, prefix_tokens=1), generator=generator())
    x = features(source)
    y = layer(x)
    assert torch.equal(y[:, :1], layer.prefix_tokens.expand(2, -1, -1))
    x[:, :2] += 100
    assert torch.equal(layer(x), y)
    # Row by row: token i is pixel (i // 6, i % 6).
    expected = layer.convolution(x[:, 2:].transpose(1, 2).reshape(2, 3, 4, 6))
    assert torch.equal(y[:, 1 + 9], expected[:, :, 1, 3])


def test_channels_last_and_first_agree() -> None:
    first, last = FeatureShape("map", 3, 4, 6), FeatureShape("map", 3, 4, 6, channels_last=True)
    x = features(first)
    here = stitch(first, last, generator=generator())
    there = stitch(last, first, generator=generator())
    assert torch.equal(here(x), there(x.permute(0, 2, 3, 1)).permute(0, 2, 3, 1))


def test_the_generator_decides_the_weights() -> None:
    shapes = (square(3, 4), FeatureShape("tokens", 5, 2, 2, prefix_tokens=1))
    state = torch.get_rng_state()
    one, same, other = (stitch(*shapes, generator=generator(seed)) for seed in (1, 1, 2))
    Head(shapes[1], 3, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_continuation_hands_on_the_same_bits() -> None:
    layer, x = Continuation(), torch.randn(2, 3, 4, 4)
    assert torch.equal(layer(x), x)
    layer.scale_(0.25)
    assert torch.equal(layer(x), x * 0.25)
    assert not list(layer.parameters())


@pytest.mark.parametrize(
    "shape",
    [
        FeatureShape("map", 3, 4, 5),
        FeatureShape("map", 3, 4, 5, channels_last=True),
        FeatureShape("tokens", 3, 4, 5, 2),
    ],
)
def test_the_head_averages_space_and_classifies(shape: FeatureShape) -> None:
    head = Head(shape, 7, generator=generator())
    x = features(shape)
    grid = x[:, 2:] if shape.kind == "tokens" else (x if shape.channels_last else x.permute(0, 2, 3, 1)).flatten(1, 2)
    expected = head.classifier(grid.mean(1))
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(2 * x) - head.classifier.bias, 2 * (expected - head.classifier.bias))
    head.scale_(2)
    torch.testing.assert_close(head(x), 2 * expected - head.classifier.bias)
