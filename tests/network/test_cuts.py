"""Cutting networks: where, that nothing is lost, and that the parts compute what the whole does."""

from __future__ import annotations

from itertools import chain

import pytest
import timm
import torch
from torch import nn

from pyassemble.errors import CutError, UnsupportedNetworkError
from pyassemble.network.blocks import standardize_blocks
from pyassemble.network.cuts import CutNetwork, cut
from pyassemble.network.shapes import FeatureShape
from tests.networks import build, images_for, same_state, snapshot

# As SPEC 3.1 and the structure of the architectures have it.
SEGMENTS = {
    "timm:resnet34": 16, "timm:resnet50": 16, "timm:mobilenetv3_large_100": 15, "timm:regnety_008": 14,
    "timm:efficientnet_b0": 16, "timm:vit_tiny_patch16_224": 12, "timm:densenet121": 4, "torchvision:resnet18": 8,
    "timm:convnext_atto": 12,
}  # fmt: skip
SLOW = {
    "timm:resnet18": 8, "torchvision:mobilenet_v3_small": 11, "timm:deit_tiny_distilled_patch16_224": 12,
    "timm:poolformer_s12": 12, "timm:mixer_s32_224": 8, "timm:regnetx_002": 13,
    "timm:resnet101": 33, "timm:resnet152": 50, "timm:regnety_032": 21, "timm:densenet169": 4, "timm:seresnet50": 16,
    "timm:resnetv2_50": 16, "timm:resnext50_32x4d": 16, "timm:mobilenetv2_100": 17, "timm:mobilenetv3_small_100": 11,
    "timm:ghostnet_100": 16, "timm:mixnet_s": 16, "timm:rexnet_100": 16, "timm:resmlp_12_224": 12,
    "timm:beit_base_patch16_224": 12, "timm:eva02_tiny_patch14_224": 12, "timm:twins_pcpvt_small": 16,
    "timm:swinv2_tiny_window8_256": 12, "torchvision:swin_t": 12, "torchvision:googlenet": 9,
    "torchvision:densenet121": 4, "torchvision:vit_b_16": 12, "timm:swin_tiny_patch4_window7_224": 12,
    "torchvision:regnet_y_800mf": 14, "torchvision:mobilenet_v3_large": 15, "torchvision:shufflenet_v2_x1_0": 16,
    "torchvision:efficientnet_b0": 16, "torchvision:convnext_tiny": 18,
}  # fmt: skip
# Their numbers of segments say nothing by themselves; their parts must compute the same all the same.
ODD = [
    "timm:vgg11", "timm:hrnet_w18_small", "timm:cait_xxs24_224", "timm:xcit_nano_12_p8_224", "timm:levit_128s",
    "timm:volo_d1_224", "timm:tnt_s_patch16_224", "timm:pvt_v2_b0", "timm:coatnet_nano_rw_224", "timm:mobilevit_xxs",
    "timm:edgenext_xx_small", "timm:fastvit_t8", "timm:repvit_m0_9", "timm:visformer_tiny", "timm:nfnet_l0",
    "timm:dla34", "timm:inception_v4", "timm:dpn68", "timm:mvitv2_tiny", "timm:hiera_tiny_224", "timm:gmlp_s16_224",
    "torchvision:squeezenet1_0", "torchvision:inception_v3", "torchvision:swin_v2_t",
]  # fmt: skip


@pytest.mark.parametrize(("name", "count"), SEGMENTS.items())
def test_cut_and_rejoined_is_the_network(name: str, count: int) -> None:
    assert len(whole_in_parts(name)) == count


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), SLOW.items())
def test_cut_and_rejoined_is_the_network_too(name: str, count: int) -> None:
    assert len(whole_in_parts(name)) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_odd_networks_lose_nothing(name: str) -> None:
    assert len(whole_in_parts(name)) >= 1


