"""What an assembly is made of, as plain data: sources, blocks, stitches, head. It reads and writes as JSON."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
from torch import Tensor

from pyassemble.errors import RecipeError
from pyassemble.network.shapes import FeatureShape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


StitchKind = Literal["stitch", "continuation", "images"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class SourceRecipe:
    """Where a network of the repository came from.

    Attributes:
        network: Its name in the repository.
        spec: What builds its architecture, as for ``load_network``; None where that is not known.
        options: Arguments for the builder, beside the name.
        license: License of its weights, as their publisher names it; None where unknown.
        file_hash: SHA-256 of the Python file that defines it; None for a network of a library.
    """

    network: str
    spec: str | None
    options: tuple[tuple[str, int | tuple[int, ...]], ...] = ()
    license: str | None = None
    file_hash: str | None = None


@dataclass(frozen=True)
class BlockRecipe:
    """A block of a network.

    Attributes:
        network: The network's name in the repository.
        first: Its first segment, counted from 0.
        last: Its last segment, included.
        cut_points: Names of the network's blocks that end the segment before the first, if any, and each segment.
        input_shape: What the first segment takes.
        output_shape: What the last segment returns.
        segment_hashes: SHA-256 of the tensors that the source had in each segment (:func:`tensors_hash`).
    """

    network: str
    first: int
    last: int
    cut_points: tuple[str, ...]
    input_shape: FeatureShape
    output_shape: FeatureShape
    segment_hashes: tuple[str, ...]


@dataclass(frozen=True)
class StitchRecipe:
    """What stands before a block.

    Attributes:
        kind: ``"stitch"``; ``"continuation"`` between segments that follow each other in one network; ``"images"``
            before a block that takes the images as they are.
        source: What comes in.
        target: What goes out.
    """

    kind: StitchKind
    source: FeatureShape
    target: FeatureShape


@dataclass(frozen=True)
class Recipe:
    """How an assembly is built.

    Attributes:
        input_shape: The images that it takes.
        num_classes: Number of its outputs.
        sources: The networks that its blocks come from.
        blocks: Its blocks, in order.
        stitches: What stands before each block.
        libraries: Versions under which it was composed, by library.
    """

    input_shape: FeatureShape
    num_classes: int
    sources: tuple[SourceRecipe, ...]
    blocks: tuple[BlockRecipe, ...]
    stitches: tuple[StitchRecipe, ...]
    libraries: tuple[tuple[str, str], ...]

    def source(self, network: str) -> SourceRecipe:
        """The source of a network's name."""
        return next(source for source in self.sources if source.network == network)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON takes it."""
        content = asdict(self)
        content["libraries"] = dict(self.libraries)
        for row, source in zip(content["sources"], self.sources, strict=True):
            row["options"] = dict(source.options)
        return content

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """A recipe from :meth:`as_dict`'s data.

        Raises:
            RecipeError: An entry is missing, unknown, or of another type; the message names it.
        """
        entries = _entries(content, cls, "recipe")
        blocks = _each(entries, "blocks", _block)
        recipe = cls(
            input_shape=_shape(entries["input_shape"], "recipe.input_shape"),
            num_classes=_typed(entries, "num_classes", int, "recipe"),
            sources=_each(entries, "sources", _source),
            blocks=blocks,
            stitches=_each(entries, "stitches", _stitch),
            libraries=tuple(sorted(_typed(entries, "libraries", dict, "recipe").items())),
        )
        if not blocks or len(recipe.stitches) != len(blocks):
            raise RecipeError(f"recipe has {len(blocks)} blocks and {len(recipe.stitches)} stitches; one before each")
        named = {source.network for source in recipe.sources}
        missing = next((block.network for block in blocks if block.network not in named), None)
        if missing is not None:
            raise RecipeError(f"recipe names no source for network {missing!r}; it has {', '.join(sorted(named))}")
        return recipe


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, whatever their order, device and strides."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _entries(content: object, kind: type, where: str) -> dict[str, Any]:
    """The entries of a dict, which must be the fields of a dataclass."""
    if not isinstance(content, dict):
        raise RecipeError(f"{where} is a {type(content).__name__}; an object was expected")
    expected = [field.name for field in fields(kind)]
    missing = [name for name in expected if name not in content]
    unknown = [name for name in content if name not in expected]
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown entry {unknown[0]!r}"
        raise RecipeError(f"{where} {what}; its entries are {', '.join(expected)}")
    return content


def _typed(entries: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entries[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        accepted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise RecipeError(f"{where}.{name} is {value!r}; {accepted} was expected")
    return value


def _each(entries: Mapping[str, Any], name: str, read: Callable[[object, str], _T]) -> tuple[_T, ...]:
    rows = _typed(entries, name, (list, tuple), "recipe")
    return tuple(read(row, f"recipe.{name}[{i}]") for i, row in enumerate(rows))


def _shape(content: object, where: str) -> FeatureShape:
    entries = _entries(content, FeatureShape, where)
    numbers = {name: _typed(entries, name, int, where) for name in ("channels", "height", "width", "prefix_tokens")}
    kind, last = entries["kind"], entries["channels_last"]
    if kind not in ("map", "tokens") or not isinstance(last, bool):
        raise RecipeError(f"{where} has kind {kind!r} and channels_last {last!r}; 'map' or 'tokens', and a truth value")
    if min(numbers["channels"], numbers["height"], numbers["width"]) < 1 or numbers["prefix_tokens"] < 0:
        raise RecipeError(f"{where} is {numbers}; sizes of at least 1 were expected")
    return FeatureShape(kind, channels_last=last, **numbers)


def _source(content: object, where: str) -> SourceRecipe:
    entries = _entries(content, SourceRecipe, where)
    text = (str, type(None))
    options = _typed(entries, "options", dict, where)
    return SourceRecipe(
        network=_typed(entries, "network", str, where),
        spec=_typed(entries, "spec", text, where),
        options=tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items()),
        license=_typed(entries, "license", text, where),
        file_hash=_typed(entries, "file_hash", text, where),
    )


def _block(content: object, where: str) -> BlockRecipe:
    entries = _entries(content, BlockRecipe, where)
    return BlockRecipe(
        network=_typed(entries, "network", str, where),
        first=_typed(entries, "first", int, where),
        last=_typed(entries, "last", int, where),
        cut_points=tuple(_typed(entries, "cut_points", (list, tuple), where)),
        input_shape=_shape(entries["input_shape"], f"{where}.input_shape"),
        output_shape=_shape(entries["output_shape"], f"{where}.output_shape"),
        segment_hashes=tuple(_typed(entries, "segment_hashes", (list, tuple), where)),
    )


def _stitch(content: object, where: str) -> StitchRecipe:
    entries = _entries(content, StitchRecipe, where)
    if entries["kind"] not in ("stitch", "continuation", "images"):
        raise RecipeError(f"{where}.kind is {entries['kind']!r}; known are stitch, continuation and images")
    return StitchRecipe(
        kind=entries["kind"],
        source=_shape(entries["source"], f"{where}.source"),
        target=_shape(entries["target"], f"{where}.target"),
    )
