"""A Hub repository as an entry, without its weights: by the architecture its config names, or by its header alone."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pyassemble.errors import HubError, NetworkSpecError
from pyassemble.network.sources import (
    FOLDER_CONFIG,
    FOLDER_WEIGHTS,
    NetworkSpec,
    SpecKind,
    load_network,
    stated_license,
)
from pyassemble.network.weights import HEADER_LENGTH_BYTES, SAFETENSORS_SUFFIX, header_length, parse_header
from pyassemble.zoo.entry import Entry
from pyassemble.zoo.jobs import digest
from pyassemble.zoo.ranged import fetch, fetch_part
from pyassemble.zoo.shards import INDEX_SUFFIX, merge_headers, parse_index, shard_group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from pyassemble.network.weights import TensorHeader

#: Most headers fit into the first request; a longer one costs a second.
FIRST_READ_BYTES = 65_536

_MAX_INFO_BYTES = 20_000_000
_MAX_CONFIG_BYTES = 10_000_000
_MAX_INDEX_BYTES = 50_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubJob:
    """A Hub repository to read; see :class:`pyassemble.zoo.jobs.Job`.

    Attributes:
        name: What the zoo will call it.
        repository: ``ORG/NAME``.
        revision: Branch, tag or commit; None for the main branch.
        endpoint: Address of the Hub; None for the one of ``huggingface_hub``.
        token: To read as; None for the stored one, if any.
        timeout: Seconds an answer may take.
    """

    name: str
    repository: str
    revision: str | None = None
    endpoint: str | None = None
    token: str | None = field(default=None, repr=False)
    timeout: float = 10.0

    @property
    def key(self) -> str | None:
        """None unless a commit is named: what a branch holds may change from one call to the next."""
        if self.revision is None or not _COMMIT.fullmatch(self.revision):
            return None
        import timm

        return digest(
            type(self).__name__, self.name, self.repository, self.revision, self.endpoint, f"timm {timm.__version__}"
        )

    def build(self) -> Entry:
        """Reads the repository."""
        return read_repository(
            self.repository,
            name=self.name,
            revision=self.revision,
            endpoint=self.endpoint,
            token=self.token,
            timeout=self.timeout,
        )


def hub_jobs(
    repositories: Iterable[str],
    *,
    prefix: str = "hf-hub:",
    endpoint: str | None = None,
    token: str | None = None,
    timeout: float = 10.0,
) -> list[HubJob]:
    """Repositories of the Hub; nothing is asked of it yet.

    Args:
        repositories: Each ``ORG/NAME`` or ``ORG/NAME@REVISION``. Only one that names a commit is kept in a build's
            cache: what a branch holds may change.
        prefix: Put before each name.
        endpoint: Address of the Hub; None for the one of ``huggingface_hub`` (``HF_ENDPOINT``).
        token: To read as; None for the one ``huggingface_hub`` has stored, if any.
        timeout: Seconds an answer may take.

    Raises:
        NetworkSpecError: Not the name of a repository.
    """
    jobs = []
    for text in repositories:
        repository, _, revision = text.partition("@")
        _check_repository(repository)
        jobs.append(HubJob(prefix + text, repository, revision or None, endpoint, token, timeout))
    return jobs


def read_repository(
    repository: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    timeout: float = 10.0,
) -> Entry:
    """Reads a repository without downloading its weights.

    Where its ``config.json`` names a timm architecture, that is built on the meta device. Otherwise the headers of its
    safetensors files are read, by ranged requests of some kilobytes, and the entry is approximate.

    Args:
        repository: ``ORG/NAME``.
        name: What the zoo calls it; by default ``hf-hub:ORG/NAME``.
        revision: Branch, tag or commit; None for the main branch.
        endpoint: Address of the Hub; None for the one of ``huggingface_hub`` (``HF_ENDPOINT``).
        token: To read as; None for the one ``huggingface_hub`` has stored, if any.
        timeout: Seconds an answer may take.

    Raises:
        NetworkSpecError: Not the name of a repository.
        HubError: The Hub cannot be reached, refuses, or the repository holds no safetensors file.
        WeightsFileError: A header of it is damaged.
        EmptyNetworkError: It has no layer that could be scored.
    """
    _check_repository(repository)
    reader = _Reader.open(repository, revision, endpoint, token, timeout)
    weights = f"hf-hub:{repository}" + (f"@{revision}" if revision else "")
    name = weights if name is None else name
    network = reader.network()
    if network is not None:
        return Entry.of(name, network, license=reader.license or stated_license(network), weights=weights)
    return Entry.of_header(name, reader.header(), license=reader.license, weights=weights)


@dataclass(frozen=True)
class _Reader:
    """One commit of a repository.

    Attributes:
        repository: ``ORG/NAME``.
        commit: What every file is read from, so that they belong together.
        files: Names of its files.
        license: What its card says.
        endpoint: Address of the Hub; None for that of ``huggingface_hub``.
        headers: To send with each request.
        timeout: Seconds an answer may take.
    """

    repository: str
    commit: str
    files: frozenset[str]
    license: str | None
    endpoint: str | None
    headers: dict[str, str]
    timeout: float

    @classmethod
    def open(
        cls, repository: str, revision: str | None, endpoint: str | None, token: str | None, timeout: float
    ) -> _Reader:
        """Asks the Hub, in one request, for the commit, the names of its files and the card's data."""
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        from pyassemble import __version__

        headers = build_hf_headers(token=token, library_name="pyassemble", library_version=__version__)
        host = (endpoint or constants.ENDPOINT).rstrip("/")
        url = f"{host}/api/models/{repository}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        info = _json(url, fetch(url, headers=headers, limit=_MAX_INFO_BYTES, timeout=timeout))
        files = info.get("siblings")
        commit = info.get("sha")
        if not isinstance(files, list) or not isinstance(commit, str) or not commit:
            raise HubError(f"{url} does not name a commit and its files; is this the address of a Hub?")
        names = frozenset(name for file in files if isinstance(name := _get(file, "rfilename"), str))
        return cls(repository, commit, names, _license(info.get("cardData")), endpoint, headers, timeout)

    def network(self) -> nn.Module | None:
        """The architecture that the config names, on the meta device; None if it names none that timm can build."""
        if FOLDER_CONFIG not in self.files:
            return None
        content = self._fetch(FOLDER_CONFIG, _MAX_CONFIG_BYTES)
        try:
            config = json.loads(content)
        except (ValueError, RecursionError):  # no config for this purpose; the header tells what the repository holds
            return None
        if not isinstance(_get(config, "architecture"), str):
            return None
        with tempfile.TemporaryDirectory() as folder:  # timm reads its configs from the Hub itself or from a folder
            Path(folder, FOLDER_CONFIG).write_bytes(content)
            try:
                return load_network(NetworkSpec(folder, SpecKind.FOLDER, "", Path(folder)), meta=True)
            except NetworkSpecError:
                return None

    def header(self) -> dict[str, TensorHeader]:
        """The tensors of its weights, by the headers of its safetensors files."""
        file = self._weights_file()
        if not file.endswith(INDEX_SUFFIX):
            return self._file_header(file)
        weight_map = parse_index(self._url(file), self._fetch(file, _MAX_INDEX_BYTES))
        folder = file.rpartition("/")[0]
        headers = {
            shard: self._file_header(f"{folder}/{shard}" if folder else shard)
            for shard in dict.fromkeys(weight_map.values())
        }
        return merge_headers(self._url(file), headers, weight_map)

    def _weights_file(self) -> str:
        """The safetensors file, or the index of several."""
        for standard in (FOLDER_WEIGHTS, FOLDER_WEIGHTS.removesuffix(SAFETENSORS_SUFFIX) + INDEX_SUFFIX):
            if standard in self.files:
                return standard
        indexes = sorted(file for file in self.files if file.endswith(INDEX_SUFFIX))
        singles = sorted(
            file
            for file in self.files
            if file.endswith(SAFETENSORS_SUFFIX) and not shard_group(file.rpartition("/")[2])
        )
        found = indexes + singles
        if len(found) == 1:
            return found[0]
        if found:
            raise HubError(
                f"{self.repository} holds {len(found)} sets of weights and no {FOLDER_WEIGHTS}: "
                f"{', '.join(found[:4])}{', …' if len(found) > 4 else ''}"
            )
        raise HubError(f"{self.repository} holds no safetensors file and names no architecture that timm knows")

    def _file_header(self, file: str) -> dict[str, TensorHeader]:
        url = self._url(file)
        first = fetch_part(url, headers=self.headers, start=0, stop=FIRST_READ_BYTES, timeout=self.timeout)
        stop = HEADER_LENGTH_BYTES + header_length(url, first.content, first.total)
        raw = first.content[HEADER_LENGTH_BYTES:stop]
        if stop > len(first.content):
            rest = fetch_part(url, headers=self.headers, start=len(first.content), stop=stop, timeout=self.timeout)
            raw += rest.content
        return parse_header(url, raw, None if first.total is None else first.total - stop)

    def _fetch(self, file: str, limit: int) -> bytes:
        return fetch(self._url(file), headers=self.headers, limit=limit, timeout=self.timeout)

    def _url(self, file: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, file, revision=self.commit, endpoint=self.endpoint)


def _check_repository(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        reason = " ".join(str(error).split())
        raise NetworkSpecError(f"{repository!r} is not the name of a Hub repository: {reason}") from error


def _json(url: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HubError(f"{url} is no JSON: {' '.join(str(error).split())}; is this the address of a Hub?") from error
    if not isinstance(value, dict):
        raise HubError(f"{url} is no JSON object; is this the address of a Hub?")
    return value


def _license(card: object) -> str | None:
    """The license in a card's data: a short name, several, or one of the publisher's own."""
    license = _get(card, "license")
    if isinstance(license, list):
        return ", ".join(item for item in license if isinstance(item, str)) or None
    own = _get(card, "license_name")
    if license == "other" and isinstance(own, str):
        license = own
    return license if isinstance(license, str) and license and license != "unknown" else None


def _get(mapping: object, key: str) -> object:
    return mapping.get(key) if isinstance(mapping, dict) else None
