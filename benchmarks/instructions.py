"""Instructions that the GPU kernels execute, counted in their machine code: needs no GPU.

    python -m benchmarks.instructions --out FOLDER [--target 90]

Triton compiles for any NVIDIA GPU and brings the assembler and disassembler. Counted is what a warp
issues for each element of its tile on the path without masks: a straight kernel's instructions up
to its exit; of a kernel that walks its input, those of the loop, which is all of it for long rows.
An H100 issues four a cycle and SM, each for 32 elements.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, show, write
from medisseg.errors import command

TOOLS = ("backends", "nvidia", "bin")


@dataclass(frozen=True)
class Instruction:
    """One line of machine code: where it stands, what it does, where it may jump."""

    address: int
    operation: str  # such as LDG.E.128, without its predicate
    conditional: bool
    to: int | None


@dataclass(frozen=True)
class Code:
    """A kernel's machine code."""

    lines: tuple[Instruction, ...]

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """First and last address of every loop, the outermost first."""
        found = {(x.to, x.address) for x in self.lines if x.to is not None and x.to < x.address}
        last = [x for x in found if x[0] != x[1]]
        return sorted(last, key=lambda x: x[0] - x[1])

    @property
    def spills(self) -> int:
        """Instructions that touch local memory."""
        return sum(x.operation.split(".")[0] in ("STL", "LDL") for x in self.lines)

    def within(self, first: int, last: int) -> tuple[Instruction, ...]:
        return tuple(x for x in self.lines if first <= x.address <= last)

    @property
    def straight(self) -> tuple[Instruction, ...]:
        """From the entry to the first exit that is not conditional."""
        for index, line in enumerate(self.lines):
            if line.operation == "EXIT" and not line.conditional:
                return self.lines[: index + 1]
        raise ValueError("the code has no exit")


def operations(lines: Sequence[Instruction]) -> Counter[str]:
    """How often each kind of instruction stands there, such as FMUL or MUFU."""
    return Counter(x.operation.split(".")[0] for x in lines)


def compiled(
    kernel: Any, target: int, types: Mapping[str, str], sizes: Mapping[str, Any], **options: Any
) -> Any:
    """Compile a Triton kernel as a launch with aligned pointers and round sizes would be.

    Args:
        kernel: A ``triton.jit`` function.
        target: Compute capability times ten, such as 90.
        types: Triton's types of its arguments by name; what is named in neither is an int32.
        sizes: Its compile-time constants by name.
        **options: Such as ``num_warps``.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, aligned, constants = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in sizes:
            signature[name], constants[(index,)] = "constexpr", sizes[name]
            continue
        signature[name] = types.get(name, "i32")
        if signature[name].startswith(("*", "i")):
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)


def tool(name: str) -> Path:
    """A program of the CUDA toolkit that Triton brings.

    Raises:
        FileNotFoundError: This Triton has none.
    """
    import triton

    path = Path(triton.__file__).parent.joinpath(*TOOLS, name)
    if not path.is_file():
        raise FileNotFoundError(f"Triton {triton.__version__} brings no {name}: expected {path}")
    return path


def disassembled(found: Any) -> Code:
    """The machine code of what :func:`compiled` returned."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(found.asm["cubin"])
        text = subprocess.run(
            [tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True
        ).stdout
    return parsed(text)


def parsed(text: str) -> Code:
    """Machine code from what nvdisasm prints."""
    labels: dict[str, int] = {}
    waiting: list[str] = []
    raw: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            waiting.append(label[1])
        elif code := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.+?)\s*;", line):
            raw.append((int(code[1], 16), code[2]))
            labels |= dict.fromkeys(waiting, raw[-1][0])
            waiting = []
    return Code(tuple(_instruction(address, words, labels) for address, words in raw))


def _instruction(address: int, words: str, labels: Mapping[str, int]) -> Instruction:
    predicate, _, rest = words.partition(" ") if words.startswith("@") else ("", "", words)
    operation = rest.split()[0]
    jump = re.search(r"`\((\.L_\w+)\)", rest) if operation.startswith("BRA") else None
    conditional = bool(predicate) or bool(re.search(r"\bU?P\d", rest) and jump)
    return Instruction(address, operation, conditional, labels[jump[1]] if jump else None)


