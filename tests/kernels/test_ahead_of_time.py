"""Triton's compiler and ptxas accept every kernel as it is launched, and make of it what memory bandwidth asks for.

No GPU is needed, and nothing runs on one: this says nothing of results, which the interpreter's tests compare, nor of
speed. The interpreter accepts much that the compiler refuses.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

from tests.kernels.ahead_of_time import ALIGNED, CASES, QUICK, compile_cases, kernels_of_the_package

if TYPE_CHECKING:
    from collections.abc import Callable

H200 = ("cuda", "90", "32")
A100 = ("cuda", "80", "32")
MI300 = ("hip", "gfx942", "64")
OLDER = [
    "gate, contiguous, float32",
    "gate, channels last, bfloat16",
    "score, 12 candidates, float32, captured in a graph",
    "perturb, odd, float32",
]
ELSEWHERE = [*OLDER, "gate, features, bfloat16", "gate, tokens, float16", "perturb, channels last, float32"]

Results = dict[str, dict[str, Any]]


def _why_not() -> str:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    from triton import knobs

    for tool in ("ptxas", "cuobjdump"):
        try:
            assert getattr(knobs.nvidia, tool).path
        except (AssertionError, RuntimeError):
            return f"this Triton comes without {tool}"
    return ""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Results]:
    """Results of cases for a GPU, compiled on first demand: (cases, target) -> results."""
    if why_not := _why_not():
        pytest.skip(why_not)
    known: dict[tuple[str, ...], Results] = {}

    def results(names: list[str], target: tuple[str, str, str]) -> Results:
        key = (*target, *names)
        if key not in known:
            known[key] = compile_cases(names, target, str(tmp_path_factory.mktemp("triton")))
        return known[key]

    return results


def _check(result: dict[str, Any], binary: str) -> None:
    assert result["error"] is None, result["error"]
    assert result["kernels"]
    for kernel in result["kernels"]:
        assert binary in kernel["formats"]


@pytest.mark.parametrize("case", QUICK)
def test_compiles_for_an_h200(case: str, compiled: Callable[..., Results]) -> None:
    result = compiled(QUICK, H200)[case]
    _check(result, "cubin")
    if "float64" not in case:  # its divisions are calls, which need a stack
        for kernel in result["kernels"]:
            assert not kernel["spilled"], f"{kernel['name']} has too few registers"


@pytest.mark.parametrize("case", OLDER)
def test_compiles_for_an_a100(case: str, compiled: Callable[..., Results]) -> None:
    _check(compiled(OLDER, A100)[case], "cubin")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_combination_compiles(case: str, compiled: Callable[..., Results]) -> None:
    _check(compiled(list(CASES), H200)[case], "cubin")


@pytest.mark.slow
@pytest.mark.parametrize("case", ELSEWHERE)
def test_compiles_for_an_mi300(case: str, compiled: Callable[..., Results]) -> None:
    _check(compiled(ELSEWHERE, MI300)[case], "hsaco")


def test_bounds_are_exact_in_float64(compiled: Callable[..., Results]) -> None:
    """Triton would make float32 numbers of them, which the interpreter does not."""
    result = compiled(QUICK, H200)["gate, contiguous, float64, bounds of 0.1 and 0.3"]
    assert result["error"] is None, result["error"]
    for kernel in result["kernels"]:
        numbers = {float(number) for number in kernel["numbers"]}
        assert {0.1, 0.3} <= numbers
        assert not any(0 < abs(number - bound) < 1e-7 for number in numbers for bound in (0.1, 0.3))


def test_no_kernel_is_left_out(compiled: Callable[..., Results]) -> None:
    launched = {kernel["name"] for result in compiled(QUICK, H200).values() for kernel in result["kernels"]}
    assert launched == kernels_of_the_package()


# What moves all there is much of, by kernel, as its source says it.
STREAMS = {
    "_forward_kernel": ("tl.load(x_ptr + place", "tl.store(y_ptr + place"),
    "_backward_kernel": ("tl.load(x_ptr + place", "tl.load(dy_ptr + place", "tl.store(dx_ptr + place"),
    "_triton_squares_kernel": ("tl.load(clean_ptr + i)", "tl.load(perturbed_ptr + i)"),
    "_triton_perturb_kernel": ("tl.load(x_ptr + i", "tl.store(y_ptr + i"),
}
WIDTHS = {
    **{f"gate, {place}, {dtype}": 16 for place in ALIGNED for dtype in ("float32", "bfloat16")},
    "gate, contiguous, float32, ReLU6 first": 16,
    "gate, channels last, bfloat16, ReLU first": 16,
    # Rows of 14 x 14 elements: four divides them, and eight does not.
    "gate, contiguous, 14 x 14, float32": 16,
    "gate, contiguous, 14 x 14, bfloat16": 8,
    "score, 12 candidates, float32": 16,
    "score, 12 candidates, bfloat16": 16,
    "perturb, contiguous, float32": 16,
    "perturb, contiguous, bfloat16": 16,
}


@pytest.mark.parametrize("case", WIDTHS)
def test_a_thread_moves_as_many_bytes_at_once_as_it_can(case: str, compiled: Callable[..., Results]) -> None:
    result = compiled(QUICK, H200)[case]
    assert result["error"] is None, result["error"]
    for kernel in result["kernels"]:
        expected = {WIDTHS[case]}
        if kernel["name"] == "_triton_squares_kernel":  # which also has a branch for samples that are not aligned
            expected.add(4 if "float32" in case else 2)
        for stream in STREAMS.get(kernel["name"], ()):
            widths = {width for statement, width, _ in kernel["accesses"] if statement.startswith(stream)}
            assert widths == expected, (kernel["name"], stream)
