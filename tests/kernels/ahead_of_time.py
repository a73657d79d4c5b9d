"""Triton's real compiler on the launches of our kernels, for a GPU that need not be there: PTX, then ptxas.

The launching code runs unchanged; only Triton's driver is replaced by one that names the GPU, and a launch ends once
the kernel is compiled. Tensors are on the meta device: they have a type, strides and an address, but no memory.

Run as a program, because Triton chooses between compiler and interpreter when it is imported: it reads the names of
cases and writes what became of each, both JSON.
"""

from __future__ import annotations

import collections
import importlib
import itertools
import json
import linecache
import math
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

import torch

from pyassemble import kernels
from pyassemble.kernels import frobenius, perturbation
from pyassemble.kernels.deferred import Deferred
from pyassemble.kernels.hard_concrete import cuda
from pyassemble.kernels.hard_concrete.reference import Draw
from pyassemble.kernels.layout import layout

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64,
}  # fmt: skip
LAST = torch.channels_last
# Shape, dimension of the channels, memory format. Kernels are compiled anew for sizes that 16 divides, and that are 1.
ALIGNED = {
    "contiguous": ((64, 256, 56, 56), 1, torch.contiguous_format),
    "channels last": ((64, 256, 56, 56), 1, LAST),
    "channels last, 24 channels": ((64, 24, 56, 56), 1, LAST),
    "tokens": ((64, 196, 768), 2, torch.contiguous_format),
    "features": ((4096, 768), 1, torch.contiguous_format),
}
RAGGED = {
    "contiguous, 14 x 14": ((64, 256, 14, 14), 1, torch.contiguous_format),
    "contiguous, 7 x 7": ((63, 511, 7, 7), 1, torch.contiguous_format),
    "channels last, 51 channels": ((63, 51, 7, 7), 1, LAST),
    "features, 51 channels": ((63, 51), 1, torch.contiguous_format),
    "channels in the middle": ((3, 5, 51, 77), 2, torch.contiguous_format),
    "one channel": ((2, 1, 3, 3), 1, torch.contiguous_format),
    "one sample": ((1, 3), 1, torch.contiguous_format),
    "one place": ((8, 64, 1, 1), 1, torch.contiguous_format),
    "one element": ((1, 1, 1), 1, torch.contiguous_format),
    "more places than 32 bits count": ((2, 3, 2**31 + 1), 1, torch.contiguous_format),
}