@dataclass(frozen=True)
class Case:
    """A kernel, as it is launched for the network's shapes, and the elements its count is of.

    ``elements`` are a program's, of which one loop's ``turns`` handle all (0: there is no loop, or
    its body alone is counted, for the elements of one turn).
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    sizes: Mapping[str, Any]
    elements: int
    most: float  # instructions an element on sm_90 that a test holds it to
    turns: int = 0
    loop: bool = False
    warps: int = 4
    stages: int = 3

    def count(self, target: int) -> tuple[float, Counter[str]]:
        """Instructions an element, and of which kinds."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        code = disassembled(compiled(self.kernel, target, self.types, self.sizes, **options))
        if self.loop:
            lines = operations(code.within(*code.loops[0]))
        else:
            lines = operations(code.straight)
            for inner in code.loops if self.turns else ():
                for name, times in operations(code.within(*inner)).items():
                    lines[name] += times * (self.turns - 1)
        threads = 32 * self.warps
        each = Counter({name: n * threads / self.elements for name, n in lines.items()})
        return sum(each.values()), each


def cases() -> list[Case]:
    """The kernels whose instructions are held to a limit."""
    from kernels.triton_ops import few_rows, telu, window_mix

    found = []
    for dtype, forward, backward in (("fp16", 12, 27), ("bf16", 12, 27), ("fp32", 24, 29)):
        types = {name: f"*{dtype}" for name in ("x_ptr", "y_ptr", "g_ptr", "dx_ptr")}
        sizes = {"BLOCK": telu.BLOCK}
        about = types, sizes, telu.BLOCK
        found += [
            Case(f"telu forward {dtype}", telu.forward_kernel, *about, forward),
            Case(f"telu backward {dtype}", telu.backward_kernel, *about, backward),
        ]
    for dtype, forward, backward in (("fp16", 15, 15), ("bf16", 15, 15), ("fp32", 15, 17)):
        sizes = few_rows.sizes_for(64, 4 if dtype == "fp32" else 2, squares=False)
        types = dict.fromkeys(("grams", "squares", "matrix", "gradient"), "*fp32")
        types |= {"h": f"*{dtype}", "out": f"*{dtype}", "unit": "fp32"}
        tile = {name: sizes[name] for name in ("ROWS", "COLUMNS", "FULL", "SQUARES")}
        size = sizes["ROWS"] * sizes["COLUMNS"]
        gram, back = tile | {"CENTRE": True}, tile | {"OFFSETS": False}
        found += [
            Case(f"few rows forward {dtype}", few_rows.gram_kernel, types, gram, size, forward,
                 loop=True),
            Case(f"few rows backward {dtype}", few_rows.backward_kernel, types, back, size,
                 backward, loop=True),
        ]  # fmt: skip
    fours, depth = window_mix.quads_for(32, False), 32
    sizes = {"TRANSPOSED": False, "WHOLE": True, "BLOCK": fours, "DEPTH": depth}
    for dtype in ("fp16", "bf16", "fp32"):
        types = {"values": f"*{dtype}", "out": f"*{dtype}"}
        types["filters"] = "*fp32" if dtype == "fp32" else "*fp16"
        about = f"window mix apply {dtype}", window_mix.apply_quads_kernel, types, sizes
        found.append(Case(*about, 4 * fours * depth, 85, turns=5))
    return found + inference_cases()


def inference_cases() -> list[Case]:
    """The kernels that only inference has, at the network's width of 128 channels."""
    from kernels.triton_ops import spatial_gate, upsample

    found = []
    enlarging = upsample.sizes_for(128) | {"SAME": False}
    pooling = spatial_gate.sizes_for(128) | {"SCALED": True}
    gating = pooling | {"BIASED": True}
    for dtype, most in (("fp16", (29, 17, 29)), ("bf16", (30, 17, 29)), ("fp32", (31, 18, 29))):
        types = dict.fromkeys(("x", "scale", "weight", "bias", "out"), f"*{dtype}")
        types |= {"pooled": "*fp32", "down": "fp32", "across": "fp32"}
        for name, kernel, sizes, size, limit in (
            ("upsample", upsample.upsample_kernel, enlarging, upsample.TILE, most[0]),
            ("spatial gate pool", spatial_gate.pool_kernel, pooling, spatial_gate.TILE, most[1]),
            ("spatial gate apply", spatial_gate.gate_kernel, gating, spatial_gate.TILE, most[2]),
        ):
            found.append(Case(f"{name} {dtype}", kernel, types, sizes, size, limit))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print and write."""
    options = parser("instructions", __doc__)
    options.add_argument("--target", type=int, action="append", help="default: 80, 90 and 120")
    args = options.parse_args(argv)
    rows = []
    for target in args.target or [90] if args.quick else args.target or (80, 90, 120):
        for case in cases():
            found, kinds = case.count(target)
            common = ", ".join(f"{name} {n:.1f}" for name, n in kinds.most_common(6))
            about = {"kernel": case.name, "target": f"sm_{target}"}
            rows.append(about | {"instructions": round(found, 1), "of which": common})
    write(args.out, "instructions", machine(), rows)
    show("Instructions an element", rows)
    return 0


if __name__ == "__main__":
    command(main)
