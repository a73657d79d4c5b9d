"""Where the networks of a zoo come from: each origin as a list of jobs. Listing them builds and reads no network."""

from __future__ import annotations

import fnmatch
import hashlib
from typing import TYPE_CHECKING

from pyassemble.errors import NetworkSpecError
from pyassemble.network.sources import NetworkSpec, SpecKind
from pyassemble.zoo.jobs import SpecJob

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def timm_jobs(pattern: str = "*", *, prefix: str = "") -> list[SpecJob]:
    """Architectures of the installed timm.

    Args:
        pattern: Which, as for ``timm.list_models``.
        prefix: Put before each architecture's name, for a zoo of several libraries.

    Raises:
        NetworkSpecError: There are none of that name.
    """
    import timm

    jobs = []
    for name in timm.list_models(pattern):
        config = timm.get_pretrained_cfg(name)
        hub, url = getattr(config, "hf_hub_id", None), getattr(config, "url", None)
        license = getattr(config, "license", None)
        weights = f"hf-hub:{hub}" if hub else _first(url)
        state = f"timm {timm.__version__}"
        jobs.append(SpecJob(prefix + name, f"timm:{name}", None if license == "unknown" else license, weights, state))
    return _some(jobs, "timm", pattern)


def torchvision_jobs(pattern: str = "*", *, prefix: str = "torchvision:") -> list[SpecJob]:
    """Networks of the installed torchvision: for classification, detection, segmentation, optical flow and video.

    Args:
        pattern: Which, with ``*`` and ``?``.
        prefix: Put before each name; torchvision and timm share some.

    Raises:
        NetworkSpecError: There are none of that name.
    """
    import torchvision
    from torchvision.models import get_model_weights, list_models

    jobs = []
    for name in fnmatch.filter(list_models(), pattern):
        default = getattr(get_model_weights(name), "DEFAULT", None)
        license = None if default is None else default.meta.get("license")
        weights = None if default is None else default.url
        state = f"torchvision {torchvision.__version__}"
        jobs.append(SpecJob(prefix + name, f"torchvision:{name}", license, weights, state))
    return _some(jobs, "torchvision", pattern)


def factory_jobs(specs: Iterable[str]) -> list[SpecJob]:
    """Networks that functions in Python files build. The files are not executed here.

    A cached entry is used again while the file and the Python files beside it are the same.

    Args:
        specs: Each ``path/to/file.py:factory``; also the network's name in the zoo.

    Raises:
        NetworkSpecError: Another form, or a file that does not exist.
    """
    jobs = []
    for text in specs:
        spec = NetworkSpec.parse(text)
        if spec.kind is not SpecKind.FACTORY or spec.path is None:
            raise NetworkSpecError(f"{text!r} is no factory; accepted: path/to/file.py:factory")
        jobs.append(SpecJob(text, text, None, None, _state_of_code(spec.path)))
    return jobs


def _state_of_code(file: Path) -> str:
    """A digest of a Python file and of what it may import from beside it."""
    import timm
    import torch
    import torchvision

    content = hashlib.sha256()
    for path in [file, *sorted(file.resolve().parent.glob("*.py"))]:
        content.update(hashlib.sha256(path.read_bytes()).digest() + path.name.encode("utf-8", "surrogateescape"))
    libraries = f"torch {torch.__version__} timm {timm.__version__} torchvision {torchvision.__version__}"
    return f"{libraries} {file.resolve()} {content.hexdigest()}"


def _some(jobs: list[SpecJob], library: str, pattern: str) -> list[SpecJob]:
    if not jobs:
        raise NetworkSpecError(f"{library} has no network whose name matches {pattern!r}")
    return jobs


def _first(url: object) -> str | None:
    """An address; timm may give it together with the name of the file."""
    if isinstance(url, tuple):
        url = url[0] if url else None
    return url if isinstance(url, str) and url else None
