"""Runs cover the names, and labels name each family once where it is only interrupted."""

from __future__ import annotations

from pyassemble.report.family_runs import (
    FAMILY_COLOURS,
    OTHER_COLOUR,
    Run,
    family_colours,
    family_runs,
    joined,
    longest,
)


def test_runs() -> None:
    assert family_runs(["resnet50", "resnet18", "vgg11", "resnet34"]) == [
        Run("resnet", 0, 2),
        Run("vgg", 2, 3),
        Run("resnet", 3, 4),
    ]
    assert family_runs([]) == []


def test_interrupted_runs_are_joined() -> None:
    runs = [Run("a", 0, 3), Run("b", 3, 4), Run("a", 4, 6), Run("c", 6, 9), Run("a", 9, 10)]
    assert joined(runs, 1) == [Run("a", 0, 6), Run("b", 3, 4), Run("c", 6, 9), Run("a", 9, 10)]
    assert joined(runs, 0) == runs


def test_longest_keeps_the_order() -> None:
    runs = [Run("a", 0, 2), Run("b", 2, 5), Run("c", 5, 6), Run("d", 6, 8)]
    assert longest(runs, 2) == [runs[0], runs[1]]
    assert longest(runs, 9) == runs
    assert longest(runs, 0) == []


def test_colours_go_to_the_largest() -> None:
    names = [f"{letter}net{size}" for index, letter in enumerate("abcdefghijklmnop") for size in range(20 - index)]
    colours = family_colours([*names, "single1"])
    assert list(colours.values()) == [*FAMILY_COLOURS, *[OTHER_COLOUR] * 5]
    assert next(iter(colours)) == "anet"
