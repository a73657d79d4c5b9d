"""A search written down: the YAML file that ``pyassemble assemble`` reads, checked before anything is built.

    networks:                      # names and sources; a list of sources will do
      resnet18: timm:resnet18
      mine: {source: "nets.py:small", weights: small.safetensors}
    pretrained: true               # published weights for the sources that have them
    images: {height: 224, width: 224}      # channels: 3, mean and std: ImageNet's
    data: {train: photos/train, validation: photos/held_out, limit: 10000}
    epochs: 20
    out: assembled

Optional: num_classes, blocks, select, seed, device, mixed_precision, checkpoint, settings (see ``SearchSettings``),
finetune: {mode, epochs, learning_rate}. Paths are relative to the current folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyassemble.assemble.finetuning import MODES
from pyassemble.assemble.settings import SearchSettings
from pyassemble.errors import PyAssembleError, RecipeError
from pyassemble.training.image_files import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterable

_REQUIRED = object()


@dataclass(frozen=True)
class SourcePlan:
    """A network of the repository.

    Attributes:
        name: In the repository.
        source: As :func:`load_network` takes it.
        weights: File to load into it, if any.
    """

    name: str
    source: str
    weights: Path | None = None


@dataclass(frozen=True)
class DataPlan:
    """Where the images are, as :func:`read_images` takes it.

    Attributes:
        train: Training images.
        validation: Others; half of the training images without.
        limit: Use only so many of each.
        workers: Processes that read them.
    """

    train: str
    validation: str | None = None
    limit: int | None = None
    workers: int = 0


@dataclass(frozen=True)
class FinetunePlan:
    """Training after the search.

    Attributes:
        epochs: Passes over all training images.
        mode: "stitches" or "full".
        learning_rate: The mode's own by default.
    """

    epochs: int
    mode: str = "stitches"
    learning_rate: float | None = None


@dataclass(frozen=True)
class Plan:
    """A whole search.

    Attributes:
        networks: The repository.
        images: From pictures to what the networks take.
        data: Where the pictures are.
        epochs: Of the search.
        out: Folder for the result.
        pretrained: Whether sources come with their published weights.
        num_classes: As many as the training data has, by default.
        blocks: Of the result.
        select: What the best assembly is picked by.
        seed: Of everything.
        device: Where to compute.
        mixed_precision: accelerate's own setting by default.
        checkpoint: Folder for the search's state; beside ``out`` by default.
        settings: Of the search.
        finetune: Training after it, if any.
    """

    networks: tuple[SourcePlan, ...]
    images: Preprocessing
    data: DataPlan
    epochs: int
    out: Path
    pretrained: bool = False
    num_classes: int | None = None
    blocks: int = 4
    select: str = "validation"
    seed: int = 0
    device: str = "cpu"
    mixed_precision: str | None = None
    checkpoint: Path | None = None
    settings: SearchSettings = field(default_factory=SearchSettings)
    finetune: FinetunePlan | None = None

    @property
    def checkpoint_folder(self) -> Path:
        """Where the search's state is kept."""
        return self.checkpoint or self.out.with_name(f"{self.out.name}.search")

    @classmethod
    def read(cls, file: Path) -> Plan:
        """Reads and checks a YAML file.

        Args:
            file: The file.

        Returns:
            What it says.

        Raises:
            RecipeError: It is not there, no YAML, or says something that is not understood; the message names the entry
                and what would be accepted.
        """
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{file} cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
        try:
            return _plan(content)
        except PyAssembleError as error:
            raise RecipeError(f"{file}: {error}") from error


def _plan(content: Any) -> Plan:
    entries = _Entries(content, "the recipe", [f.name for f in fields(Plan)])
    pictures = _Entries(entries.get("images", dict), "images", [f.name for f in fields(Preprocessing)])
    data = _Entries(entries.get("data", dict), "data", [f.name for f in fields(DataPlan)])
    return Plan(
        networks=_sources(entries.get("networks", (dict, list))),
        images=_preprocessing(pictures),
        data=DataPlan(
            train=data.get("train", str),
            validation=data.get("validation", str, None),
            limit=data.number("limit", None, low=1),
            workers=data.number("workers", 0, low=0),
        ),
        epochs=entries.number("epochs", low=1),
        out=Path(entries.get("out", str)),
        pretrained=entries.get("pretrained", bool, False),
        num_classes=entries.number("num_classes", None, low=2),
        blocks=entries.number("blocks", 4, low=2),
        select=entries.get("select", str, "validation"),
        seed=entries.number("seed", 0, low=0),
        device=entries.get("device", str, "cpu"),
        mixed_precision=entries.get("mixed_precision", str, None),
        checkpoint=_path(entries.get("checkpoint", str, None)),
        settings=_settings(entries.get("settings", dict, {})),
        finetune=_finetune(entries.get("finetune", dict, None)),
    )


