"""An assembly as a folder: weights, recipe and model card, on disk and on the Hugging Face Hub."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyassemble.assemble.assembly import Assembly
from pyassemble.assemble.card import model_card
from pyassemble.assemble.composition import check_cut, made_stitch
from pyassemble.assemble.head import Head
from pyassemble.assemble.rebuilding import cut_without_weights, file_hash
from pyassemble.assemble.recipe import Recipe
from pyassemble.errors import HubError, NetworkSpecError, RecipeError, WeightsFileError
from pyassemble.network.sources import FOLDER_RECIPE, FOLDER_WEIGHTS, NetworkSpec, SpecKind, load_network
from pyassemble.network.weights import load_weights, write_weights

if TYPE_CHECKING:
    from pyassemble.assemble.recipe import SourceRecipe
    from pyassemble.network.cuts import CutNetwork

#: What a recipe file of an assembly says it is, and of which version.
KIND = "assembly"
VERSION = 1
_CARD = "README.md"


def save_folder(assembly: Assembly, folder: Path) -> None:
    """Writes an assembly; see :meth:`Assembly.save`."""
    lost = next((source.network for source in assembly.recipe.sources if source.spec is None), None)
    if lost is not None:
        raise RecipeError(
            f"network {lost!r} cannot be built again without its weights: nothing known builds its segments; name what "
            f"does with Repository(…, sources={{{lost!r}: 'path/to/file.py:factory'}})"
        )
    _check_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        _write(assembly, temporary)
        _put(temporary, folder)
    except OSError as error:
        raise WeightsFileError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_folder(folder: Path) -> Assembly:
    """Reads an assembly; see :meth:`Assembly.load`."""
    content = _read(folder)
    recipe = Recipe.from_dict(content["recipe"])
    weights = folder / FOLDER_WEIGHTS
    if not weights.is_file():
        raise WeightsFileError(f"{weights} does not exist")
    if file_hash(weights) != content["weights_hash"]:
        raise WeightsFileError(f"{weights} is not the file that was saved with {folder / FOLDER_RECIPE}")
    with torch.random.fork_rng(devices=[]):  # architectures come with random weights, which are drawn
        networks = {source.network: _rebuilt(source, recipe) for source in recipe.sources}
        for row in recipe.blocks:
            check_cut(row, networks[row.network])
        segments = [networks[row.network].segments[row.first : row.last + 1] for row in recipe.blocks]
        generator = torch.Generator()
        stitches = [made_stitch(row, generator) for row in recipe.stitches]
        head = Head(recipe.blocks[-1].output_shape, recipe.num_classes)
    assembly = Assembly(segments, stitches, head, recipe)
    load_weights(assembly, weights)
    assembly.history = content["history"]
    return assembly.train_blocks(content["blocks_trained"]).eval()


def push_folder(assembly: Assembly, repository: str, *, private: bool, token: str | None, message: str) -> str:
    """Uploads an assembly; see :meth:`Assembly.push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token, library_name="pyassemble")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "assembly")
        save_folder(assembly, folder)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise HubError(f"Hub repository {repository!r} cannot be written: {_first_line(error)}") from error
    return f"{api.endpoint}/{repository}"


def fetch_folder(repository: str) -> Path:
    """Downloads an assembly from the Hub, or finds it in the local cache.

    Raises:
        HubError: The Hub cannot be reached, or has no such repository.
        RecipeError: The recipe names a file of code, of which only the local machine's could be run.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[FOLDER_RECIPE, FOLDER_WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise HubError(f"Hub repository {repository!r} cannot be read: {_first_line(error)}") from error
    for source in Recipe.from_dict(_read(folder)["recipe"]).sources:
        scheme = (source.spec or "").partition(":")[0]
        if scheme not in (SpecKind.TIMM, SpecKind.TORCHVISION):
            raise RecipeError(
                f"Hub repository {repository!r} builds network {source.network!r} from {source.spec!r}; from the Hub "
                "only architectures of timm and torchvision are built"
            )
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write(assembly: Assembly, folder: Path) -> None:
    write_weights(folder / FOLDER_WEIGHTS, assembly.state_dict())
    content = {
        "kind": KIND,
        "version": VERSION,
        "weights_hash": file_hash(folder / FOLDER_WEIGHTS),
        "blocks_trained": assembly.blocks_trained,
        "history": assembly.history,
        "recipe": assembly.recipe.as_dict(),
    }
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the assembly's history does not fit into JSON: {error}") from error
    (folder / FOLDER_RECIPE).write_text(text + "\n", encoding="utf-8")
    (folder / _CARD).write_text(model_card(assembly), encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    if not folder.parent.is_dir():
        raise WeightsFileError(f"{folder} cannot be written: the folder {folder.parent} does not exist")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise WeightsFileError(f"{folder} is no folder; a folder's name was expected")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FOLDER_RECIPE).is_file():
        raise WeightsFileError(f"{folder} holds something other than an assembly, and is not replaced")


def _put(temporary: Path, folder: Path) -> None:
    """Renames a finished folder to its final name; an older one gives way only then."""
    if not folder.exists():
        temporary.rename(folder)
        return
    old = temporary.with_suffix(".old")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _read(folder: Path) -> dict[str, Any]:
    file = folder / FOLDER_RECIPE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{folder} holds no {FOLDER_RECIPE}") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file} is not readable as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise RecipeError(f"{file} is not the recipe of an assembly")
    if content.get("version") != VERSION:
        raise RecipeError(f"{file} is of version {content.get('version')!r}; this pyassemble reads version {VERSION}")
    expected = {"recipe": dict, "weights_hash": str, "history": list, "blocks_trained": bool}
    wrong = next((name for name, kind in expected.items() if not isinstance(content.get(name), kind)), None)
    if wrong is not None:
        raise RecipeError(f"{file} has no proper entry {wrong!r}")
    return content


def _rebuilt(source: SourceRecipe, recipe: Recipe) -> CutNetwork:
    """The network of a source, cut, with random weights."""
    if source.spec is None:
        raise RecipeError(f"the recipe does not say what network {source.network!r} is built from")
    try:
        spec = NetworkSpec.parse(source.spec)
        if spec.path is not None and file_hash(spec.path) != source.file_hash:
            raise RecipeError(f"network {source.network!r} has changed: {spec.path} is not the file it was built from")
        network = load_network(spec, options=dict(source.options))
    except NetworkSpecError as error:
        raise RecipeError(f"network {source.network!r} cannot be built: {error}") from error
    return cut_without_weights(network, torch.empty(1, *recipe.input_shape.size))
