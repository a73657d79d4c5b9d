"""An assembly: blocks of different networks, stitched together, with a head of its own (PA-DNN, Q_β's result)."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import fx, nn

from pyassemble.assemble.composition import check_cut, made_stitch, recipe_of, with_given_stitches
from pyassemble.assemble.head import Head
from pyassemble.errors import ArgumentTypeError, OutOfRangeError, RecipeError, TensorError
from pyassemble.network.sources import SpecKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyassemble.assemble.recipe import Recipe
    from pyassemble.assemble.repository import Block, Repository
    from pyassemble.training.data import LabelledImages


class Assembly(nn.Module):
    """A network of blocks of pretrained networks, stitches between them, and a head.

    Made by :meth:`compose` or :meth:`load`. The blocks are frozen and stay in eval mode, also after ``train()``, until
    :meth:`train_blocks` says otherwise; they share the memory of the repository's networks until they are trained,
    moved, or loaded into.

    Attributes:
        blocks: Each block as the row of its segments.
        stitches: What stands before each block; ``Identity`` before a block that takes the images.
        head: Features to classes.
        recipe: What it is made of.
        history: What its training noted, a dict of plain values for each epoch.
        check_finite: Whether each forward pass checks what every block returns. Off for export.
    """

    def __init__(
        self, blocks: Sequence[Sequence[nn.Module]], stitches: Sequence[nn.Module], head: nn.Module, recipe: Recipe
    ) -> None:
        """Puts the parts together as they are; :meth:`compose` makes them fit."""
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*segments) for segments in blocks)
        self.stitches = nn.ModuleList(stitches)
        self.head = head
        self.recipe = recipe
        self.history: list[dict[str, Any]] = []
        self.check_finite = False
        self._blocks_trained = False
        self._owns_blocks = False
        self.train(False)

    @classmethod
    def compose(
        cls,
        repository: Repository,
        blocks: Sequence[Block | tuple[str, int, int]],
        num_classes: int,
        *,
        seed: int = 0,
        stitches: Mapping[int, nn.Module] | None = None,
        head: nn.Module | None = None,
    ) -> Self:
        """Assembles blocks by hand.

        A block that starts with its network's first segment takes images. Before a block that continues the one before
        it in the same network the features are handed on as they are; before any other stands a stitch.

        Args:
            repository: Holds the blocks.
            blocks: Network, first and last segment of each block.
            num_classes: Number of classes of the head.
            seed: For the random weights of stitches and head.
            stitches: Stitches to use as they are, by the index of the block that they stand before.
            head: A head to use as it is.

        Returns:
            The assembly, in eval mode, on the repository's device.

        Raises:
            ArgumentTypeError: Something is no block, stitch or head.
            CutError: A network has no such segments.
            OutOfRangeError: No blocks, less than one class, or a stitch for a block that is not there.
            TensorError: A stitch or head of other shapes.
            UnknownOptionError: No network of that name.
        """
        rows = [repository.block(block) for block in blocks]
        if not rows:
            raise OutOfRangeError("blocks is empty; at least one block was expected")
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise OutOfRangeError(f"num_classes is {num_classes!r}; an integer of at least 1 was expected")
        recipe = recipe_of(repository, rows, num_classes)
        given = dict(stitches or {})
        stray = next((index for index in given if index not in range(len(rows))), None)
        if stray is not None:
            raise OutOfRangeError(f"a stitch is given for block {stray!r}; there are blocks 0 to {len(rows) - 1}")
        if given:
            recipe = with_given_stitches(recipe, given)
        generator = torch.Generator().manual_seed(seed)
        made = [given[i] if i in given else made_stitch(row, generator) for i, row in enumerate(recipe.stitches)]
        shape = recipe.blocks[-1].output_shape
        if head is None:
            head = Head(shape, num_classes, generator=generator)
        elif not isinstance(head, Head):
            raise ArgumentTypeError(f"head is a {type(head).__name__}; a pyassemble.assemble.Head was expected")
        elif head.shape != shape or head.classifier.out_features != num_classes:
            raise TensorError(
                f"head takes {head.shape} and gives {head.classifier.out_features} classes; the last block returns "
                f"{shape}, and num_classes is {num_classes}"
            )
        segments = [repository[row.network].segments[row.first : row.last + 1] for row in rows]
        assembly = cls([[_sharing(s) for s in block] for block in segments], made, head, recipe)
        assembly.stitches.to(repository.device)
        assembly.head.to(repository.device)
        return assembly

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, classes).

        Raises:
            TensorError: Images of another size, or, where ``check_finite`` is set, a block returns NaN or infinity.
        """
        classes: torch.Tensor = self.head(self.features(images))
        return classes

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last block returns, before the head.

        Raises:
            TensorError: As :meth:`forward`.
        """
        check_images(images, self.recipe.input_shape.size)
        features = images
        for index, (stitch, block) in enumerate(zip(self.stitches, self.blocks, strict=True)):
            features = block(stitch(features))
            if self.check_finite:
                self._check_finite(features, index)
        return features

    def _check_finite(self, features: torch.Tensor, index: int) -> None:
        if features.isfinite().all():
            return
        row = self.recipe.blocks[index]
        source = self.recipe.source(row.network).spec or "source unknown"
        raise TensorError(
            f"block {index} of shape {tuple(features.shape)} holds values that are not finite: segments {row.first} to "
            f"{row.last} ({row.cut_points[-1]!r}) of network {row.network!r} ({source})"
        )

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of stitches and head; that of the blocks only where they are trained."""
        super().train(mode)
        if not self._blocks_trained:
            self.blocks.eval()
        return self

    def train_blocks(self, mode: bool = True) -> Self:
        """Whether the blocks are trained too (PA-DNN_full-train), or stay frozen in eval mode.

        Blocks to be trained get memory of their own first: the repository's networks, and other assemblies of them,
        stay as they are. Dropout that a network calls as a function stays off, as it was when the network was cut.
        """
        if mode:
            self._own_blocks()
        self._blocks_trained = mode
        for parameter in self.blocks.parameters():
            parameter.requires_grad_(mode and (parameter.is_floating_point() or parameter.is_complex()))
        return self.train(self.training)

    @property
    def blocks_trained(self) -> bool:
        """Whether the blocks are trained with the stitches and the head."""
        return self._blocks_trained

    def finetune(
        self,
        train: LabelledImages,
        *,
        validation: LabelledImages | None = None,
        epochs: int,
        mode: str = "stitches",
        learning_rate: float | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        smoothing: float = 0.1,
        mixed_precision: str | None = None,
        progress: bool | None = None,
        after_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Trains the stitches and the head, or everything; see :func:`pyassemble.assemble.finetuning.finetune`."""
        from pyassemble.assemble.finetuning import finetune

        return finetune(
            self,
            train,
            validation=validation,
            epochs=epochs,
            mode=mode,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            mixup=mixup,
            cutmix=cutmix,
            smoothing=smoothing,
            mixed_precision=mixed_precision,
            progress=progress,
            after_epoch=after_epoch,
        )

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_trainable_parameters(self) -> int:
        """Elements of the parameters that training changes."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @classmethod
    def from_recipe(cls, recipe: Recipe, repository: Repository, *, seed: int = 0) -> Self:
        """Composes the blocks of a recipe again, from the networks that it was made of.

        Args:
            recipe: Names the blocks.
            repository: Holds networks of the same names with the same weights.
            seed: For the random weights of stitches and head.

        Raises:
            RecipeError: A network is missing, takes other images, or has changed.
        """
        if repository.input_shape != recipe.input_shape:
            raise RecipeError(
                f"the recipe takes {recipe.input_shape}; the repository was cut for {repository.input_shape}"
            )
        for row in recipe.blocks:
            if row.network not in repository.names:
                raise RecipeError(
                    f"the recipe's network {row.network!r} is not in the repository of {', '.join(repository.names)}"
                )
            check_cut(row, repository[row.network])
            if repository.segment_hashes(row.network, row.first, row.last) != row.segment_hashes:
                raise RecipeError(
                    f"network {row.network!r} has changed: the tensors of its segments {row.first} to {row.last} are "
                    "not those that the recipe was made with"
                )
        blocks = [(row.network, row.first, row.last) for row in recipe.blocks]
        return cls.compose(repository, blocks, recipe.num_classes, seed=seed)

    def save(self, folder: str | Path) -> None:
        """Writes ``model.safetensors``, ``recipe.json`` and a model card into a folder, which appears when complete.

        Args:
            folder: Made anew, or replaced if it holds an assembly.

        Raises:
            RecipeError: A network cannot be rebuilt without its weights, so that the assembly could not be loaded.
            WeightsFileError: The folder holds something else, or cannot be written.
        """
        from pyassemble.assemble.folder import save_folder

        save_folder(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Assembly:
        """Reads a folder that :meth:`save` wrote; the sources' weights are not needed.

        The code of the sources' architectures comes from timm, torchvision or the file that the recipe names, which is
        executed; nothing is unpickled.

        Args:
            folder: The folder, or ``hf-hub:ORG/NAME``, which is downloaded; from there no files of code are executed.

        Returns:
            The assembly, in eval mode, on the CPU; it computes the same bits as the one saved.

        Raises:
            HubError: The Hub cannot be reached, or has no such repository.
            RecipeError: The recipe is damaged, or an architecture is missing or has changed.
            WeightsFileError: The weights are missing, damaged, or of another assembly.
        """
        from pyassemble.assemble.folder import fetch_folder, load_folder

        scheme, _, name = str(folder).partition(":")
        return load_folder(fetch_folder(name) if scheme == SpecKind.HUB else Path(folder))

    def push_to_hub(
        self, repository: str, *, private: bool = False, token: str | None = None, message: str = "Upload assembly"
    ) -> str:
        """Uploads what :meth:`save` writes to a model repository on the Hugging Face Hub.

        Args:
            repository: ``ORG/NAME``; made if it does not exist.
            private: Whether a repository that is made is private.
            token: Access token; the one that ``hf auth login`` kept, if None.
            message: Of the commit.

        Returns:
            Address of the repository.

        Raises:
            HubError: The Hub cannot be reached, or refuses.
            RecipeError: As :meth:`save`.
        """
        from pyassemble.assemble.folder import push_folder

        return push_folder(self, repository, private=private, token=token, message=message)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._own_blocks()  # what is loaded is copied into memory that the repository's networks would share
        super()._load_from_state_dict(*args)

    def _own_blocks(self) -> None:
        """Gives the blocks memory that nothing else uses."""
        if self._owns_blocks:
            return
        for tensor in chain(self.blocks.parameters(), self.blocks.buffers()):
            tensor.data = tensor.data.clone()
        self._owns_blocks = True


@fx.wrap  # one step of a symbolic trace, whose images have no sizes to compare
def check_images(images: torch.Tensor, expected: tuple[int, ...]) -> None:
    """Refuses images of another size than (B, *expected).

    Raises:
        TensorError: They are.
    """
    if images.dim() != 4 or tuple(images.shape[1:]) != expected:
        raise TensorError(f"images have shape {tuple(images.shape)}; (B, {', '.join(map(str, expected))}) is taken")


def _sharing(segment: nn.Module) -> nn.Module:
    """A segment of its own that shares the memory of another's tensors; moving it leaves the other where it is."""
    shared: dict[int, Any] = {id(buffer): buffer.detach() for buffer in segment.buffers()}
    shared.update((id(p), nn.Parameter(p.detach(), requires_grad=False)) for p in segment.parameters())
    return copy.deepcopy(segment, shared)
