"""One network that is to become an entry: what must be known to build it in another process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pyassemble.network.initialization import SkipInitialization
from pyassemble.network.sources import load_network, stated_license
from pyassemble.network.weights import read_header
from pyassemble.zoo.entry import Entry
from pyassemble.zoo.shards import merge_headers, read_index

if TYPE_CHECKING:
    from pyassemble.network.weights import TensorHeader


class Job(Protocol):
    """A network to build. Instances are pickled, so they hold descriptions, no networks."""

    @property
    def name(self) -> str:
        """What the zoo will call it."""

    @property
    def key(self) -> str | None:
        """Digest of everything the entry follows from, versions included; None where that cannot be known."""

    def build(self) -> Entry:
        """Builds the network and describes it. Whatever this raises is the reason the network is skipped for."""


@dataclass(frozen=True)
class SpecJob:
    """A network that a library or a factory builds.

    Attributes:
        name: What the zoo will call it.
        spec: What it is called for ``load_network``.
        license: License of its weights, if known.
        weights: Where its weights come from, if known.
        state: What else the network depends on: the library's version, the factory's file.
    """

    name: str
    spec: str
    license: str | None
    weights: str | None
    state: str

    @property
    def key(self) -> str:
        """See :class:`Job`."""
        return digest(type(self).__name__, self.name, self.spec, self.license, self.weights, self.state)

    def build(self) -> Entry:
        """Builds the network on the meta device."""
        with SkipInitialization():  # type: ignore[no-untyped-call]
            network = load_network(self.spec, meta=True)
        license = self.license or stated_license(network)
        return Entry.of(self.name, network, license=license, weights=self.weights)


@dataclass(frozen=True)
class FileJob:
    """A network in one safetensors file, or in several that belong together.

    Attributes:
        name: What the zoo will call it.
        weights: The file; for several, the index that lists them, or the first of them.
        shards: The files, if they are several.
        index: Whether ``weights`` is an index.
        state: Sizes and times of the files.
    """

    name: str
    weights: str
    shards: tuple[str, ...]
    index: bool
    state: str

    @property
    def key(self) -> str:
        """See :class:`Job`."""
        return digest(type(self).__name__, self.name, self.weights, self.shards, self.index, self.state)

    def build(self) -> Entry:
        """Reads the headers; where a config beside them names the architecture, it is built on the meta device."""
        folder = Path(self.weights).parent
        return Entry.of_header(self.name, self._header(), folder=folder, weights=self.weights)

    def _header(self) -> dict[str, TensorHeader]:
        if self.index:
            weight_map = read_index(Path(self.weights))
            folder = Path(self.weights).parent
            files = {name: read_header(folder / name) for name in dict.fromkeys(weight_map.values())}
            return merge_headers(self.weights, files, weight_map)
        if self.shards:
            return merge_headers(self.weights, {file: read_header(file) for file in self.shards})
        return read_header(self.weights)


def digest(*parts: object) -> str:
    """A key for a cache: equal parts under equal versions of this package give equal keys."""
    from pyassemble import __version__

    return hashlib.sha256(repr((__version__, *parts)).encode("utf-8", "surrogatepass")).hexdigest()[:32]
