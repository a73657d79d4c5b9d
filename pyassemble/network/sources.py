"""Networks by name: what the text ``timm:resnet18`` or ``path/to/file.py:factory`` stands for, and building it."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyassemble.errors import NetworkSpecError
from pyassemble.network.weights import WEIGHTS_SUFFIXES, load_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

FOLDER_CONFIG = "config.json"
FOLDER_RECIPE = "recipe.json"
FOLDER_WEIGHTS = "model.safetensors"

ACCEPTED_FORMS = (
    "timm:NAME, torchvision:NAME, hf-hub:ORG/NAME, "
    f"a folder with {FOLDER_CONFIG} or {FOLDER_RECIPE} and {FOLDER_WEIGHTS}, or path/to/file.py:factory"
)

#: Where ``load_folder(path)`` is that reads the networks of each kind that a recipe may name. They are made by the
#: package's capabilities, which lie above this folder: so they are named here, and imported when such a recipe is met.
RECIPE_READERS = {"assembly": "pyassemble.assemble.folder"}

_LISTING = {"timm": "timm.list_models()", "torchvision": "torchvision.models.list_models()"}


class SpecKind(StrEnum):
    """Where a named network comes from."""

    TIMM = "timm"
    TORCHVISION = "torchvision"
    HUB = "hf-hub"
    FOLDER = "folder"
    FACTORY = "factory"
    WEIGHTS = "weights"


@dataclass(frozen=True)
class NetworkSpec:
    """A network's name, taken apart.

    Attributes:
        text: As the user wrote it.
        kind: Where the network comes from.
        name: What its library calls it; for a factory the function's name; empty for a folder or a weights file.
        path: The folder, Python file or weights file; ``None`` for a network from a library.
    """

    text: str
    kind: SpecKind
    name: str
    path: Path | None

    @classmethod
    def parse(cls, text: str) -> NetworkSpec:
        """Takes a network's name apart; nothing is built, imported or downloaded.

        Raises:
            NetworkSpecError: It has none of the accepted forms, or names a path that does not exist.
        """
        scheme, colon, name = text.partition(":")
        if colon and scheme in (SpecKind.TIMM, SpecKind.TORCHVISION, SpecKind.HUB):
            if not name:
                raise NetworkSpecError(f"{text!r} names no network; accepted: {ACCEPTED_FORMS}")
            return cls(text, SpecKind(scheme), name, None)
        file, colon, factory = text.rpartition(":")
        if colon and file.endswith(".py"):
            return cls(text, SpecKind.FACTORY, factory, _python_file(text, file, factory))
        path = Path(text)
        if text and path.is_dir():  # an empty text would be the current folder
            return cls(text, SpecKind.FOLDER, "", path)
        if path.suffix in WEIGHTS_SUFFIXES:
            return cls(text, SpecKind.WEIGHTS, "", path)
        raise NetworkSpecError(f"network {text!r} is not understood{_hint(text)}; accepted: {ACCEPTED_FORMS}")

    @property
    def holds_weights(self) -> bool:
        """Whether the named thing is a file or folder that itself holds trained weights."""
        return self.kind in (SpecKind.FOLDER, SpecKind.WEIGHTS)


def load_network(
    spec: str | NetworkSpec,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    meta: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Builds the network that a spec names.

    Args:
        spec: ``timm:NAME``, ``torchvision:NAME``, ``hf-hub:ORG/NAME``, a folder in the Hub's layout (``config.json``
            naming a timm architecture, ``model.safetensors``), a folder that this package wrote (``recipe.json``), or
            ``path/to/file.py:factory``; the file is executed and ``factory()`` called.
        weights: A weights file, loaded strictly into the network, in place of any weights it would come with.
        pretrained: With the weights published for it, downloaded if need be. A folder always comes with its own
            weights, a factory's network with whatever the factory gave it.
        meta: On the meta device: shapes only. A network whose construction needs real numbers is built on the default
            device instead, with random weights; one with a recipe as it was saved.
        options: Arguments for the library's builder beside the name, such as ``in_chans`` for timm.

    Returns:
        The network, in training mode as its library builds it.

    Raises:
        NetworkSpecError: The spec is not understood, unknown to its library, or its network cannot be built.
        RecipeError: A folder's recipe is damaged, or a network that it needs is missing or has changed.
        WeightsFileError: The weights file cannot be read or does not fit the network.
    """
    spec = NetworkSpec.parse(spec) if isinstance(spec, str) else spec
    if sum((weights is not None, pretrained, meta)) > 1:
        raise NetworkSpecError(
            f"network {spec.text!r}: a weights file, published weights and the meta device exclude each other"
        )
    if spec.kind is SpecKind.WEIGHTS:
        raise NetworkSpecError(
            f"{spec.text!r} holds tensors but not the network they belong to, so it can only be a source; "
            f"accepted here: {ACCEPTED_FORMS}"
        )
    if options and spec.kind in (SpecKind.FOLDER, SpecKind.FACTORY):
        raise NetworkSpecError(f"network {spec.text!r} is built without options; given were {', '.join(options)}")
    if spec.kind is SpecKind.FOLDER and not (_path_of(spec) / FOLDER_CONFIG).is_file():
        network = _from_recipe(spec)
        if weights is not None:
            load_weights(network, weights)
        return network
    if meta:
        return _build_on_meta(spec, options or {})
    network = _build(spec, pretrained, options or {})
    if weights is not None:
        load_weights(network, weights)
    elif spec.kind is SpecKind.FOLDER:
        load_weights(network, _path_of(spec) / FOLDER_WEIGHTS)
    return network