def whole_in_parts(name: str) -> CutNetwork:
    network = build(name)
    images = images_for(network)
    before = snapshot(network)
    parts = cut(network, images[:1])

    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        features = images
        for segment, shape in zip(parts.segments, parts.shapes, strict=True):
            features = segment(features)
            assert tuple(features.shape[1:]) == shape.size
        whole = network.eval()(images)
        assert torch.equal(parts.head(features), whole)
        assert torch.equal(parts.head(parts.features(images)), whole)  # nothing was overwritten on the way
    assert same_state(network, before)

    assert len(parts.segments) == len(parts.shapes) == len(parts.cut_points) == len(set(parts.cut_points))
    assert set(parts.cut_points) <= {path for path, _ in network.named_modules()}
    modules = (*parts.segments, parts.head)
    held = [name_ for module in modules for name_, _ in chain(module.named_parameters(), module.named_buffers())]
    held = [path for path in held if not path.startswith("_tensor_constant")]
    owned = [path for path, _ in chain(network.named_parameters(), network.named_buffers())]
    assert sorted(held) == sorted(owned)
    for module in modules:
        assert not any(inner.training for inner in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        for path, tensor in chain(module.named_parameters(), module.named_buffers()):
            if path in owned:
                assert tensor.data_ptr() == network.state_dict(keep_vars=True).get(path, tensor).data_ptr()
    return parts


class Block(nn.Module):
    def __init__(self, channels: int, *, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = activation or nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.activation(self.first(x)))


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 8), ("mobilenetv3_small_050", 11), ("convnext_atto", 12), ("densenet121", 4)]
)
def test_images_too_small_for_the_last_stage_are_cut_as_often(name: str, count: int) -> None:
    network = build(f"timm:{name}").eval()
    images = torch.randn(2, 3, 32, 32)
    parts = cut(network, images)
    assert len(parts) == count
    assert parts.shapes[-1].height == parts.shapes[-1].width == 1
    assert torch.equal(parts.head(parts.features(images)), network(images))


@pytest.mark.parametrize(
    ("name", "options", "size", "first", "last"),
    [
        (
            "vit_tiny_patch16_224", {"img_size": (64, 96), "reg_tokens": 4, "depth": 2}, (64, 96),
            FeatureShape("tokens", 192, 4, 6, prefix_tokens=5), FeatureShape("tokens", 192, 4, 6, prefix_tokens=5),
        ),
        (
            "vit_tiny_patch16_224", {"img_size": 64, "class_token": False, "global_pool": "avg", "depth": 2}, (64, 64),
            FeatureShape("tokens", 192, 4, 4), FeatureShape("tokens", 192, 4, 4),
        ),
        (
            "swin_tiny_patch4_window7_224", {"img_size": (64, 128), "depths": (1, 1, 1, 1)}, (64, 128),
            FeatureShape("map", 96, 16, 32, channels_last=True), FeatureShape("map", 768, 2, 4, channels_last=True),
        ),
        ("resnet18", {}, (64, 96), FeatureShape("map", 64, 16, 24), FeatureShape("map", 512, 2, 3)),
    ],
)  # fmt: skip
def test_shapes_of_images_that_are_no_squares(
    name: str, options: dict[str, object], size: tuple[int, int], first: FeatureShape, last: FeatureShape
) -> None:
    parts = cut(timm.create_model(name, **options), torch.randn(1, 3, *size))
    assert (parts.shapes[0], parts.shapes[-1]) == (first, last)


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.randn(8, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drawn


class Small(nn.Module):
    """A stem, blocks, a layer after them, pooling, a layer after it, and a classifier."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList(Block(8) for _ in range(blocks))
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(8, 6, 1)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.squeeze(self.pool(self.norm(x))).flatten(1))


def parameters_of(module: nn.Module) -> set[str]:
    return {name.rpartition(".")[0] for name, _ in module.named_parameters()}


@pytest.mark.parametrize("size", [32, 4])  # of 4 pixels one is left before the pooling
def test_stem_goes_first_late_layers_last_and_pooling_heads(size: int) -> None:
    parts = cut(Small(), torch.randn(2, 3, size, size))
    assert parts.cut_points == ["blocks.0", "blocks.1", "blocks.2"]
    assert parameters_of(parts.segments[0]) == {"stem", "blocks.0.first", "blocks.0.second"}
    assert parameters_of(parts.segments[2]) == {"blocks.2.first", "blocks.2.second", "norm"}
    assert parameters_of(parts.head) == {"squeeze", "classifier"}
    assert parts.input_shape == FeatureShape("map", 3, size, size)
    assert parts.shapes == [FeatureShape("map", 8, size // 4, size // 4)] * 3
    assert parts.shape_before(0) == parts.input_shape


class Residual(nn.Module):
    """An inverted residual: its gate, the only part with several layers, ends where one tensor crosses."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        gate = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1))
        self.block = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), gate, nn.Conv2d(channels, channels, 1))
        self.drop = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.block(x))


def test_stages_that_the_standardization_flattens_are_cut_between_their_modules() -> None:
    stages = [nn.Sequential(*(Residual(4) for _ in range(count))) for count in (2, 3)]
    body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), *stages)
    network = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    images = torch.randn(2, 3, 8, 8)
    assert sum(element.is_block for element in standardize_blocks(network).elements) < 2
    parts = cut(network, images)
    assert parts.cut_points == ["0.1.0", "0.1.1", "0.2.0", "0.2.1", "0.2.2"]
    assert torch.equal(parts.head(parts.features(images)), network(images))


