"""A reduced quickstart: its numbers, its picture, its table."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from pyassemble.quickstart import run

if TYPE_CHECKING:
    from pathlib import Path


def test_transfer_is_ahead_before_training(tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    console = Console(file=io.StringIO(), width=120)
    result = run(tmp_path / "made" / "here", seeds=1, epochs=1, source_epochs=8, console=console)
    assert result.random.shape == result.transferred.shape == (1, 2)
    assert result.source_accuracy > 0.9
    assert (result.transferred > result.random).all()
    assert result.picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in result.picture.parent.iterdir()] == ["transfer.png"]  # no temporary name is left
    assert result.assembled.accuracy > 0.5
    assert 0 < result.assembled.trained < result.assembled.parameters / 10
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "before training" in printed
    assert result.assembled.recipe in printed
    assert f"{100 * result.transferred[0, 0]:.1f} %" in printed
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
