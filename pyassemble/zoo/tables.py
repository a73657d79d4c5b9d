"""Networks as numbered layers and blocks: equal ones are held once, whichever networks they occur in."""

from __future__ import annotations

from functools import cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyassemble.network.backend import backend, kind_id
from pyassemble.network.layers import Element, Layer, LayerSequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from pyassemble.network.backend import Sequence as BackendSequence


#: Elements of blocks and networks are numbers of layers, or:
UNSCORED = -1  #: a layer without weight
FIRST_BLOCK = -2  #: block b is ``FIRST_BLOCK - b``; in networks only


class Arrays(NamedTuple):
    """Tables as arrays. Offsets have one entry more than what they delimit.

    Attributes:
        layer_kinds: int32, position of each layer's kind among the tables' kinds.
        size_offsets: int64, where each layer's sizes start in ``sizes``.
        sizes: int64.
        block_offsets: int64, where each block's layers start in ``block_layers``.
        block_layers: int32.
        network_offsets: int64, where each network's elements start in ``network_elements``.
        network_elements: int32.
    """

    layer_kinds: npt.NDArray[np.int32]
    size_offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    block_offsets: npt.NDArray[np.int64]
    block_layers: npt.NDArray[np.int32]
    network_offsets: npt.NDArray[np.int64]
    network_elements: npt.NDArray[np.int32]


def dtype_of(name: str) -> type[np.int32] | type[np.int64]:
    """Type of the numbers in the array of this name."""
    return np.int64 if name.endswith("offsets") or name == "sizes" else np.int32


class Tables:
    """Layers, blocks and networks, each under its number; grows by :meth:`add`."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self._layers: dict[tuple[int, tuple[int, ...]], int] = {}
        self._blocks: dict[tuple[int, ...], int] = {}
        self._networks: list[tuple[int, ...]] = []

    @classmethod
    def from_arrays(cls, kinds: Iterable[str], arrays: Arrays) -> Tables:
        """Tables of these arrays.

        Raises:
            ValueError: Arrays that contradict each other.
        """
        kinds = list(kinds)
        _check(arrays, len(kinds))
        tables = cls()
        tables.kinds = {kind: i for i, kind in enumerate(kinds)}
        shapes = _rows(arrays.sizes, arrays.size_offsets)
        tables._layers = {key: i for i, key in enumerate(zip(arrays.layer_kinds.tolist(), shapes, strict=True))}
        tables._blocks = {block: i for i, block in enumerate(_rows(arrays.block_layers, arrays.block_offsets))}
        tables._networks = list(_rows(arrays.network_elements, arrays.network_offsets))
        if len(tables.kinds) < len(kinds) or len(tables._layers) < len(arrays.layer_kinds):
            raise ValueError("a kind or a layer occurs twice")
        if len(tables._blocks) < len(arrays.block_offsets) - 1:
            raise ValueError("a block occurs twice")
        return tables

    def __len__(self) -> int:
        return len(self._networks)

    def add(self, layers: LayerSequence) -> None:
        """Add a network."""
        numbers = [
            UNSCORED if kind is None or 0 in shape else self._layer(kind, shape)
            for kind, shape in zip(layers.kinds, layers.shapes, strict=True)
        ]
        self._networks.append(
            tuple(
                FIRST_BLOCK - self._blocks.setdefault(tuple(numbers[start:stop]), len(self._blocks))
                if is_block
                else numbers[start]
                for start, stop, is_block in layers.elements
            )
        )

    def _layer(self, kind: str, shape: tuple[int, ...]) -> int:
        key = (self.kinds.setdefault(kind, len(self.kinds)), shape)
        return self._layers.setdefault(key, len(self._layers))

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many layers, blocks and networks there are."""
        return len(self._layers), len(self._blocks), len(self._networks)

    def arrays(self, since: tuple[int, int, int] = (0, 0, 0)) -> Arrays:
        """Everything from these counts on."""
        layers = list(self._layers)[since[0] :]
        blocks = list(self._blocks)[since[1] :]
        networks = self._networks[since[2] :]
        shapes = [shape for _, shape in layers]
        return Arrays(
            np.array([kind for kind, _ in layers], np.int32),
            _offsets(shapes),
            _flat(shapes, np.int64),
            _offsets(blocks),
            _flat(blocks, np.int32),
            _offsets(networks),
            _flat(networks, np.int32),
        )

    def part(self, networks: Iterable[int]) -> Tables:
        """Tables of some of the networks, and what they consist of."""
        part = Tables()
        kinds, layers, blocks = list(self.kinds), list(self._layers), list(self._blocks)

        @cache
        def layer(number: int) -> int:
            if number == UNSCORED:
                return UNSCORED
            kind, shape = layers[number]
            return part._layer(kinds[kind], shape)

        @cache
        def block(number: int) -> int:
            return part._blocks.setdefault(tuple(map(layer, blocks[number])), len(part._blocks))

        for i in networks:
            network = self._networks[i]
            part._networks.append(
                tuple(layer(e) if e > FIRST_BLOCK else FIRST_BLOCK - block(FIRST_BLOCK - e) for e in network)
            )
        return part

    def layers(self, network: int, *, approximate: bool = False) -> LayerSequence:
        """A network as it was added, but for the names of its layers, which are not kept."""
        kinds, layers, blocks = list(self.kinds), list(self._layers), list(self._blocks)
        rows: list[Layer] = []
        elements: list[Element] = []
        for number in self._networks[network]:
            block = number <= FIRST_BLOCK
            start = len(rows)
            for layer in blocks[FIRST_BLOCK - number] if block else (number,):
                kind, shape = (None, ()) if layer == UNSCORED else (kinds[layers[layer][0]], layers[layer][1])
                rows.append(Layer("", kind, shape))
            elements.append(Element(start, len(rows), block))
        return LayerSequence.of(rows, elements, approximate=approximate)

    def in_process(self, arrays: Arrays) -> Arrays:
        """The arrays with kinds as this process numbers them, so that they can be compared with other sequences."""
        numbers = np.array([kind_id(kind) for kind in self.kinds], np.int32)
        return arrays._replace(layer_kinds=numbers[arrays.layer_kinds] if len(numbers) else arrays.layer_kinds)

    def sequences(self) -> Iterator[BackendSequence]:
        """Every network in the form that the backend in use aligns."""
        kinds = [kind_id(kind) for kind in self.kinds]
        layers = [(kinds[kind], shape) for kind, shape in self._layers]
        blocks = list(self._blocks)
        for network in self._networks:
            elements = [blocks[FIRST_BLOCK - e] if e <= FIRST_BLOCK else (e,) for e in network]
            numbers = list(chain.from_iterable(elements))
            found = [(-1, ()) if number == UNSCORED else layers[number] for number in numbers]
            yield backend().Sequence(
                np.array([kind for kind, _ in found], np.int32),
                _offsets([shape for _, shape in found]),
                _flat([shape for _, shape in found], np.int64),
                _offsets(elements),
                np.array([e <= FIRST_BLOCK for e in network], np.bool_),
            )


