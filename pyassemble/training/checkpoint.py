"""A run's state on disk: a JSON document and a safetensors file, replaced together at every epoch's end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyassemble.atomic import replacing
from pyassemble.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A folder that keeps the last finished epoch of a run.

    The document names its tensors' file and is replaced last: a kill at any moment leaves one whole epoch.

    Attributes:
        folder: Made when first written to.
        kind: Of run, one word: "search", "merge". It names the document.
        identity: What two runs must agree in to be one; JSON values.
    """

    folder: Path
    kind: str
    identity: dict[str, Any]

    @property
    def format(self) -> str:
        """What the document says it is."""
        return f"pyassemble.{self.kind}"

    @property
    def _document(self) -> Path:
        return self.folder / f"{self.kind}.json"

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """The state last saved.

        Returns:
            Document and tensors (on the CPU); None where there is none yet.

        Raises:
            CheckpointError: The folder is none, the files are damaged or of another version, or the run is another
                one; the message names what differs.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder} is a file; accepted: a folder for checkpoints")
        path = self._document
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document.get("format") != self.format or document.get("version") != VERSION:
                raise CheckpointError(
                    f"{path} is {document.get('format')} version {document.get('version')}; accepted: {self.format} "
                    f"version {VERSION}"
                )
            self._compare(document["identity"])
            state: dict[str, Any] = document["state"]
            return state, load_file(self.folder / document["tensors"])
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error

    def save(self, epoch: int, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Replaces what was there.

        Args:
            epoch: The one just finished.
            state: JSON values.
            tensors: By name.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch-{epoch:04d}.safetensors"
        with replacing(self.folder / name) as temporary:
            save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, temporary)
        document = {
            "format": self.format,
            "version": VERSION,
            "tensors": name,
            "identity": self.identity,
            "state": state,
        }
        with replacing(self._document) as temporary:
            temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.name != name:
                old.unlink()

    def discard(self) -> None:
        """Removes what was saved, and the folder if nothing else is in it."""
        self._document.unlink(missing_ok=True)
        for tensors in self.folder.glob("epoch-*.safetensors"):
            tensors.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _compare(self, saved: dict[str, Any]) -> None:
        for name, value in json.loads(json.dumps(self.identity)).items():
            if saved.get(name) != value:
                before, now = saved.get(name), value
                if isinstance(before, dict) and isinstance(now, dict):
                    name, before, now = _first_difference(name, before, now)
                raise CheckpointError(
                    f"{self.folder} holds a {self.kind} with {name} {before}, now {now}; accepted: the same "
                    f"{self.kind}, or another folder"
                )


def _first_difference(name: str, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    key = next(key for key in (*now, *before) if before.get(key) != now.get(key))
    return f"{name}.{key}", before.get(key), now.get(key)
