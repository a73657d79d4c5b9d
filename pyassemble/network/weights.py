"""Weights files: reading them without running code from them, checking them against a network, writing them."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pyassemble.atomic import check_replaceable, replacing
from pyassemble.errors import TensorError, WeightsFileError

SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
WEIGHTS_SUFFIXES = (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)

# The entries under which training scripts keep a state_dict inside a checkpoint, in the order they are looked for.
CHECKPOINT_ENTRIES = ("state_dict", "model")

# The format's own limit: a larger length is a foreign or damaged file, and must not be allocated.
MAX_HEADER_BYTES = 100_000_000

#: The header follows its own length, a little-endian integer of as many bytes.
HEADER_LENGTH_BYTES = 8

_COUNTER = "num_batches_tracked"
_METADATA_ENTRY = "__metadata__"
_LARGEST_SIZE = 2**63 - 1
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class TensorHeader(NamedTuple):
    """What a safetensors header says of one tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads a state_dict from a file; nothing stored in the file is executed.

    Args:
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth`` or ``.bin`` file that ``torch.load(weights_only=True)``
            accepts: a state_dict, or a dict that holds one under ``"state_dict"`` or ``"model"``.

    Returns:
        Tensor name to tensor, on the CPU, in the file's order.

    Raises:
        WeightsFileError: The file is missing, damaged, of another format, or holds something other than tensors.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise WeightsFileError(f"{path}: weights are read from {', '.join(WEIGHTS_SUFFIXES)} files")


def read_header(path: str | Path) -> dict[str, TensorHeader]:
    """Reads the names, dtypes and shapes of a safetensors file without its tensors.

    Args:
        path: A ``.safetensors`` file.

    Returns:
        Tensor name to (dtype, shape), in the header's order, which most writers sort.

    Raises:
        WeightsFileError: The file is missing, or its header does not describe exactly the bytes that follow it.
    """
    path = Path(path)
    raw, data_bytes = _read_raw_header(path)
    return parse_header(path, raw, data_bytes)


def header_length(file: str | Path, start: bytes, size: int | None) -> int:
    """Length of a safetensors header, from the file's first bytes.

    Args:
        file: Path or address of the file, for messages.
        start: The file's first bytes, at least eight unless it has fewer.
        size: Bytes of the whole file; None where it is not known.

    Raises:
        WeightsFileError: Too few bytes, or a length that the file cannot hold or no reader accepts.
    """
    if len(start) < HEADER_LENGTH_BYTES:
        raise WeightsFileError(f"{file}: {len(start)} bytes are too few for a safetensors file")
    (length,) = struct.unpack_from("<Q", start)
    if length > MAX_HEADER_BYTES:
        raise WeightsFileError(
            f"{file}: not a safetensors file: it claims a header of {length} bytes (at most {MAX_HEADER_BYTES})"
        )
    if size is not None and length > size - HEADER_LENGTH_BYTES:
        raise WeightsFileError(f"{file}: truncated: a header of {length} bytes in a file of {size} bytes")
    return int(length)


def parse_header(file: str | Path, raw: bytes, data_bytes: int | None) -> dict[str, TensorHeader]:
    """Takes a safetensors header apart.

    Args:
        file: Path or address of the file, for messages.
        raw: The header, without the length before it.
        data_bytes: Bytes that follow the header; None where that is not known, and cannot be checked.

    Returns:
        Tensor name to (dtype, shape), in the header's order.

    Raises:
        WeightsFileError: It is no header, or does not describe exactly the bytes that follow.
    """
    headers: dict[str, TensorHeader] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in _parse_json(file, raw).items():
        header, (start, stop) = _parse_entry(file, name, entry)
        headers[name] = header
        spans.append((start, stop, name))
    _check_spans(file, spans, data_bytes)
    return headers


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Loads a weights file into a network, strictly: the same names, the same shapes.

    Only the batch counters of normalizations may be missing, as they are from files older than the counters; the
    network then keeps its own.

    Args:
        network: The network to load into; untouched when the file does not fit.
        path: A file that :func:`read_weights` reads.

    Raises:
        WeightsFileError: The file cannot be read, or does not fit; the message names the first tensor in question.
    """
    path = Path(path)
    tensors = read_weights(path)
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    tensors |= {name: expected[name] for name in _counters(network) if name in expected and name not in tensors}
    _check_fit(path, tensors, expected)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:  # a network with a loading hook of its own may refuse more than names and shapes
        raise WeightsFileError(f"{path}: {type(network).__name__} refuses it: {_first_line(error)}") from error


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file, which appears under its name only when it is complete.

    The format does not know tensors that share memory. Every name is therefore written with a copy of its own, so that
    the file loads strictly, into a network with tied weights and into one without; such a file is larger than needed by
    the repeated tensors.

    Args:
        path: The file, ``.safetensors``; replaced if it exists.
        tensors: Tensor name to tensor, such as a ``state_dict()``.
        metadata: Text entries for the file's header.

    Raises:
        WeightsFileError: Another suffix, or the file cannot be written where it should go.
        TensorError: A tensor has no values to write, or not in a form the format knows.
    """
    from safetensors.torch import save_file

    path = Path(path)
    check_writable(path)
    copies = {name: _own_copy(name, tensor) for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(copies, temporary, dict(metadata) if metadata else None)


def check_writable(path: Path) -> None:
    """Refuses a path that :func:`write_weights` could not write, before any work is done for it.

    Raises:
        WeightsFileError: Another suffix, a folder, in a folder that does not exist, or without the right to write it.
    """
    if path.suffix != SAFETENSORS_SUFFIX:
        raise WeightsFileError(f"{path}: weights are written to {SAFETENSORS_SUFFIX} files")
    try:
        check_replaceable(path)
    except OSError as error:
        raise WeightsFileError(str(error)) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = read_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsFileError(f"{path}: not readable as safetensors: {_first_line(error)}") from error
    return {name: tensors[name] for name in names}


def _read_torch(path: Path) -> dict[str, Tensor]:
    _check_is_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file fails anywhere in zip, pickle or torch, with whatever they raise
        raise WeightsFileError(
            f"{path}: not a file of tensors that torch.load(weights_only=True) reads: {_first_line(error)}"
        ) from error
    return _state_dict_of(path, content)


def _state_dict_of(path: Path, content: object) -> dict[str, Tensor]:
    """The state_dict in what was loaded: the content itself, or one of the entries checkpoints keep it in."""
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"{path}: holds a {type(content).__name__}; a dict of named tensors was expected")
    nested = (content[entry] for entry in CHECKPOINT_ENTRIES if isinstance(content.get(entry), Mapping))
    state = dict(next(nested, content))
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsFileError(
                f"{path}: entry {name!r} is a {type(value).__name__}; tensors were expected, at the top or under "
                f"{' or '.join(map(repr, CHECKPOINT_ENTRIES))}"
            )
    if not state:
        raise WeightsFileError(f"{path}: holds no tensor")
    return state


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise WeightsFileError(f"{path}: no such file")
    if not path.is_file():
        raise WeightsFileError(f"{path} is not a file; {', '.join(WEIGHTS_SUFFIXES)} files are read")


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    """The header's bytes and the number of bytes after it."""
    _check_is_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(path, file.read(HEADER_LENGTH_BYTES), size)
        return file.read(length), size - HEADER_LENGTH_BYTES - length


