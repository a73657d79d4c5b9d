"""Alignment and transfer against DPIAT's published code, interleaved in one run (targets: 1 000 × and 50 ×)."""

from __future__ import annotations

import copy
import statistics
import time
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

import pyassemble as pa
from bench.peers import iatransfer

if TYPE_CHECKING:
    from collections.abc import Callable


def interleaved(
    ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, ours_per_round: int
) -> tuple[float, float]:
    """Median seconds of both, in alternating turns, so that a change of the machine's speed meets both."""
    mine, theirs = [], []
    ours()
    for _ in range(rounds):
        for _ in range(ours_per_round):
            start = time.perf_counter()
            ours()
            mine.append(time.perf_counter() - start)
        start = time.perf_counter()
        peer()
        theirs.append(time.perf_counter() - start)
    return statistics.median(mine), statistics.median(theirs)


@pytest.mark.benchmark(group="align tf_efficientnet_b7 → tf_efficientnet_b6")
def test_align_one_pair(benchmark: Any, record: Any) -> None:
    published = iatransfer()
    with torch.device("meta"):
        source, target = timm.create_model("tf_efficientnet_b7"), timm.create_model("tf_efficientnet_b6")

    def align_as_published() -> list[Any]:
        matching = published.DPMatching()
        matching.set_score(published.ShapeScore())
        standardize = published.BlocksStandardization()
        return matching.match(standardize(source), standardize(target))

    def flat(pairs: list[Any]) -> list[tuple[Any, Any]]:
        return [p for item in pairs for p in (flat(item) if isinstance(item, list) else [item]) if None not in p]

    # The same pairs, before any timing.
    names = [{module: name for name, module in network.named_modules()} for network in (source, target)]
    assert [(names[0][s], names[1][t]) for s, t in flat(align_as_published())] == pa.align(source, target).pairs

    mine, theirs = interleaved(lambda: pa.align(source, target), align_as_published, rounds=3, ours_per_round=30)
    record("align tf_efficientnet_b7 -> tf_efficientnet_b6", mine, "s", peer="iatransfer 1.0.3", peer_value=theirs)
    benchmark.extra_info["ratio"] = theirs / mine
    benchmark(pa.align, source, target)


@pytest.mark.benchmark(group="transfer efficientnet_b0 → efficientnet_b2")
def test_transfer_in_all(benchmark: Any, record: Any) -> None:
    published = iatransfer()
    source, target = timm.create_model("efficientnet_b0"), timm.create_model("efficientnet_b2")
    theirs_target = copy.deepcopy(target)
    iat = published.IAT()

    pa.transfer(source, target, buffers=False)
    iat(source, theirs_target)
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), theirs_target.parameters(), strict=True))

    mine, theirs = interleaved(
        lambda: pa.transfer(source, target), lambda: iat(source, theirs_target), rounds=5, ours_per_round=10
    )
    record("transfer efficientnet_b0 -> efficientnet_b2", mine, "s", peer="iatransfer 1.0.3", peer_value=theirs)
    benchmark.extra_info["ratio"] = theirs / mine
    benchmark(pa.transfer, source, target)
