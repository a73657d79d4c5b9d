"""Ctrl-C stops a long computation in the C++ core."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import numpy as np
from pyassemble import _native

layers = 6000
scores = np.random.default_rng(0).random((layers, layers))
offsets = np.arange(layers + 1)
sequence = _native.Sequence(np.zeros(layers, np.int32), offsets, offsets[1:], offsets, np.zeros(layers, bool))
print("ready", flush=True)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize(
    "call",
    ["_native.recurrence(scores)", "_native.recurrence_value(scores)", "_native.align(sequence, sequence)"],
)
def test_ctrl_c(call: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(call=call)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing goes on computing after a failed test
    assert output == "interrupted\n", errors
    assert process.returncode == 0
    assert time.monotonic() - sent < 10  # the whole of it takes longer; how much depends on the machine