def _offsets(rows: Sequence[Sequence[Any]]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets


def _flat(rows: Sequence[Sequence[int]], dtype: type[np.int32] | type[np.int64]) -> npt.NDArray[Any]:
    return np.fromiter(chain.from_iterable(rows), dtype)


def _rows(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, ...]]:
    flat, bounds = values.tolist(), offsets.tolist()
    return (tuple(flat[start:stop]) for start, stop in pairwise(bounds))


def _check(arrays: Arrays, kinds: int) -> None:
    """Refuse arrays that contradict each other, as a damaged file may hold them."""
    for name, array in arrays._asdict().items():
        if array.dtype != dtype_of(name) or array.ndim != 1:
            raise ValueError(f"{name} must be a one-dimensional array of {np.dtype(dtype_of(name))}")
    for offsets, values in (
        (arrays.size_offsets, arrays.sizes),
        (arrays.block_offsets, arrays.block_layers),
        (arrays.network_offsets, arrays.network_elements),
    ):
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
            raise ValueError("offsets must rise from 0 to the number of values")
    layers, blocks = len(arrays.layer_kinds), len(arrays.block_offsets) - 1
    if len(arrays.size_offsets) != layers + 1:
        raise ValueError("size_offsets must have one entry more than layer_kinds")
    for name, array, low, high in (
        ("layer_kinds", arrays.layer_kinds, 0, kinds - 1),
        ("sizes", arrays.sizes, 1, None),
        ("block_layers", arrays.block_layers, UNSCORED, layers - 1),
        ("network_elements", arrays.network_elements, FIRST_BLOCK - blocks + 1, layers - 1),
    ):
        if len(array) and (array.min() < low or (high is not None and array.max() > high)):
            raise ValueError(f"{name} must lie in [{low}, {'∞' if high is None else high}]")
    if (np.diff(arrays.block_offsets) == 0).any():
        raise ValueError("a block is empty")
