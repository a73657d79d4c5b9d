"""The model card of an assembly: what the Hub shows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyassemble.assemble.stitches import Stitch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyassemble.assemble.assembly import Assembly


def model_card(assembly: Assembly) -> str:
    """The card as Markdown with a YAML header: sources, blocks, licenses, sizes, and the last figures known."""
    recipe = assembly.recipe
    licenses = sorted({source.license or "unknown" for source in recipe.sources})
    header = ["library_name: pyassemble", "pipeline_tag: image-classification"]
    # The Hub knows one license for a model; of several, the reader has to see each.
    header += [f"license: {licenses[0]}"] if len(licenses) == 1 and licenses != ["unknown"] else ["license: other"]
    header += ["tags:", "- pyassemble", "- image-classification"]

    blocks = (
        (row.network, f"{row.first} to {row.last}", f"`{row.cut_points[-1]}`", row.input_shape, row.output_shape)
        for row in recipe.blocks
    )
    sources = (
        (source.network, f"`{source.spec}`", source.license or "unknown", _options(source.options))
        for source in recipe.sources
    )
    stitches = sum(isinstance(stitch, Stitch) for stitch in assembly.stitches)
    parts = [
        "---\n" + "\n".join(header) + "\n---",
        "# An assembly of pretrained blocks",
        f"Takes images of shape {recipe.input_shape.size}, gives {recipe.num_classes} classes. "
        f"{len(recipe.blocks)} blocks, {stitches} stitches, {assembly.num_parameters:,} parameters, of which "
        f"{assembly.num_trainable_parameters:,} are trainable; the blocks were "
        f"{'trained too' if assembly.blocks_trained else 'left as they were'}.",
        "## Blocks",
        _table(("network", "segments", "ends with", "takes", "returns"), blocks),
        "## Sources",
        _table(("network", "architecture", "license of its weights", "options"), sources),
        *_figures(assembly),
        "## Use",
        '```python\nimport pyassemble as pa\n\nassembly = pa.Assembly.load("folder")\n```',
        "The sources' weights are not needed. Composed with "
        + ", ".join(f"{name} {version}" for name, version in recipe.libraries)
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _options(options: Iterable[tuple[str, object]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options)


def _figures(assembly: Assembly) -> list[str]:
    """The numbers that training noted last, if any."""
    last = assembly.history[-1] if assembly.history else {}
    rows = [(name, f"{value:.6g}") for name, value in last.items() if isinstance(value, int | float)]
    return ["## Figures of the last epoch", _table(("what", "value"), rows)] if rows else []


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
