"""Weights in several safetensors files that are one network."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from pyassemble.errors import WeightsFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pyassemble.network.weights import TensorHeader

INDEX_SUFFIX = ".safetensors.index.json"

#: More files than any published network has; an index that names more is damaged or means harm.
MAX_SHARDS = 2_000

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


def shard_group(file: str) -> tuple[str, int, int] | None:
    """Stem, number and count in the name of a file that says it is one of several; None for any other name."""
    found = _SHARD.fullmatch(file)
    return (found["stem"], int(found["number"]), int(found["count"])) if found else None


def read_index(path: Path) -> dict[str, str]:
    """Reads the index of a network in several files.

    Raises:
        WeightsFileError: It cannot be read, or is no index.
    """
    try:
        return parse_index(str(path), path.read_bytes())
    except OSError as error:
        raise WeightsFileError(f"{path} cannot be read: {error.strerror}") from error


def parse_index(file: str, content: bytes) -> dict[str, str]:
    """File name by tensor name, from the content of an index.

    Args:
        file: Path or address of the index, for messages.
        content: What it holds.

    Raises:
        WeightsFileError: It is no index, names no file or too many, or a file outside its folder.
    """
    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"{file} is no JSON: {str(error).partition(chr(10))[0]}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsFileError(f'{file} has no entry "weight_map" from tensors to files')
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise WeightsFileError(f"{file}: tensor {tensor!r} is said to lie in {name!r}, not in a file beside it")
    shards = len(set(weight_map.values()))
    if shards > MAX_SHARDS:
        raise WeightsFileError(f"{file} names {shards} files; at most {MAX_SHARDS} are read")
    return weight_map


def merge_headers(
    file: str, headers: Mapping[str, Mapping[str, TensorHeader]], weight_map: Mapping[str, str] | None = None
) -> dict[str, TensorHeader]:
    """The tensors of several files as those of one.

    Args:
        file: Path or address of the whole, for messages.
        headers: Header by file name.
        weight_map: What the index says: file name by tensor name. Without an index, the names of the files must show
            that they are complete.

    Raises:
        WeightsFileError: The files do not hold what the index says, one is missing, or two hold the same tensor.
    """
    merged: dict[str, TensorHeader] = {}
    holders: dict[str, str] = {}
    for name, header in headers.items():
        for tensor, entry in header.items():
            if tensor in merged:
                raise WeightsFileError(f"{file}: tensor {tensor!r} lies in {holders[tensor]} and in {name}")
            merged[tensor], holders[tensor] = entry, name
    if weight_map is None:
        _check_complete(file, headers)
    else:
        _check_index(file, holders, weight_map)
    return merged


def _check_index(file: str, holders: Mapping[str, str], weight_map: Mapping[str, str]) -> None:
    for tensor, name in weight_map.items():
        if holders.get(tensor) != name:
            raise WeightsFileError(f"{file}: tensor {tensor!r} is said to lie in {name}, which does not hold it")
    for tensor, name in holders.items():
        if tensor not in weight_map:
            raise WeightsFileError(f"{file} does not know tensor {tensor!r} of {name}")


def _check_complete(file: str, names: Mapping[str, object]) -> None:
    groups = [group for name in names if (group := shard_group(name.rpartition("/")[2]))]
    count = groups[0][2] if groups else 0
    missing = set(range(1, count + 1)) - {number for _, number, _ in groups}
    if missing:
        raise WeightsFileError(f"{file}: file {min(missing)} of {count} is missing")
