"""What a least-squares start of stitches gains over a random one: accuracy after 0, 1, 2, ... epochs.

Assemblies of two CIFAR ResNets, cut at random places; only stitches and a new head are trained. A head as drawn knows
nothing, so that before any training accuracy says nothing of stitches: beside it stands how far the stitched features
are from what the next block expects (mean squared error over variance, on test images). "fitted" begins with a logistic
regression as the head, too, on the same images. Finished runs are kept in OUT/runs.csv.

    python bench/experiments/stitch_start.py
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from assemble_sources import source
from cifar10 import Normalize, read
from cifar_resnet import MEAN, STD
from markdown import table
from provenance import ROOT, commit
from rich.console import Console
from torch import nn

import pyassemble as pa
from pyassemble.assemble import initialize_head, initialize_stitches
from pyassemble.atomic import replacing
from pyassemble.training.metrics import measure_quality

NAMES = ("resnet20_cifar", "resnet32_cifar", "resnet56_cifar")
COLUMNS = ("start", "pair", "epoch", "accuracy", "mismatch", "start_seconds", "conditions", "torch", "commit")
STARTS = ("random", "least_squares", "fitted")


def drawn_pair(repository: pa.Repository, seed: int) -> list[pa.Block]:
    """The first part of one network and the last part of another."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (NAMES[i] for i in torch.randperm(len(NAMES), generator=generator)[:2].tolist())
    cuts = []
    for name in (first, second):
        third = len(repository[name]) // 3
        cuts.append(int(torch.randint(third, 2 * third + 1, (1,), generator=generator)))
    return [pa.Block(first, 0, cuts[0]), pa.Block(second, cuts[1], len(repository[second]) - 1)]


@torch.no_grad()
def mismatch(assembly: pa.Assembly, repository: pa.Repository, images: torch.Tensor) -> float:
    row = assembly.recipe.blocks[1]
    own = nn.Sequential(*repository[row.network].segments[: row.first])(images)
    stitched = assembly.stitches[1](assembly.blocks[0](images))
    return float((stitched - own).square().mean() / own.var())


def report(rows: list[dict[str, str]], out: Path, console: Console) -> None:
    epochs = sorted({int(row["epoch"]) for row in rows})
    lines = []
    for start in STARTS:
        of = [row for row in rows if row["start"] == start]
        means = [statistics.mean(float(row["accuracy"]) for row in of if int(row["epoch"]) == e) for e in epochs]
        off = statistics.mean(float(row["mismatch"]) for row in of if row["epoch"] == "0")
        lines.append([start, f"{off:.2f}", *(f"{100 * mean:.1f} %" for mean in means)])
    pairs = sorted({row["pair"] for row in rows})
    at = {(row["start"], row["pair"], int(row["epoch"])): float(row["accuracy"]) for row in rows}
    for start in STARTS[1:]:
        counts = []
        for epoch in epochs:
            both = [pair for pair in pairs if all((s, pair, epoch) in at for s in (start, STARTS[0]))]
            better = sum(at[start, pair, epoch] > at[STARTS[0], pair, epoch] for pair in both)
            counts.append(f"{better} of {len(both)}")
        lines.append([f"{start} ahead of random", "", *counts])
    took = {
        start: statistics.mean(float(row["start_seconds"]) for row in rows if row["start"] == start)
        for start in STARTS[1:]
    }
    text = "\n\n".join(
        [
            "# Least-squares and random starts of stitches",
            table(
                ["start", "mismatch before training", *(f"epoch {epoch}" for epoch in epochs)],
                lines,
            ),
            f"Mean test accuracy of {len(pairs)} assemblies: {'; '.join(pairs)}.",
            f"Conditions: {rows[-1]['conditions']}; torch {rows[-1]['torch']}, commit {rows[-1]['commit']}. "
            "Seconds of the start: " + ", ".join(f"{start} {value:.0f}" for start, value in took.items()) + ".",
        ]
    )
    with replacing(out / "summary.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared/data")
    add("--out", type=Path, default=ROOT / "bench/results/stitch_start")
    add("--images", type=int, default=1000)
    add("--start-images", type=int, default=256)
    add("--test-images", type=int, default=1000)
    add("--epochs", type=int, default=5)
    add("--pairs", type=int, default=3)
    add("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    console = Console()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "runs.csv"
    conditions = (
        f"{options.images} training images, {options.start_images} for the start, {options.test_images} test images, "
        f"{options.epochs} epochs of AdamW 1e-3 cosine with Mixup and CutMix, batch 32, bfloat16"
    )
    rows: list[dict[str, str]] = []
    if file.exists():
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    if any(row["conditions"] != conditions for row in rows):
        raise SystemExit(f"{file} holds runs under other conditions; name another --out")
    networks = {name: source(name, options.data, options.out, images=1, epochs=1) for name in NAMES}
    repository = pa.Repository(networks, torch.zeros(2, 3, 32, 32))
    normalize = Normalize(MEAN, STD)
    train = read(options.data / "cifar10", "train").first(options.images)
    test = read(options.data / "cifar10", "test").first(options.test_images)
    images, test_images = normalize(train.pixels), normalize(test.pixels)
    for seed in range(options.pairs):
        blocks = drawn_pair(repository, seed)
        pair = " → ".join(map(str, blocks))
        for start in STARTS:
            if any((row["start"], row["pair"]) == (start, pair) for row in rows):
                continue
            assembly = pa.Assembly.compose(repository, blocks, 10, seed=seed)
            clock = time.perf_counter()
            first = slice(options.start_images)
            if start != "random":
                initialize_stitches(assembly, repository, images[first])
            if start == "fitted":
                initialize_head(assembly, images[first], train.labels[first])
            took, off = time.perf_counter() - clock, mismatch(assembly, repository, test_images[:256])
            batches = [(test_images[i : i + 250], test.labels[i : i + 250]) for i in range(0, len(test), 250)]
            found = [measure_quality(assembly, batches, 10).accuracy]
            entries = assembly.finetune(
                (images, train.labels),
                validation=(test_images, test.labels),
                epochs=options.epochs,
                batch_size=32,
                seed=seed,
                mixed_precision="bf16",
                progress=False,
            )
            found += [entry["validation"]["accuracy"] for entry in entries]
            for epoch, accuracy in enumerate(found):
                values = (start, pair, epoch, accuracy, off, took, conditions, torch.__version__, commit())
                rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
            with replacing(file) as temporary, temporary.open("w", newline="") as stream:
                writer = csv.DictWriter(stream, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            console.print(f"{pair}, {start}: {', '.join(f'{100 * a:.1f}' for a in found)} %", markup=False)
    report(rows, options.out, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