def _gate(
    shape: tuple[int, ...], dim: int, memory_format: torch.memory_format, dtype: torch.dtype, *,
    loc_dtype: torch.dtype | None = None, seed: int | None = 5, offset: int = 0, shift: int = 0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> None:  # fmt: skip
    """Forward, in place and backward; ``shift`` elements from an aligned address."""
    strides = torch.empty(shape, device="meta", memory_format=memory_format).stride()
    x = torch.empty(torch.Size(shape).numel() + shift, dtype=dtype, device="meta").as_strided(shape, strides, shift)
    loc = torch.empty(shape[dim], dtype=loc_dtype or torch.float32, device="meta")
    memory = torch.empty((), dtype=torch.int64, device="meta") if seed is None else None
    draw = Draw(memory, seed or 0, offset, 2 / 3, -0.1, 1.1, *bounds)
    shape_in_memory = layout(x, dim)
    assert shape_in_memory is not None
    cuda.forward(torch.empty_like(x), x, loc, shape_in_memory, draw)
    cuda.backward(torch.empty_like(x), torch.empty_like(x), x, loc, shape_in_memory, draw)


def _score(shapes: list[tuple[int, ...]], dtype: torch.dtype, *, by_value: bool = False, samples: int = 64) -> None:
    """Candidates whose two outputs are the halves of one batch."""
    both = [torch.empty((2 * samples, *shape), dtype=dtype, device="meta") for shape in shapes]
    clean, perturbed = [b[:samples] for b in both], [b[samples:] for b in both]
    frobenius._triton(clean, perturbed, by_value=by_value)


def _perturb(
    shape: tuple[int, ...], memory_format: torch.memory_format, dtype: torch.dtype, *, seed: int | None = 5
) -> None:
    x = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
    order = perturbation._order(x)
    assert order is not None
    memory = torch.empty((), dtype=torch.int64, device="meta") if seed is None else None
    perturbation._triton(torch.empty_like(x), x, 0.01, memory, seed or 0, *order)


def _cases() -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    for (name, dtype), (place, where) in itertools.product(DTYPES.items(), (ALIGNED | RAGGED).items()):
        cases[f"gate, {place}, {name}"] = lambda w=where, d=dtype: _gate(*w, d)
        cases[f"gate, {place}, {name}, seed in memory"] = lambda w=where, d=dtype: _gate(*w, d, seed=None)
        cases[f"gate, {place}, {name}, loc too"] = lambda w=where, d=dtype: _gate(*w, d, loc_dtype=d)
    for (name, dtype), (place, where) in itertools.product(DTYPES.items(), ALIGNED.items()):
        cases[f"gate, {place}, {name}, no aligned address"] = lambda w=where, d=dtype: _gate(*w, d, shift=1)
        cases[f"gate, {place}, {name}, ReLU first"] = lambda w=where, d=dtype: _gate(*w, d, bounds=(0.0, math.inf))
        cases[f"gate, {place}, {name}, ReLU6 first"] = lambda w=where, d=dtype: _gate(*w, d, bounds=(0.0, 6.0))
        cases[f"gate, {place}, {name}, bounds of 0.1 and 0.3"] = lambda w=where, d=dtype: _gate(
            *w, d, bounds=(0.1, 0.3)
        )
        cases[f"gate, {place}, {name}, numbers of 64 bits"] = (
            lambda w=where, d=dtype: _gate(*w, d, seed=2**63 - 1, offset=2**40)
        )  # fmt: skip
    for name, dtype in DTYPES.items():
        for by_value, what in ((False, ""), (True, ", captured in a graph")):
            for candidates, shapes in {
                "12 candidates": [(64, 56, 56), (128, 28, 28), (196, 384), (1000,)] * 3,
                "a candidate": [(64, 56, 56)],
                "ragged candidates": [(64, 56, 56), (7, 7), (1001,), ()],
            }.items():
                cases[f"score, {candidates}, {name}{what}"] = (
                    lambda s=shapes, d=dtype, b=by_value: _score(s, d, by_value=b)
                )  # fmt: skip
        cases[f"score, one sample, {name}"] = lambda d=dtype: _score([(7,), (9,)], d, samples=1)
        for place, (shape, memory_format) in {
            "contiguous": ((64, 3, 224, 224), torch.contiguous_format),
            "channels last": ((64, 3, 224, 224), LAST),
            "channels last, odd": ((3, 3, 7, 7), LAST),
            "odd": ((3, 7), torch.contiguous_format),
            "one element": ((1,), torch.contiguous_format),
            "more places than 32 bits count": ((2, 3, 2**15, 2**15), LAST),
        }.items():
            for seed, what in ((5, ""), (None, ", seed in memory"), (2**63 - 1, ", seed of 64 bits")):
                cases[f"perturb, {place}, {name}{what}"] = (
                    lambda s=shape, m=memory_format, d=dtype, n=seed: _perturb(s, m, d, seed=n)
                )  # fmt: skip
    return cases


CASES = _cases()
# The part that takes seconds: each type in each layout, and each of the other choices once.
QUICK = [
    *(f"gate, {place}, {name}" for name in ("float32", "bfloat16") for place in ALIGNED),
    "gate, contiguous, float32, ReLU6 first",
    "gate, channels last, bfloat16, ReLU first",
    "gate, contiguous, 14 x 14, float32",
    "gate, contiguous, 14 x 14, bfloat16",
    "gate, contiguous, 7 x 7, float32",
    "gate, channels last, float16",
    "gate, contiguous, float64",
    "gate, features, float64",
    "gate, contiguous, float64, bounds of 0.1 and 0.3",
    "gate, one element, float32",
    "gate, more places than 32 bits count, float32",
    "gate, contiguous, float32, seed in memory",
    "gate, channels last, bfloat16, loc too",
    "gate, contiguous, float32, numbers of 64 bits",
    "gate, contiguous, bfloat16, no aligned address",
    *(f"score, 12 candidates, {name}" for name in DTYPES),
    "score, ragged candidates, float32, captured in a graph",
    "score, one sample, float32",
    *(f"perturb, contiguous, {name}" for name in DTYPES),
    "perturb, channels last, float32",
    "perturb, odd, float32, seed in memory",
]


def kernels_of_the_package() -> set[str]:
    """Names of all Triton functions that are launched, by their names' ending."""
    found = set()
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            of_triton = isinstance(value, Deferred) and value.compiler == "triton"
            if name.endswith("_kernel") and (of_triton or type(value).__module__.startswith("triton.")):
                found.add(name)
    return found


# -- The program that compiles -----------------------------------------------------------------------------------------


class _Driver:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, backend: str, arch: Any, warp: int) -> None:
        self.target = importlib.import_module("triton.backends.compiler").GPUTarget(backend, arch, warp)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _compile_instead_of_launching(compiled: list[tuple[str, Any]]) -> None:
    jit = importlib.import_module("triton.runtime.jit").JITFunction
    launch = jit.run

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel))
        return kernel

    jit.run = run