def test_a_skip_over_a_block_joins_it_with_the_next() -> None:
    class Skipping(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.stem(x)
            second = self.blocks[0](first)
            x = self.blocks[2](self.blocks[1](second) + first)
            return self.classifier(self.squeeze(self.pool(self.norm(x))).flatten(1))

    parts = cut(Skipping(), torch.randn(1, 3, 32, 32))
    assert parts.cut_points == ["blocks.1", "blocks.2"]


def test_blocks_that_share_a_tensor_are_not_torn_apart() -> None:
    network = Small(4)
    network.blocks[2].first.weight = network.blocks[1].first.weight
    parts = cut(network, torch.randn(1, 3, 32, 32))
    assert parts.cut_points == ["blocks.0", "blocks.2", "blocks.3"]
    held = [id(p) for part in (*parts.segments, parts.head) for p in part.parameters()]
    assert len(held) == len(set(held)) == len(list(network.parameters()))


def test_what_the_forward_pass_never_uses_keeps_its_place() -> None:
    network = Small()
    network.blocks[1].spare = nn.Linear(2, 2)
    network.token = nn.Parameter(torch.zeros(3))
    parts = cut(network, torch.randn(1, 3, 32, 32))
    assert "blocks.1.spare" in parameters_of(parts.segments[1])
    assert "token" in dict(parts.segments[0].named_parameters())


def test_every_buffer_is_in_a_state_dict_of_the_parts() -> None:
    network = Small()
    network.blocks[1].register_buffer("drawn", torch.randn(8, 1, 1), persistent=False)
    network.blocks[1].activation = nn.Sequential(nn.ReLU(), Adding())
    parts = cut(network, torch.randn(1, 3, 32, 32))
    saved = set(parts.segments[1].state_dict())
    assert {"blocks.1.drawn", "blocks.1.activation.1.drawn"} <= saved
    assert not {name for name in network.state_dict() if "drawn" in name}


def test_sizes_of_the_batch_cross_a_cut() -> None:
    class Sized(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, _, height, _ = x.shape
            x = self.blocks[0](self.stem(x))
            x = self.blocks[1](x).reshape(batch * 2, -1).reshape(batch, 8, height // 4, -1)
            return self.classifier(self.squeeze(self.pool(self.norm(self.blocks[2](x)))).flatten(1))

    network = Sized().eval()
    parts = cut(network, torch.randn(1, 3, 32, 32))
    assert len(parts) == 3
    images = torch.randn(5, 3, 32, 32)
    assert torch.equal(parts.head(parts.features(images)), network(images))


def test_activations_in_place_leave_what_comes_in() -> None:
    class Overwriting(Small):
        def __init__(self) -> None:
            super().__init__()
            self.activation = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = block(self.activation(x))
            return self.classifier(self.squeeze(self.pool(self.norm(x))).flatten(1))

    network = Overwriting().eval()
    images = torch.randn(2, 3, 32, 32)
    parts = cut(network, images)
    assert len(parts) == 3
    with torch.no_grad():
        features = parts.segments[0](images)
        kept = features.clone()
        parts.segments[1](features)
        assert torch.equal(features, kept)
        assert torch.equal(parts.head(parts.features(images)), network(images))


def test_layers_keep_their_train_and_eval_mode() -> None:
    parts = cut(build("timm:mobilenetv3_small_050"), torch.randn(1, 3, 64, 64))  # its norms hold activations
    segment = parts.segments[2].train()
    norms = [module for module in segment.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.training for norm in norms)
    before = [norm.running_mean.clone() for norm in norms]
    segment(torch.randn(2, *parts.shapes[1].size))
    assert not any(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


class TestRefused:
    def test_a_forward_that_branches_on_its_input(self) -> None:
        class Branching(Small):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x) if x.sum() > 0 else super().forward(-x)

        with pytest.raises(UnsupportedNetworkError, match=r"Branching cannot be traced: TraceError"):
            cut(Branching(), torch.randn(1, 3, 32, 32))

    def test_two_inputs(self) -> None:
        class Two(Small):
            def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return super().forward(x * mask)

        with pytest.raises(UnsupportedNetworkError, match="Two needs the argument 'mask' beside the images"):
            cut(Two(), torch.randn(1, 3, 32, 32))

    def test_images_of_other_channels(self) -> None:
        with pytest.raises(UnsupportedNetworkError, match=r"Small does not run on images of shape \(4, 32, 32\)"):
            cut(Small(), torch.randn(1, 4, 32, 32))

    def test_no_blocks(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        with pytest.raises(CutError, match="Sequential has no block before its head"):
            cut(network, torch.randn(1, 3, 32, 32))

    def test_no_features(self) -> None:
        with pytest.raises(CutError, match=r"has no features \(B, C, H, W\)"):
            cut(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.randn(1, 3, 2, 2))

    def test_no_images(self) -> None:
        with pytest.raises(CutError, match=r"inputs of shape \(4, 6\); images \(B, C, H, W\)"):
            cut(nn.Sequential(nn.Linear(6, 2)), torch.randn(4, 6))
