"""Every GPU kernel compiles for every GPU we name, without one: vector loads, no spills."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

triton = pytest.importorskip("triton")  # before what imports it

from benchmarks.instructions import Case, cases, compiled, disassembled, tool  # noqa: E402
from kernels.dispersive import VARIANTS  # noqa: E402
from kernels.triton_ops import few_rows, many_rows, spatial_gate, telu, upsample, window_mix  # noqa: E402
from kernels.triton_ops.launch import power_of_two, warps_for  # noqa: E402

try:
    tool("nvdisasm")
except FileNotFoundError as missing:  # Triton's wheels for x86-64 and aarch64 bring it
    pytest.skip(str(missing), allow_module_level=True)

TARGETS = (80, 86, 87, 89, 90, 120)
DTYPES = ("fp16", "bf16", "fp32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_telu_moves_128_bits_and_spills_nothing(target: int, dtype: str) -> None:
    for kernel, loads in ((telu.forward_kernel, 1), (telu.backward_kernel, 2)):
        names = [name for name in kernel.arg_names if name.endswith("_ptr")]
        found = compiled(
            kernel, target, {n: f"*{dtype}" for n in names}, {"BLOCK": telu.BLOCK}, num_warps=4
        )
        ptx = found.asm["ptx"]
        # The branch that is not masked; its twin for the last block comes second.
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= loads, "loads are not 128 bits wide"
        assert len(re.findall(r"st\.global\.v4\.b32", ptx)) >= 1, "stores are not 128 bits wide"
        assert disassembled(found).spills == 0


def mix_kernels(dtype: str, depth: int) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel of window mixing with its types and compile-time sizes."""
    half = ("logits", "values", "out", "gradient", "dlogits")
    types = {name: f"*{dtype}" for name in half} | {"filters": "*fp32", "dfilters": "*fp32"}
    tile = {"BLOCK": window_mix.block_for(depth), "DEPTH": depth}
    for transposed in (False, True):
        yield window_mix.apply_kernel, types, tile | {"TRANSPOSED": transposed}
        wide = transposed and dtype == "fp32"
        fours = {"BLOCK": window_mix.quads_for(depth, wide), "WHOLE": True}
        for filters in ("*fp32", "*fp16") if dtype != "fp32" and not transposed else ("*fp32",):
            about = types | {"filters": filters}, tile | fours | {"TRANSPOSED": transposed}
            yield window_mix.apply_quads_kernel, *about
    yield window_mix.filters_gradient_kernel, types, tile
    for kernel in (window_mix.filters_kernel, window_mix.logits_gradient_kernel):
        yield kernel, types, {"BLOCK": window_mix.PIXELS}


@pytest.mark.parametrize("target", TARGETS)
def test_window_mix_compiles_and_spills_nothing(target: int) -> None:
    for dtype, depth in (("fp16", 16), ("fp32", 32)):
        for kernel, types, sizes in mix_kernels(dtype, depth):
            found = compiled(kernel, target, types, sizes, num_warps=window_mix.WARPS)
            assert disassembled(found).spills == 0, kernel.__name__


def enlarging_and_gating_kernels(
    dtype: str, depth: int
) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """The kernels of the spatial gate and of enlargements into a concatenation."""
    half = dict.fromkeys(("x", "scale", "weight", "bias", "out"), f"*{dtype}")
    types = half | {"pooled": "*fp32", "down": "fp32", "across": "fp32"}
    sizes = spatial_gate.sizes_for(depth)
    for more in (False, True):
        yield spatial_gate.pool_kernel, types, sizes | {"SCALED": more}
        yield spatial_gate.gate_kernel, types, sizes | {"SCALED": more, "BIASED": more}
        yield upsample.upsample_kernel, types, upsample.sizes_for(depth) | {"SAME": more}


@pytest.mark.parametrize("target", TARGETS)
def test_enlarging_and_gating_compile_and_spill_nothing(target: int) -> None:
    for dtype, depth in (("fp16", 128), ("bf16", 32), ("fp32", 1024)):
        for kernel, types, sizes in enlarging_and_gating_kernels(dtype, depth):
            found = compiled(kernel, target, types, sizes, num_warps=4)
            assert disassembled(found).spills == 0, f"{kernel.__name__} {dtype} {sizes}"
            assert found.metadata.shared <= SMALLEST_SHARED, kernel.__name__