def stated_license(network: nn.Module) -> str | None:
    """The license that a network of timm or the Hub carries in its configuration."""
    config = getattr(network, "pretrained_cfg", None)
    name = config.get("license") if isinstance(config, Mapping) else None
    return name if isinstance(name, str) and name else None


def _build_on_meta(spec: NetworkSpec, options: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return _build(spec, False, options)
    except NetworkSpecError as error:
        # What torch cannot do without numbers (`.item()`, data-dependent sizes) it reports as a RuntimeError.
        if not isinstance(error.__cause__, RuntimeError):
            raise
    return _build(spec, False, options)


def _build(spec: NetworkSpec, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    match spec.kind:
        case SpecKind.TIMM:
            return _from_timm(spec, pretrained, options)
        case SpecKind.TORCHVISION:
            return _from_torchvision(spec, pretrained, options)
        case SpecKind.HUB:
            return _call(spec, "timm", _timm_builder(f"hf-hub:{spec.name}", pretrained, options))
        case SpecKind.FOLDER:
            return _from_folder(spec)
        case SpecKind.FACTORY:
            return _from_factory(spec)
        case SpecKind.WEIGHTS:
            raise AssertionError("a weights file is no network")


def _from_timm(spec: NetworkSpec, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(spec.name):
        raise _unknown(spec, "timm", timm.list_models())
    return _call(spec, "timm", _timm_builder(spec.name, pretrained, options))


def _timm_builder(name: str, pretrained: bool, options: Mapping[str, Any]) -> Callable[[], object]:
    import timm

    return lambda: timm.create_model(name, pretrained=pretrained, **options)


def _from_torchvision(spec: NetworkSpec, pretrained: bool, given: Mapping[str, Any]) -> nn.Module:
    from torchvision.models import get_model, get_model_builder, list_models

    known = list_models()
    if spec.name not in known:
        raise _unknown(spec, "torchvision", known)
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None, **given}
    if not pretrained and "weights_backbone" in inspect.signature(get_model_builder(spec.name)).parameters:
        # Detection and segmentation networks download their backbone's weights unless told not to.
        options["weights_backbone"] = None
    with warnings.catch_warnings():
        # Inception and GoogLeNet announce that their random initialization may change, to nobody in particular.
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        return _call(spec, "torchvision", lambda: get_model(spec.name, **options))


def _from_folder(spec: NetworkSpec) -> nn.Module:
    import timm

    folder = _path_of(spec)
    config = folder / FOLDER_CONFIG
    content = _read_json(config)
    architecture = content.get("architecture") if isinstance(content, dict) else None
    if not isinstance(architecture, str):
        raise NetworkSpecError(f'{config} has no entry "architecture" with the name of a timm network')
    if not timm.is_model(architecture):
        raise _unknown(spec, "timm", timm.list_models(), name=architecture)
    return _call(spec, "timm", _timm_builder(f"local-dir:{folder}", False, {}))


def _from_recipe(spec: NetworkSpec) -> nn.Module:
    """A network that this package made, as it was saved, in training mode."""
    folder = _path_of(spec)
    file = folder / FOLDER_RECIPE
    if not file.is_file():
        raise NetworkSpecError(f"folder {spec.text!r} holds neither {FOLDER_CONFIG} nor {FOLDER_RECIPE}")
    content = _read_json(file)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in RECIPE_READERS:
        raise NetworkSpecError(f"{file} is of kind {kind!r}; known are {', '.join(RECIPE_READERS)}")
    network = importlib.import_module(RECIPE_READERS[kind]).load_folder(folder)
    assert isinstance(network, nn.Module)
    return network.train()


def _read_json(file: Path) -> object:
    try:
        content: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NetworkSpecError(f"{file} is not readable as JSON: {_one_line(error)}") from error
    return content


def _from_factory(spec: NetworkSpec) -> nn.Module:
    file = _path_of(spec)
    with _importable_neighbours(file):
        module = _import_file(spec, file)
        factory = getattr(module, spec.name, None)
        if factory is None:
            raise NetworkSpecError(f"{file} defines no {spec.name!r}{_close(spec.name, vars(module))}")
        if not callable(factory):
            raise NetworkSpecError(f"{spec.name!r} in {file} is a {type(factory).__name__}; a function was expected")
        return _call(spec, f"{spec.name}() in {file}", factory)


def _import_file(spec: NetworkSpec, file: Path) -> ModuleType:
    # A name of its own for every file, so that two files called model.py do not replace each other.
    digest = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    module_spec = importlib.util.spec_from_file_location(f"pyassemble_factory_{digest}", file)
    if module_spec is None or module_spec.loader is None:
        raise NetworkSpecError(f"{file} is not a Python file that can be imported")
    module = importlib.util.module_from_spec(module_spec)
    # Registered because dataclasses, pickling and tracing look a class's module up by name.
    sys.modules[module_spec.name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_spec.name]
        raise NetworkSpecError(f"network {spec.text!r}: importing {file} failed: {_one_line(error)}") from error
    return module


@contextlib.contextmanager
def _importable_neighbours(file: Path) -> Iterator[None]:
    """Lets the file import its neighbours, as when run as a script, but behind all that is installed."""
    folder = str(file.resolve().parent)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _call(spec: NetworkSpec, builder: str, build: Callable[[], object]) -> nn.Module:
    """Runs foreign code that builds a network; whatever it raises becomes one error that says what was being built."""
    try:
        network = build()
    except (Exception, SystemExit) as error:  # a script's sys.exit() must not end the program that calls it
        raise NetworkSpecError(f"network {spec.text!r}: {builder} failed: {_one_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise NetworkSpecError(
            f"network {spec.text!r}: {builder} returned a {type(network).__name__}; a torch.nn.Module was expected"
        )
    return network


def _python_file(text: str, file: str, factory: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise NetworkSpecError(f"network {text!r}: no such file: {file}")
    if not factory.isidentifier():
        raise NetworkSpecError(f"network {text!r}: {factory!r} is not a function's name; accepted: file.py:factory")
    return path


def _path_of(spec: NetworkSpec) -> Path:
    if spec.path is None:
        raise AssertionError(f"{spec.kind} has no path")
    return spec.path


def _hint(text: str) -> str:
    """What the user may have meant, where one can say."""
    import timm

    if text.endswith(".py"):
        return f" (which function? {text}:FUNCTION)"
    if text.endswith("/"):
        return " (no such folder)"
    return f" (timm:{text}?)" if timm.is_model(text) else ""


def _unknown(spec: NetworkSpec, library: str, known: Iterable[str], *, name: str | None = None) -> NetworkSpecError:
    name = spec.name if name is None else name
    hint = _close(name, known) or f"; {_LISTING[library]} gives the names it knows"
    return NetworkSpecError(f"network {spec.text!r}: {library} knows no {name!r}{hint}")


def _close(name: str, known: Iterable[str]) -> str:
    # A name without its pretrained tag is what the library registers.
    matches = difflib.get_close_matches(name.partition(".")[0], known, n=4, cutoff=0.6)
    return f"; close: {', '.join(matches)}" if matches else ""


def _one_line(error: BaseException) -> str:
    """A foreign error in one line: its type, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