def _parse_json(file: str | Path, raw: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_entries)
    except (ValueError, RecursionError) as error:
        raise WeightsFileError(f"{file}: not a safetensors file: header is no JSON: {_first_line(error)}") from error
    if not isinstance(entries, dict):
        raise WeightsFileError(f"{file}: not a safetensors file: header is no JSON object")
    entries.pop(_METADATA_ENTRY, None)
    return entries


def _unique_entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _parse_entry(file: str | Path, name: str, entry: object) -> tuple[TensorHeader, tuple[int, int]]:
    """One tensor of the header and the bytes it claims."""
    fields = entry if isinstance(entry, dict) else {}
    shape, span = fields.get("shape"), fields.get("data_offsets")
    if not _is_sizes(shape) or not _is_sizes(span) or len(span) != 2:
        raise WeightsFileError(f"{file}: the header entry of {name!r} lacks a proper shape or data_offsets")
    dtype = fields.get("dtype")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsFileError(f"{file}: {name!r} has dtype {dtype!r}; read are {', '.join(_DTYPES)}")
    header = TensorHeader(_DTYPES[dtype], tuple(shape))
    start, stop = span
    needed = math.prod(header.shape) * header.dtype.itemsize
    if stop - start != needed:
        raise WeightsFileError(
            f"{file}: {name!r} of shape {header.shape} takes {needed} bytes, its header entry says {stop - start}"
        )
    return header, (start, stop)


def _is_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST_SIZE for item in value)


def _check_spans(file: str | Path, spans: list[tuple[int, int, str]], data_bytes: int | None) -> None:
    """The tensors must cover the bytes after the header exactly: no gap, no overlap, nothing missing at the end."""
    position = 0
    for start, stop, name in sorted(spans):
        if start != position:
            raise WeightsFileError(f"{file}: {name!r} starts at byte {start}, expected was byte {position}")
        if data_bytes is not None and stop > data_bytes:
            raise WeightsFileError(f"{file}: truncated: {name!r} ends at byte {stop} of {data_bytes} bytes of tensors")
        position = stop
    if data_bytes is not None and position != data_bytes:
        raise WeightsFileError(f"{file}: {data_bytes - position} bytes belong to no tensor of its header")


def _counters(network: nn.Module) -> list[str]:
    """The names under which normalizations count the batches they have seen."""
    return [
        f"{name}.{_COUNTER}" if name else _COUNTER
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _NormBase) and _is_count(getattr(module, _COUNTER, None))
    ]


def _is_count(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and value.dtype in _INTEGERS


def _check_fit(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshaped = [name for name in expected if name in tensors and tensors[name].shape != expected[name].shape]
    problems = []
    if missing:
        problems.append(f"{_named(missing, expected)} missing")
    if unexpected:
        problems.append(f"{_named(unexpected, tensors)} unexpected")
    if misshaped:
        name = misshaped[0]
        more = f" (and {len(misshaped) - 1} more)" if len(misshaped) > 1 else ""
        problems.append(f"{name!r} has shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}{more}")
    if problems:
        raise WeightsFileError(f"{path} does not fit the network: {'; '.join(problems)}")


def _named(names: list[str], tensors: Mapping[str, Tensor]) -> str:
    first = f"{names[0]!r} {tuple(tensors[names[0]].shape)}"
    return f"{first} (and {len(names) - 1} more)" if len(names) > 1 else first


def _own_copy(name: str, tensor: Tensor) -> Tensor:
    shape = tuple(tensor.shape)
    if tensor.is_meta:
        raise TensorError(f"tensor {name!r} {shape} is on the meta device and has no values to write")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _DTYPES.values():
        raise TensorError(
            f"tensor {name!r} {shape} of dtype {tensor.dtype} and layout {tensor.layout} cannot be written; dense "
            f"tensors of {', '.join(str(dtype).removeprefix('torch.') for dtype in _DTYPES.values())} can"
        )
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _first_line(error: BaseException) -> str:
    """The first line of a foreign message; libraries append advice over many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