def test_sizes_of_one_compile() -> None:
    """A launch makes an integer 1 a compile-time constant, which has no methods of a tensor."""
    for kernel, types, sizes in enlarging_and_gating_kernels("fp16", 1):
        ones = {name: 1 for name in kernel.arg_names if name not in types}
        compiled(kernel, 90, types, ones | sizes, num_warps=4)
    for kernel, types, sizes in mix_kernels("fp16", 1):
        ones = {name: 1 for name in kernel.arg_names if name not in types}
        compiled(kernel, 90, types, ones | sizes, num_warps=4)
    sizes = {"d": 1, "steps": 1, "stride": 1, "splits": 1}
    for kernel, types, meta in few_kernels("fp32", 5):
        ones = {name: size for name, size in sizes.items() if name in kernel.arg_names}
        compiled(kernel, 90, types, ones | meta, num_warps=4)
    for kernel, types, meta in many_kernels():
        ones = {"d": 1} if "d" in kernel.arg_names else {"parts": 1}
        compiled(kernel, 90, types, ones | meta, num_warps=4)


SMALLEST_SHARED = 99 << 10  # bytes of shared memory that the smallest of the targets has
SINGLE = ("grams", "squares", "matrix", "loss", "gradient", "x", "norms", "found", "shift", "out")
FLOATS = ("scale", "tau", "margin", "own", "slope", "log_count", "log_own", "log_epsilon", "unit")
TYPES = {name: "*fp32" for name in SINGLE} | {name: "fp32" for name in (*FLOATS, "factor", "count")}


def few_kernels(dtype: str, n: int) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel of few rows with its types and compile-time sizes, for every variant."""
    types = TYPES | {"h": f"*{dtype}", "out": f"*{dtype}"}
    for special in (False, True):
        sizes = few_rows.sizes_for(n, 4 if dtype == "fp32" else 2, squares=special)
        tile = {name: sizes[name] for name in ("ROWS", "COLUMNS", "FULL", "SQUARES")}
        yield few_rows.gram_kernel, types, tile | {"CENTRE": True}
        yield few_rows.backward_kernel, types, tile | {"OFFSETS": False}
    yield few_rows.gram_kernel, types, tile | {"CENTRE": False, "SQUARES": False}
    yield few_rows.backward_kernel, types, tile | {"OFFSETS": True, "SQUARES": False}
    rows = {"ROWS": sizes["ROWS"]}
    yield few_rows.sum_kernel, types, {**rows, "ENTRIES": few_rows.ENTRIES}
    for variant in VARIANTS:
        yield (
            few_rows.finish_kernel,
            types,
            rows | {"VARIANT": variant, "SPLITS": few_rows.PROGRAMS},
        )


def many_kernels() -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel of many rows."""
    for hinge in (False, True):
        sizes = {"HINGE": hinge, "DEPTH": many_rows.DEPTH}
        yield many_rows.forward_kernel, TYPES, sizes | {"SIDE": many_rows.SIDES[0]}
        owned = {"SIDE": many_rows.SIDES[1], "OWNED": many_rows.OWNED}
        yield many_rows.backward_kernel, TYPES, sizes | owned
        yield many_rows.finish_kernel, TYPES, {"HINGE": hinge, "BLOCK": 1024}


@pytest.mark.parametrize("target", TARGETS)
def test_dispersive_compiles_and_spills_nothing(target: int) -> None:
    few = [(2, *one) for one in few_kernels("bf16", 64)]
    if target == 90:
        few += [(2, *one) for one in few_kernels("bf16", 5)]
    single = [(4, *one) for one in (*few_kernels("fp32", 64), *many_kernels())]
    for size, kernel, types, sizes in (*few, *single):
        warps = warps_for(target, size)
        found = compiled(kernel, target, types, sizes, num_warps=warps, num_stages=few_rows.STAGES)
        assert found.metadata.shared <= SMALLEST_SHARED, kernel.__name__
        assert disassembled(found).spills == 0, f"{kernel.__name__} {sizes}"


def test_blocks_are_powers_of_two() -> None:
    assert [power_of_two(n, 16) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_instructions_an_element(case: Case) -> None:
    """An excess, such as guards for denormals or a matrix loaded at every step, is a failure."""
    found, kinds = case.count(90)
    assert 5 < found <= case.most, kinds
    if case.name == "telu forward fp16":
        assert kinds["MUFU"] == 2
