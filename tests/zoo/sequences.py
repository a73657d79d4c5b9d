"""Small networks for tests of the zoo, as sequences of layers: random ones, and what they consist of spelled out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from pyassemble.network.layers import Element, Layer, LayerSequence
from pyassemble.zoo import Entry, Zoo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyassemble.zoo.tables import Tables

# Few kinds and sizes, so that equal layers, equal blocks and equal networks come up; a size of 0 is an empty tensor.
LAYERS = st.one_of(
    st.just((None, ())),
    st.tuples(
        st.sampled_from(["Conv2d", "Linear", "BatchNorm2d"]),
        st.lists(st.sampled_from([1, 2, 3, 4, 8, 8, 8, 16, 0]), max_size=2).map(tuple),
    ),
)
BLOCKS = st.lists(LAYERS, min_size=1, max_size=5)


def sequence_of(
    elements: Iterable[Sequence[tuple[str | None, tuple[int, ...]]] | tuple[str | None, tuple[int, ...]]],
) -> LayerSequence:
    """A network of single layers (tuples) and blocks (lists)."""
    layers: list[Layer] = []
    runs: list[Element] = []
    for element in elements:
        rows = element if isinstance(element, list) else [element]
        runs.append(Element(len(layers), len(layers) + len(rows), isinstance(element, list)))
        layers += [Layer(f"layer{len(layers) + i}", kind, shape) for i, (kind, shape) in enumerate(rows)]
    return LayerSequence.of(layers, runs)


@st.composite
def networks(draw: st.DrawFn, min_size: int = 0, max_size: int = 7) -> list[LayerSequence]:
    """Several networks that share layers and blocks; some are equal, some have no block, some have one layer."""
    blocks = draw(st.lists(BLOCKS, min_size=1, max_size=3))
    element = st.one_of(LAYERS, st.sampled_from(blocks))
    some = draw(st.lists(st.lists(element, max_size=6).map(sequence_of), min_size=min_size, max_size=max_size))
    return [*some, draw(st.sampled_from(some))] if some and draw(st.booleans()) else some


def zoo_of(sequences: Iterable[LayerSequence]) -> Zoo:
    """A zoo of these networks under names net0, net1, ..."""
    return Zoo.of(Entry(f"net{i}", layers, 7 + i) for i, layers in enumerate(sequences))


def spelled_out(tables: Tables) -> list[object]:
    """What the networks of these tables consist of, whichever numbers their layers and blocks have."""
    arrays = tables.arrays()
    kinds = list(tables.kinds)

    def part(values: object, offsets: object, i: int) -> list[int]:
        return values[offsets[i] : offsets[i + 1]].tolist()  # type: ignore[index]

    def layer(number: int) -> object:
        if number == -1:
            return None
        return kinds[arrays.layer_kinds[number]], part(arrays.sizes, arrays.size_offsets, number)

    def element(number: int) -> object:
        if number > -2:
            return layer(number)
        return [layer(n) for n in part(arrays.block_layers, arrays.block_offsets, -2 - number)]

    return [
        [element(e) for e in part(arrays.network_elements, arrays.network_offsets, i)]
        for i in range(len(arrays.network_offsets) - 1)
    ]
