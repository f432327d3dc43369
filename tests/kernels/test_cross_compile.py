"""Every GPU kernel compiles for every GPU we name, without one: vector loads, no spills."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels.triton_ops import dispersive, telu, window_mix  # noqa: E402
from kernels.triton_ops.launch import power_of_two  # noqa: E402

TARGETS = (86, 87, 89, 90, 120)
DTYPES = ("fp16", "bf16", "fp32")


def compiled(kernel: Any, target: int, dtypes: dict[str, str], sizes: dict[str, Any], **options):
    """Compile as a launch with aligned pointers and round sizes would be."""
    signature, divisible, constants = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name], constants[(index,)] = "constexpr", sizes[name]
        elif name in dtypes:
            signature[name] = dtypes[name]
            if dtypes[name].startswith("*"):
                divisible[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            divisible[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, divisible)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def spilled(found: Any, target: int, folder: Path) -> int:
    """Bytes that the assembler spills, by its own account."""
    path = folder / "kernel.ptx"
    path.write_text(found.asm["ptx"])
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    names = [p for p in sorted(assembler.glob("ptxas*")) if (target < 100) == (p.name == "ptxas")]
    name = (names or sorted(assembler.glob("ptxas*")))[0]
    suffix = re.search(r"\.target (sm_\w+)", found.asm["ptx"]).group(1)
    command = [name, "-v", f"--gpu-name={suffix}", path, "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_telu_moves_128_bits_and_spills_nothing(target: int, dtype: str, tmp_path: Path) -> None:
    for kernel, loads in ((telu.forward_kernel, 1), (telu.backward_kernel, 2)):
        names = [name for name in kernel.arg_names if name.endswith("_ptr")]
        found = compiled(
            kernel, target, {n: f"*{dtype}" for n in names}, {"BLOCK": telu.BLOCK}, num_warps=4
        )
        ptx = found.asm["ptx"]
        # The branch that is not masked; its twin for the last block comes second.
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= loads, "loads are not 128 bits wide"
        assert len(re.findall(r"st\.global\.v4\.b32", ptx)) >= 1, "stores are not 128 bits wide"
        assert spilled(found, target, tmp_path) == 0


def mix_kernels(dtype: str, depth: int) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel of window mixing with its types and compile-time sizes."""
    half = ("logits", "values", "out", "gradient", "dlogits")
    types = {name: f"*{dtype}" for name in half} | {"filters": "*fp32", "dfilters": "*fp32"}
    tile = {"BLOCK": window_mix.block_for(depth), "DEPTH": depth}
    for transposed in (False, True):
        yield window_mix.apply_kernel, types, tile | {"TRANSPOSED": transposed}
    yield window_mix.filters_gradient_kernel, types, tile
    for kernel in (window_mix.filters_kernel, window_mix.logits_gradient_kernel):
        yield kernel, types, {"BLOCK": window_mix.PIXELS}


@pytest.mark.parametrize("target", TARGETS)
def test_window_mix_compiles_and_spills_nothing(target: int, tmp_path: Path) -> None:
    for dtype, depth in (("fp16", 16), ("fp32", 32)):
        for kernel, types, sizes in mix_kernels(dtype, depth):
            found = compiled(kernel, target, types, sizes, num_warps=window_mix.WARPS)
            assert spilled(found, target, tmp_path) == 0, kernel.__name__


def test_sizes_of_one_compile() -> None:
    """A launch makes an integer 1 a compile-time constant, which has no methods of a tensor."""
    for kernel, types, sizes in mix_kernels("fp16", 1):
        ones = {name: 1 for name in kernel.arg_names if name not in types}
        compiled(kernel, 90, types, ones | sizes, num_warps=4)
    single = {"x": "*fp32", "norms": "*fp32", "shift": "*fp32", "out": "*fp32", "h": "*fp32"}
    single |= {name: "*fp32" for name in ("highest", "total", "grams", "squares", "matrix")}
    single |= {"offsets": "*fp32", "factor": "fp32", "margin": "fp32"}
    sizes = {"d": 1, "steps": 1, "stride": 1, "CENTRE": True, "ROWS": 16, "HINGE": False}
    sizes |= {"COLUMNS": dispersive.COLUMNS, "DEPTH": dispersive.DEPTH}
    sizes |= {"OWNED": dispersive.OWNED, "SIDE": dispersive.SIDES[1]}
    for kernel in (
        dispersive.gram_kernel,
        dispersive.few_backward_kernel,
        dispersive.many_forward_kernel,
        dispersive.many_backward_kernel,
    ):
        compiled(kernel, 90, single, sizes, num_warps=4)


@pytest.mark.parametrize("target", TARGETS)
def test_dispersive_compiles_and_spills_nothing(target: int, tmp_path: Path) -> None:
    single = {name: "*fp32" for name in ("grams", "squares", "matrix", "offsets", "x", "norms")}
    single |= {name: "*fp32" for name in ("highest", "total", "shift")}
    single |= {"factor": "fp32", "margin": "fp32"}
    for rows in (16, 64):
        sizes = {"CENTRE": True, "ROWS": rows, "COLUMNS": dispersive.COLUMNS}
        for kernel in (dispersive.gram_kernel, dispersive.few_backward_kernel):
            types = single | {"h": "*bf16", "out": "*bf16"}
            found = compiled(kernel, target, types, sizes, num_warps=4)
            assert spilled(found, target, tmp_path) == 0, f"{kernel.__name__} of {rows} rows"
    for hinge in (False, True):
        sizes = {"HINGE": hinge, "DEPTH": dispersive.DEPTH, "OWNED": dispersive.OWNED}
        many = (dispersive.many_forward_kernel, dispersive.many_backward_kernel)
        for kernel, sizes["SIDE"] in zip(many, dispersive.SIDES, strict=True):
            found = compiled(kernel, target, single | {"out": "*fp32"}, sizes, num_warps=4)
            assert found.metadata.shared <= 99 << 10  # what the smallest of them has
            assert spilled(found, target, tmp_path) == 0, kernel.__name__


def test_blocks_are_powers_of_two() -> None:
    assert [power_of_two(n, 16) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
