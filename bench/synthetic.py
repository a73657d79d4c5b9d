"""Synthetic but realistic networks: timm's architectures, made wider or narrower, deeper or shallower.

A zoo of a hundred thousand such networks has what a large repository has: families that share blocks, many widths.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pyassemble as pa
from pyassemble.network.layers import Element, LayerSequence
from pyassemble.zoo import Entry
from pyassemble.zoo.tables import FIRST_BLOCK, UNSCORED, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

# Width multipliers as papers use them, 0.5 to 2 in steps of an eighth; most networks keep their width.
_WIDTHS = [0.5 + i / 8 for i in range(13)] + [1.0] * 5
_UNCHANGED = 16  # kernels, image channels and groups below this size are no widths


def sequences(tables: Tables) -> list[LayerSequence]:
    """The networks of a zoo, without names of layers."""
    kinds, layers, blocks = list(tables.kinds), list(tables._layers), list(tables._blocks)
    found = []
    for network in tables._networks:
        numbers: list[int] = []
        elements = []
        for element in network:
            start = len(numbers)
            numbers += blocks[FIRST_BLOCK - element] if element <= FIRST_BLOCK else (element,)
            elements.append(Element(start, len(numbers), element <= FIRST_BLOCK))
        scored = [None if number == UNSCORED else layers[number] for number in numbers]
        found.append(
            LayerSequence(
                ("",) * len(numbers),
                tuple(None if layer is None else kinds[layer[0]] for layer in scored),
                tuple(() if layer is None else layer[1] for layer in scored),
                tuple(elements),
            )
        )
    return found


def mutated(count: int, seed: int = 0) -> Iterator[Entry]:
    """That many networks under numbered names."""
    bases = sequences(pa.Zoo.timm()._index.tables)
    generator = random.Random(seed)
    for i in range(count):
        yield Entry(f"synthetic{i:06d}", _mutation(generator.choice(bases), generator), 0)


def _mutation(base: LayerSequence, generator: random.Random) -> LayerSequence:
    width = generator.choice(_WIDTHS)
    kept: list[Element] = []
    for element in base.elements:
        chance = generator.random() if element.is_block else 1.0
        if chance < 0.1 and len(kept) > 1:
            continue  # shallower
        kept += [element] * (2 if chance > 0.9 and element.is_block else 1)  # deeper
    kinds: list[str | None] = []
    shapes: list[tuple[int, ...]] = []
    elements = []
    for element in kept:
        start = len(kinds)
        kinds += base.kinds[element.start : element.stop]
        shapes += [_scaled(shape, width) for shape in base.shapes[element.start : element.stop]]
        elements.append(Element(start, len(kinds), element.is_block))
    return LayerSequence(("",) * len(kinds), tuple(kinds), tuple(shapes), tuple(elements))


def _scaled(shape: tuple[int, ...], width: float) -> tuple[int, ...]:
    # Multiples of eight, as published networks have them.
    return tuple(max(8, round(n * width / 8) * 8) if n >= _UNCHANGED else n for n in shape)
