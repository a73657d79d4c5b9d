"""A repository: pretrained networks cut into segments, frozen, that any number of assemblies share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyassemble.assemble.rebuilding import source_recipe
from pyassemble.assemble.recipe import SourceRecipe, tensors_hash
from pyassemble.errors import (
    ArgumentTypeError,
    CutError,
    DuplicateNameError,
    PyAssembleError,
    TensorError,
    UnknownOptionError,
)
from pyassemble.network.cuts import CutNetwork, cut
from pyassemble.network.modules import unwrap
from pyassemble.network.sources import NetworkSpec, load_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyassemble.network.shapes import FeatureShape


@dataclass(frozen=True)
class Block:
    """Consecutive segments of one network of a repository.

    Attributes:
        network: Name of the network.
        first: Its first segment, counted from 0.
        last: Its last segment, included.
    """

    network: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.network}[{self.first}..{self.last}]"


class Repository:
    """Pretrained networks, cut at the ends of their blocks (PA-DNN, block repository).

    The networks' tensors are shared, not copied, unless they have to move to another device; the networks themselves
    keep their mode and their ``requires_grad``.

    Attributes:
        names: The networks' names, in the order given.
        example_input: The batch that the networks were cut for.
        device: Where the segments are.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module | str] | Sequence[str],
        example_input: torch.Tensor,
        *,
        device: torch.device | str | None = None,
        pretrained: bool = False,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Cuts the networks.

        Args:
            networks: Networks by name: modules, or the names under which :func:`load_network` builds them. A list of
                such names stands for networks that are called so.
            example_input: Images (B, C, H, W) of the size that all networks take.
            device: Where to keep the segments; where the example input is, if None.
            pretrained: Whether networks that are built here get their published weights; else they are random, except
                for folders, which always come with their own.
            sources: For networks given as modules, what :func:`load_network` would build their architecture from.
                Needed to save assemblies of networks that are neither timm's nor torchvision's.

        Raises:
            ArgumentTypeError: There are no networks, or something is no network.
            CutError: A network has no blocks to cut between; the message names it, as do the following.
            DuplicateNameError: Two networks go by one name.
            NetworkSpecError: A network cannot be built, or a source is not understood.
            TensorError: A network holds numbers that are not finite.
            UnknownOptionError: ``sources`` names a network that is not there.
            UnsupportedNetworkError: A network cannot be traced.
        """
        given = _by_name(networks)
        unknown = next((name for name in sources or () if name not in given), None)
        if unknown is not None:
            raise UnknownOptionError("network in sources", unknown, given)
        for source in (sources or {}).values():
            NetworkSpec.parse(source)
        if not isinstance(example_input, torch.Tensor):
            raise ArgumentTypeError(f"example_input is a {type(example_input).__name__}; a tensor was expected")
        self.example_input = example_input
        self.device = torch.device(device) if device is not None else example_input.device
        self._sources: dict[str, str] = dict(sources or {})
        self._networks: dict[str, CutNetwork] = {}
        self._originals: dict[str, nn.Module] = {}
        self._hashes: dict[tuple[str, int], str] = {}
        self._recipes: dict[str, SourceRecipe] = {}
        for name, network in given.items():
            if isinstance(network, str):
                self._sources.setdefault(name, network)
                network = load_network(network, pretrained=pretrained)
            try:
                self._originals[name] = network = unwrap(network)
                self._networks[name] = self._cut(network)
            except PyAssembleError as error:
                error.args = (f"network {name!r}: {error}",)
                raise

    def _cut(self, network: nn.Module) -> CutNetwork:
        first = next(chain(network.parameters(), network.buffers()), self.example_input)
        cut_network = cut(network, self.example_input.to(first.device))
        _check_finite(network)
        for module in (*cut_network.segments, cut_network.head):
            module.to(self.device)
        return cut_network

    @property
    def names(self) -> list[str]:
        """The networks' names, in the order given."""
        return list(self._networks)

    @property
    def input_shape(self) -> FeatureShape:
        """The images that all networks take."""
        return next(iter(self._networks.values())).input_shape

    def __getitem__(self, name: str) -> CutNetwork:
        try:
            return self._networks[name]
        except KeyError:
            raise UnknownOptionError("network", name, self._networks) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._networks)

    def __len__(self) -> int:
        return len(self._networks)

    def __repr__(self) -> str:
        rows = (f"{name}: {len(network)} segments" for name, network in self._networks.items())
        return f"Repository({', '.join(rows)})"

    def block(self, block: Block | tuple[str, int, int]) -> Block:
        """A block of the repository from its network's name, first and last segment.

        Raises:
            ArgumentTypeError: No block.
            CutError: The network has no such segments.
            UnknownOptionError: There is no such network.
        """
        if not isinstance(block, Block):
            if not isinstance(block, Sequence) or len(block) != 3:
                raise ArgumentTypeError(f"{block!r} is no block; (network, first segment, last segment) was expected")
            block = Block(*block)
        count = len(self[block.network])
        ends: tuple[Any, Any] = (block.first, block.last)
        if not all(isinstance(end, int) for end in ends) or not 0 <= block.first <= block.last < count:
            raise CutError(
                f"network {block.network!r} has segments 0 to {count - 1}, no block of segments {block.first!r} to "
                f"{block.last!r}"
            )
        return block

    def segment_hashes(self, name: str, first: int, last: int) -> tuple[str, ...]:
        """SHA-256 of the tensors of each of some segments; computed once."""
        for index in range(first, last + 1):
            if (name, index) not in self._hashes:
                segment = self[name].segments[index]
                tensors = dict(chain(segment.named_parameters(), segment.named_buffers()))
                self._hashes[name, index] = tensors_hash(tensors)
        return tuple(self._hashes[name, index] for index in range(first, last + 1))

    def source(self, name: str) -> SourceRecipe:
        """Where a network's architecture can be built from; found out once."""
        if name not in self._recipes:
            self._recipes[name] = source_recipe(self, name)
        return self._recipes[name]

    def original(self, name: str) -> nn.Module:
        """The network that was given or built under a name."""
        return self._originals[name]

    def stated_source(self, name: str) -> str | None:
        """What the network was, or can be, built from, as far as it was said."""
        return self._sources.get(name)


def _check_finite(network: nn.Module) -> None:
    statistics = (
        (f"{path}.{name}", buffer)
        for path, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module.named_buffers(recurse=False)
    )
    for name, tensor in chain(network.named_parameters(), statistics):
        if not tensor.is_meta and not tensor.isfinite().all():
            raise TensorError(f"tensor {name!r} of shape {tuple(tensor.shape)} holds values that are not finite")


def _by_name(networks: Mapping[str, nn.Module | str] | Sequence[str]) -> dict[str, nn.Module | str]:
    if isinstance(networks, str | nn.Module) or not isinstance(networks, Mapping | Sequence):
        raise ArgumentTypeError(
            f"networks is a {type(networks).__name__}; networks by name, or a list of their sources, was expected"
        )
    if not networks:
        raise ArgumentTypeError("networks is empty; at least one network was expected")
    if isinstance(networks, Mapping):
        given: dict[str, nn.Module | str] = dict(networks)
    else:
        repeated = [name for name, count in Counter(networks).items() if count > 1]
        if repeated:
            raise DuplicateNameError(repeated)
        given = {name: name for name in networks}
    for name, network in given.items():
        if not isinstance(name, str) or not isinstance(network, str | nn.Module):
            raise ArgumentTypeError(
                f"network {name!r} is a {type(network).__name__}; a torch.nn.Module or the name of its source, under a "
                "name that is text, was expected"
            )
    return given
