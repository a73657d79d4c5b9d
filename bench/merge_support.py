"""Which architectures ``pa.merge`` takes: the smallest network of every timm family, one row each.

    python bench/merge_support.py

Writes bench/results/merge_support.csv and .md. Rows that are there already are kept, so the run can be interrupted.
"""

from __future__ import annotations

import csv
import math
import time
import warnings
from pathlib import Path

import timm
import torch
from torch import nn
from tqdm import tqdm

import pyassemble as pa
from pyassemble.network.operations import ATTENTION, MATMULS
from pyassemble.network.traced import trace

RESULTS = Path(__file__).parent / "results"
FIELDS = ("family", "network", "kind", "accepted", "deviation", "groups", "seconds", "reason")

#: Vision transformers without convolutions beyond the patch embedding.
PLAIN_VITS = ("vision_transformer", "deit", "beit", "eva")
LARGEST = 60_000_000


def smallest_of_each_family() -> dict[str, str]:
    """Family to its network with the least work, by the parameters in the shipped index and the size of the input."""
    zoo = pa.Zoo.timm()
    best: dict[str, tuple[float, str]] = {}
    for name in timm.list_models():
        parameters = zoo.entry(name).parameters
        height = timm.models.get_pretrained_cfg(name).input_size[1]
        if parameters <= LARGEST:
            family = timm.models._registry._model_to_module[name]
            best[family] = min(best.get(family, (math.inf, "")), (parameters * (height / 224) ** 2, name))
    return {family: name for family, (_, name) in best.items()}


def build(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=10).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return network


def row(family: str, name: str) -> dict[str, object]:
    networks = [build(name, seed) for seed in (0, 1)]
    images = torch.randn(2, *networks[0].pretrained_cfg["input_size"])
    result: dict[str, object] = {"family": family, "network": name, "kind": "unknown", "accepted": "no"}
    start = time.perf_counter()
    try:
        targets = {node.target for node in trace(networks[0], images).graph.graph.nodes}
        result["kind"] = "attention" if targets & (ATTENTION | MATMULS) else "convolution"
        student = pa.merge(networks, images)
    except pa.PyAssembleError as error:
        return result | {"reason": str(error)}
    with torch.no_grad(), student.opened():
        mean = torch.stack([network(images) for network in networks]).mean(0)
        deviation = float((student(images) - mean).abs().max() / mean.abs().max())
    seconds = time.perf_counter() - start
    return result | {
        "accepted": "yes",
        "deviation": f"{deviation:.1e}",
        "groups": len(student.gate_groups),
        "seconds": f"{seconds:.1f}",
    }


def write_table(rows: list[dict[str, object]]) -> None:
    lines = ["# Which architectures `pa.merge` takes", ""]
    lines += [
        f"The smallest network of each family of timm {timm.__version__} that has one of up to {LARGEST // 1_000_000} "
        "million parameters, with random weights. Made by bench/merge_support.py.",
        "",
    ]
    for kind in ("convolution", "attention", "unknown"):
        mine = [row for row in rows if row["kind"] == kind]
        taken = sum(row["accepted"] == "yes" for row in mine)
        lines.append(f"- {kind}: {taken} of {len(mine)} families")
    plain = [row for row in rows if row["family"] in PLAIN_VITS]
    lines.append(f"- plain vision transformers: {sum(row['accepted'] == 'yes' for row in plain)} of {len(plain)}")
    lines += [
        "",
        "| family | network | kind | accepted | distance from the mean | reason |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        reason = str(row.get("reason") or "").replace("|", "/")
        lines.append(
            f"| {row['family']} | {row['network']} | {row['kind']} | {row['accepted']} | {row.get('deviation') or ''} "
            f"| {reason} |"
        )
    (RESULTS / "merge_support.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    warnings.simplefilter("ignore")
    path = RESULTS / "merge_support.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    done = {row["family"] for row in rows}
    for family, name in tqdm(smallest_of_each_family().items()):
        if family in done:
            continue
        rows.append(row(family, name))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    write_table(rows)


if __name__ == "__main__":
    main()
