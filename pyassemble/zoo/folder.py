"""Networks in a local folder of safetensors files."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

from pyassemble.errors import WeightsFileError
from pyassemble.network.sources import FOLDER_WEIGHTS
from pyassemble.network.weights import SAFETENSORS_SUFFIX
from pyassemble.zoo.jobs import FileJob
from pyassemble.zoo.shards import INDEX_SUFFIX, read_index, shard_group


def folder_jobs(folder: str | Path) -> list[FileJob]:
    """Every network below a folder: a safetensors file each, or several files that belong together.

    A file ``model.safetensors`` goes by the name of its folder, any other by its path below ``folder``. Files that an
    index lists, or whose names number them (``model-00001-of-00003.safetensors``), are one network.

    Args:
        folder: Where to look, at any depth; symbolic links to folders are not followed.

    Raises:
        WeightsFileError: No such folder, or no safetensors file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise WeightsFileError(f"{root}: no such folder")
    jobs: list[FileJob] = []
    for place, below, files in os.walk(root):
        below.sort()
        jobs.extend(_jobs_in(root, Path(place), sorted(files)))
    if not jobs:
        raise WeightsFileError(f"{root} holds no {SAFETENSORS_SUFFIX} file")
    return jobs


def _jobs_in(root: Path, place: Path, files: list[str]) -> list[FileJob]:
    """The networks directly in one folder."""
    single = [file for file in files if file.endswith(SAFETENSORS_SUFFIX)]
    jobs: list[FileJob] = []
    for index in (file for file in files if file.endswith(INDEX_SUFFIX)):
        shards = _shards_of(place / index, single)
        single = [file for file in single if file not in shards]
        name = _name(root, place, index, f"{FOLDER_WEIGHTS}.index.json", alone=FOLDER_WEIGHTS not in single)
        jobs.append(_job(name, place / index, [place / file for file in shards], index=True))
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for file in single:
        group = shard_group(file)
        if group is None:
            jobs.append(_job(_name(root, place, file, FOLDER_WEIGHTS, alone=True), place / file, [], index=False))
        else:
            groups[group[0], group[2]].append(file)
    for shards in groups.values():
        name = _name(root, place, shards[0], FOLDER_WEIGHTS, alone=False)
        jobs.append(_job(name, place / shards[0], [place / file for file in shards], index=False))
    return jobs


def _shards_of(index: Path, files: list[str]) -> list[str]:
    """Those of a folder's files that belong to an index."""
    try:
        named = set(read_index(index).values())
    except WeightsFileError:  # said when the network is built; until then, names tell what belongs to it
        stem = index.name.removesuffix(INDEX_SUFFIX)
        return [file for file in files if (group := shard_group(file)) and group[0] == stem]
    return [file for file in files if file in named]


def _name(root: Path, place: Path, file: str, standard: str, *, alone: bool) -> str:
    if file == standard and alone:
        return root.resolve().name if place == root else place.relative_to(root).as_posix()
    return (place / file).relative_to(root).as_posix()


def _job(name: str, weights: Path, shards: list[Path], *, index: bool) -> FileJob:
    state = " ".join(map(_state, [weights, weights.parent / "config.json", *shards]))
    return FileJob(name, str(weights), tuple(map(str, shards)), index, f"{_libraries()} {state}")


def _state(path: Path) -> str:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return "-"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _libraries() -> str:
    import timm

    return f"timm {timm.__version__}"  # a config beside the file may name one of its architectures
