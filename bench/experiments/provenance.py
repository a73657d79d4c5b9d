"""What a result was measured on: the commit of the code and the name of the device."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


@cache
def commit() -> str:
    # Once a process: it runs the code it has read, whatever is committed meanwhile.
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
