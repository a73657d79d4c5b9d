from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pyassemble.errors import StandardizationWarning
from pyassemble.network import standardize
from tests.networks import build, images_for, same_state, snapshot

ARCHITECTURES = [
    "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224", "timm:convnext_atto", "timm:mixer_s32_224",
    "timm:cait_xxs24_224", "timm:levit_128s", "timm:coatnet_nano_rw_224", "timm:mobilevit_xxs", "timm:poolformer_s12",
    "timm:eva02_tiny_patch14_224", "timm:beit_base_patch16_224", "timm:xcit_nano_12_p8_224", "timm:volo_d1_224",
    "timm:edgenext_xx_small", "timm:resmlp_12_224", "timm:gmlp_s16_224", "timm:twins_pcpvt_small", "timm:pvt_v2_b0",
    "timm:nfnet_l0", "timm:hrnet_w18_small", "timm:ghostnet_100", "timm:fastvit_t8", "timm:repvit_m0_9",
    "timm:visformer_tiny", "timm:tnt_s_patch16_224", "timm:crossvit_tiny_240", "timm:deit_tiny_distilled_patch16_224",
    "torchvision:vit_b_16", "torchvision:swin_v2_t", "torchvision:maxvit_t", "torchvision:convnext_tiny",
    "torchvision:mnasnet0_5", "torchvision:squeezenet1_0", "torchvision:efficientnet_v2_s",
]  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_takes_part_once(name: str) -> None:
    network = build(name, meta=True)
    sequence = standardize(network, "graph")
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    taken: list[str] = []
    for layer in sequence.layers:
        module = modules.get(layer.name)
        if module is None:
            lead = parameters[layer.name]
            taken.append(layer.name)
            if layer.name.endswith("in_proj_weight"):
                taken.append(layer.name.replace("weight", "bias"))
        else:
            lead = module.weight
            taken += [f"{layer.name}.{role}" for role, _ in module.named_parameters(recurse=False)]
        assert layer.shape == tuple(lead.shape)
    assert sorted(taken) == sorted(parameters)


def test_execution_order_beats_definition_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))
            self.first = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x) * self.scale)

    names = [layer.name for layer in standardize(Backwards(), "graph").layers]
    assert names == ["first.0", "first.1", "scale", "last"]


def test_kinds_are_base_class_and_role() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
            self.conv = nn.Conv2d(8, 8, 3, groups=8)
            self.group = nn.Conv2d(8, 8, 3, groups=2)
            self.dense = nn.Conv2d(8, 8, 3)
            self.attention = nn.MultiheadAttention(8, 2)
            self.embedding = nn.Embedding(5, 8)
            self.norm = nn.BatchNorm1d(8, affine=False)

    with pytest.warns(StandardizationWarning):
        kinds = {layer.name: layer.kind for layer in standardize(Tokens(), "graph").layers}
    assert kinds == {
        "cls_token": "Module.cls_token",
        "conv": "Conv2d.depthwise",
        "group": "Conv2d.grouped",
        "dense": "Conv2d.weight",
        "attention.in_proj_weight": "Linear.weight",
        "attention.out_proj": "Linear.weight",
        "embedding": "Embedding.weight",
        "norm.running_mean": "BatchNorm1d.running_mean",
    }


class Stubborn(nn.Module):
    """Cannot be traced symbolically at its root."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 4)
        self.a = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum().item() is None:
            return x
        if x.shape[0] > 100:
            return x
        return self.b(self.a(x))


class Branching(nn.Module):
    """Chooses by shape, which a symbolic trace cannot follow and a run on fake tensors can."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(4, 4)
        self.a = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x)) if x.shape[0] < 100 else x


def test_an_example_input_orders_what_fx_cannot_trace() -> None:
    with pytest.warns(StandardizationWarning, match=r"Branching could not be traced .*definition order"):
        fallback = standardize(Branching(), "graph")
    assert [layer.name for layer in fallback.layers] == ["b", "a"]
    traced = standardize(Branching(), "graph", torch.zeros(2, 4))
    assert [layer.name for layer in traced.layers] == ["a", "b"]


def test_untraceable_parts_do_not_spoil_the_rest() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body = Branching()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x))

    # The body is opaque to the trace, so its own layers keep definition order; body and head are in order of use.
    assert [layer.name for layer in standardize(Outer(), "graph").layers] == ["body.b", "body.a", "head"]


def test_a_root_that_cannot_be_traced_is_traced_by_parts() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Linear(4, 4)
            self.early = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.late(self.early(x))

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if x.shape[0] else x

    with pytest.warns(StandardizationWarning):
        assert [layer.name for layer in standardize(Root(), "graph").layers] == ["inner.early", "inner.late"]


def test_what_cannot_even_be_copied_keeps_definition_order() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network.stream = (x for x in "generators cannot be copied")
    with pytest.warns(StandardizationWarning, match="cannot be copied"):
        assert [layer.name for layer in standardize(network, "graph").layers] == ["0"]


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:mobilenetv3_small_050", "torchvision:googlenet"])
def test_tracing_leaves_the_network_alone(name: str) -> None:
    network = build(name).train()
    before, modes = snapshot(network), [module.training for module in network.modules()]
    attributes = {module: set(vars(module)) for module in network.modules()}
    standardize(network, "graph", images_for(network, 1))
    assert same_state(network, before)
    assert modes == [module.training for module in network.modules()]
    assert attributes == {module: set(vars(module)) for module in network.modules()}


def test_the_order_does_not_depend_on_the_mode() -> None:
    network = build("torchvision:googlenet", meta=True)
    assert standardize(network.train(), "graph") == standardize(network.eval(), "graph")


def test_coupled_vit_blocks_are_blocks() -> None:
    sequence = standardize(build("timm:vit_tiny_patch16_224", meta=True), "graph")
    assert sum(element.is_block for element in sequence.elements) == 12
    assert math.prod(sequence.layers[0].shape) > 0


def test_tracing_runs_no_hooks_and_moves_no_state() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            return self.layer(x + torch.randn(4))

    network, seen = Counting(), []
    network.layer.register_forward_hook(lambda *args: seen.append(args))
    network.register_forward_pre_hook(lambda *args: seen.append(args))
    state = torch.random.get_rng_state()
    standardize(network, "graph", torch.zeros(1, 4))
    assert network.steps == 0
    assert seen == []
    assert torch.equal(state, torch.random.get_rng_state())


def test_frozen_norms_take_part() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    import pyassemble as pa

    def build_frozen(seed: int) -> nn.Sequential:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.Conv2d(4, 2, 1))
        generator = torch.Generator().manual_seed(seed)
        for buffer in network.buffers():
            buffer.uniform_(0.5, 1.5, generator=generator)
        return network.eval()

    source, target = build_frozen(1), build_frozen(2)
    images = torch.randn(2, 3, 8, 8)
    # Blocks score no such layer: it stays, and the report says so.
    assert pa.transfer(source, target).coverage < 1
    assert pa.transfer(source, target, standardization="graph").coverage == 1.0
    with torch.no_grad():
        assert torch.equal(source(images), target(images))
