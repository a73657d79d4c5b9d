"""Count the segments of many architectures, and check for each that they compute what the network does.

python -m bench.cut_points

Writes bench/results/cut_points.md. Networks have random weights and see their own default image size.
"""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torchvision
from torch import nn

from pyassemble.errors import PyAssembleError
from pyassemble.network.cuts import CutNetwork, cut
from pyassemble.network.sources import load_network
from tests.networks import images_for, scramble

RESULTS = Path(__file__).parent / "results" / "cut_points.md"

NETWORKS = [
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "seresnet50", "resnetv2_50"),
    *("resnetrs50", "ecaresnet26t", "wide_resnet50_2", "res2net50_26w_4s", "skresnet18", "resnest14d", "nfnet_l0"),
    *("densenet121", "densenet169", "vgg16_bn", "inception_v3", "inception_v4", "xception41", "dla34", "dpn68"),
    *("vovnet39a", "hrnet_w18_small", "cspresnet50", "darknet53", "regnetx_002", "regnety_008", "regnety_032"),
    *("mobilenetv2_100", "mobilenetv3_large_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mnasnet_100"),
    *("efficientnet_b0", "efficientnetv2_rw_t", "tf_efficientnet_lite0", "mixnet_s", "ghostnet_100", "hardcorenas_a"),
    *("rexnet_100", "tinynet_a", "repvit_m0_9", "fastvit_t8", "mobileone_s0", "convnext_atto", "convnextv2_atto"),
    *("focalnet_tiny_srf", "poolformer_s12", "edgenext_xx_small", "mobilevit_xxs", "coatnet_nano_rw_224"),
    *("maxvit_nano_rw_256", "vit_tiny_patch16_224", "vit_small_patch32_224", "vit_base_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224", "cait_xxs24_224"),
    *("xcit_nano_12_p8_224", "volo_d1_224", "tnt_s_patch16_224", "pvt_v2_b0", "twins_pcpvt_small", "levit_128s"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mixer_s32_224", "resmlp_12_224", "gmlp_s16_224"),
    *("visformer_tiny", "crossvit_tiny_240", "hiera_tiny_224", "efficientvit_b0", "mvitv2_tiny"),
    *("torchvision:resnet50", "torchvision:densenet121", "torchvision:googlenet", "torchvision:mobilenet_v3_large"),
    *("torchvision:efficientnet_b0", "torchvision:convnext_tiny", "torchvision:vit_b_16", "torchvision:swin_t"),
    *("torchvision:maxvit_t", "torchvision:regnet_y_800mf", "torchvision:shufflenet_v2_x1_0", "torchvision:mnasnet0_5"),
]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    segments: str
    first: str
    last: str
    same: str
    once: str
    seconds: str


def row(name: str) -> Row:
    """Cuts a network, and runs it whole and in parts."""
    torch.manual_seed(0)
    network = load_network(name if ":" in name else f"timm:{name}").eval()
    scramble(network)
    images = images_for(network)
    start = time.perf_counter()
    try:
        parts = cut(network, images)
    except PyAssembleError as error:
        return Row(name, f"{type(error).__name__}: {error}"[:90], "", "", "", "", "")
    seconds = time.perf_counter() - start
    with torch.no_grad():
        same = torch.equal(parts.head(parts.features(images)), network(images))
    once = belongs_once(network, parts)
    ends = (str(parts.shapes[0]), str(parts.shapes[-1]))
    return Row(name, str(len(parts)), *ends, "yes" if same else "NO", "yes" if once else "NO", f"{seconds:.2f}")


def belongs_once(network: nn.Module, parts: CutNetwork) -> bool:
    """Whether each tensor of the network is in exactly one part, by its name and memory."""
    expected = sorted((name, t.data_ptr()) for name, t in chain(network.named_parameters(), network.named_buffers()))
    found = sorted(
        (name, tensor.data_ptr())
        for part in (*parts.segments, parts.head)
        for name, tensor in chain(part.named_parameters(), part.named_buffers())
        if not name.startswith("_tensor_constant")  # what the network computes from its tensors before it sees images
    )
    return expected == found


def main() -> None:
    """Write the table."""
    rows = []
    for name in NETWORKS:
        rows.append(row(name))
        print(*rows[-1], sep="  ", flush=True)
    cuttable = [r for r in rows if r.segments.isdigit()]
    lines = [
        "# Cut points",
        f"`python -m bench.cut_points`: {len(cuttable)} of {len(rows)} architectures are cut, "
        f"{sum(r.same == 'yes' for r in cuttable)} of them compute the same bits in parts, head included, and in "
        f"{sum(r.once == 'yes' for r in cuttable)} each tensor belongs to exactly one part. timm {timm.__version__}, "
        f"torchvision {torchvision.__version__}, torch {torch.__version__}; random weights, two images of the default "
        "size.",
        "| network | segments | after the first | before the head | same bits | each tensor once | seconds to cut |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(f"| {' | '.join(r)} |" for r in rows),
    ]
    RESULTS.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