_PLACE = re.compile(r"\s*\.loc\s+(\d+)\s+(\d+)\s+(\d+)")
_ACCESS = re.compile(r"\b(ld|st)\.global((?:\.\w+)*)")


def _accesses(ptx: str) -> list[tuple[str, int, int]]:
    """What reads or writes the GPU's memory: (our source from the call on, bytes a thread moves at once, how often)."""
    files = dict(re.findall(r'\.file\s+(\d+)\s+"(.*)"', ptx))
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    source, inside = "", False
    for line in ptx.splitlines():
        if "begin inline asm" in line or "end inline asm" in line:
            inside, fresh = "begin" in line, True
        elif (found := _PLACE.match(line)) and (not inside or fresh):  # within, the assembly's own lines are counted
            source, fresh = _call(linecache.getline(files[found[1]], int(found[2])), int(found[3]) - 1), False
        elif found := _ACCESS.search(line):
            parts = found[2].split(".")
            vector = next((int(p[1:]) for p in parts if re.fullmatch(r"v\d", p)), 1)
            counts[source, vector * int(re.sub(r"\D", "", parts[-1])) // 8] += 1
    return [(*key, count) for key, count in counts.items()]


def _call(line: str, column: int) -> str:
    """From the last load or store that begins no later: versions of Triton point at its name or at its arguments."""
    begins = [call.start() for call in re.finditer(r"tl\.(load|store)\(", line) if call.start() <= column]
    return line[begins[-1] if begins else 0 :].strip()


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, bytes that it keeps elsewhere for want of more, bytes of shared memory of a block."""
    tool = importlib.import_module("triton.knobs").nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    number = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", told)}
    return {"registers": number["REG"], "spilled": number["STACK"] + number["LOCAL"], "shared": number["SHARED"]}


def main(backend: str, arch: str, warp: str) -> None:
    """Compile the cases named on standard input."""
    compiled: list[tuple[str, Any]] = []
    driver = _Driver(backend, int(arch) if arch.isdigit() else arch, int(warp))
    importlib.import_module("triton.runtime").driver.set_active(driver)
    _compile_instead_of_launching(compiled)
    results = {}
    seen: dict[str, dict[str, Any]] = {}
    for name in json.load(sys.stdin):
        result: dict[str, Any] = {"error": None, "kernels": []}
        try:
            CASES[name]()
            for kernel, code in compiled:
                if code.hash not in seen:
                    numbers = re.findall(r"dense<(\S+)> : tensor<[0-9x]*f64>", code.asm["ttir"])
                    seen[code.hash] = {"name": kernel, "formats": sorted(code.asm), "numbers": sorted(set(numbers))}
                    if "cubin" in code.asm:
                        seen[code.hash] |= {"accesses": _accesses(code.asm["ptx"]), **_resources(code.asm["cubin"])}
                result["kernels"].append(seen[code.hash])
        except Exception:
            result["error"] = traceback.format_exc()
        compiled.clear()
        results[name] = result
    json.dump(results, sys.stdout)


def compile_cases(names: list[str], target: tuple[str, str, str], cache: str) -> dict[str, dict[str, Any]]:
    """What became of each case, by name: the error or None, and each compiled kernel."""
    environment = {**os.environ, "TRITON_CACHE_DIR": cache}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", __name__ if __name__ != "__main__" else "tests.kernels.ahead_of_time", *target],
        input=json.dumps(names), capture_output=True, text=True, check=False, env=environment, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