def _sources(given: Any) -> tuple[SourcePlan, ...]:
    if not given:
        raise RecipeError("networks is empty; accepted: at least one source")
    named = given.items() if isinstance(given, dict) else ((source, source) for source in given)
    found = []
    for name, value in named:
        if not isinstance(name, str):
            raise RecipeError(f"networks: the name {name!r} is a {type(name).__name__}; accepted: text")
        if isinstance(value, str):
            found.append(SourcePlan(name, value))
            continue
        entries = _Entries(value, f"networks.{name}", ["source", "weights"])
        found.append(SourcePlan(name, entries.get("source", str), _path(entries.get("weights", str, None))))
    names = [source.name for source in found]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise RecipeError(f"networks: {repeated!r} is there more than once; accepted: each name once")
    return tuple(found)


def _preprocessing(entries: _Entries) -> Preprocessing:
    channels = entries.number("channels", 3, low=1)
    means, stds = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.5,))
    return Preprocessing(
        channels=channels,
        height=entries.number("height", low=1),
        width=entries.number("width", low=1),
        mean=entries.numbers("mean", means),
        std=entries.numbers("std", stds),
    )


def _settings(given: dict[str, Any]) -> SearchSettings:
    defaults = SearchSettings()
    entries = _Entries(given, "settings", [f.name for f in fields(SearchSettings)])
    chosen: dict[str, Any] = {}
    for name in given:
        kind = type(getattr(defaults, name))
        value = entries.get(name, (int, float) if kind is float else kind)
        chosen[name] = kind(value)
    return SearchSettings(**chosen)


def _finetune(given: dict[str, Any] | None) -> FinetunePlan | None:
    if given is None:
        return None
    entries = _Entries(given, "finetune", [f.name for f in fields(FinetunePlan)])
    mode = entries.get("mode", str, "stitches")
    if mode not in MODES:
        raise RecipeError(f"finetune.mode is {mode!r}; accepted: {', '.join(MODES)}")
    rate = entries.get("learning_rate", (int, float), None)
    return FinetunePlan(entries.number("epochs", low=1), mode, None if rate is None else float(rate))


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


class _Entries:
    """A mapping of the file, and what may be in it."""

    def __init__(self, content: Any, where: str, known: Iterable[str]) -> None:
        if not isinstance(content, dict):
            raise RecipeError(f"{where} is a {type(content).__name__}; accepted: entries {', '.join(known)}")
        unknown = next((key for key in content if key not in known), None)
        if unknown is not None:
            raise RecipeError(f"{where} has an entry {unknown!r}; accepted: {', '.join(known)}")
        self._content: dict[str, Any] = content
        self._prefix = "" if where == "the recipe" else f"{where}."

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """An entry of one of these types; the default where it is missing or empty."""
        value = self._content.get(name)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is None:
            if default is _REQUIRED:
                raise RecipeError(f"{self._prefix}{name} is missing; accepted: {_words(kinds)}")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise RecipeError(f"{self._prefix}{name} is {value!r}; accepted: {_words(kinds)}")
        return value

    def number(self, name: str, default: Any = _REQUIRED, *, low: int) -> Any:
        """An integer of at least ``low``."""
        value = self.get(name, int, default)
        if value is not None and value < low:
            raise RecipeError(f"{self._prefix}{name} is {value}; accepted: at least {low}")
        return value

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of numbers."""
        values = self.get(name, list, list(default))
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            raise RecipeError(f"{self._prefix}{name} is {values!r}; accepted: a list of numbers")
        return tuple(map(float, values))


_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "entries", list: "a list"}


def _words(kinds: tuple[type, ...]) -> str:
    return " or ".join(_WORDS[kind] for kind in kinds if kind is not int or float not in kinds)
