"""Families come from the text of a name, by rule."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torchvision

from pyassemble.report.families import family


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", "resnet"),
        ("ResNet-50", "resnet"),
        ("timm:resnet50.a1_in1k", "resnet"),
        ("tf_efficientnet_b7_ns", "efficientnet"),
        ("hf-hub:timm/tf_efficientnet_b7.ns_jft_in1k", "efficientnet"),
        ("microsoft/resnet-50", "resnet"),
        ("torchvision:efficientnet_v2_s", "efficientnet"),
        ("vit_base_patch16_224", "vit"),
        ("vit_relpos_base_patch16_224", "vit"),
        ("tiny_vit_5m_224", "vit"),
        ("convnextv2_tiny", "convnext"),
        ("gc_efficientnetv2_rw_t", "efficientnet"),
        ("wide_resnet50_2", "resnet"),
        ("nf_ecaresnet26", "ecaresnet"),
        ("dm_nfnet_f0", "nfnet"),
        ("legacy_seresnet18", "seresnet"),
        ("res2net50_14w_8s", "res2net"),
        ("pnasnet5large", "pnasnet"),
        ("inception_next_tiny", "inception"),
        ("x3d_m", "x3d"),
        ("conv2d_net", "conv"),
        ("networks/mine.py:MyNet", "mynet"),
        ("zoo/resnet50/", "resnet"),
        ("test", "test"),
        ("50", "50"),
        ("</script>", "script"),
        ("", ""),
    ],
)
def test_family(name: str, expected: str) -> None:
    assert family(name) == expected


def test_families_of_timm() -> None:
    names = timm.list_models()
    count = Counter(map(family, names))
    assert 60 <= len(count) <= 160
    assert sum(size == 1 for size in count.values()) < 0.25 * len(count)
    assert all(3 <= len(name) <= 16 for name in count)
    assert count["vit"] > 150
    assert count["efficientnet"] > 60


def test_families_of_torchvision() -> None:
    names = torchvision.models.list_models()
    assert {family(f"torchvision:{name}") for name in names} == {family(name) for name in names}
    assert {"resnet", "regnet", "vgg", "swin", "mobilenet"} <= set(map(family, names))
