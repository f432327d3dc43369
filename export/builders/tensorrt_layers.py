"""The kernels of a built engine: types of inputs and outputs, and the ONNX nodes each computes.

TensorRT fuses: in an engine no layer need be called a convolution (TensorRT for RTX names its kinds
correlation, kgen, runtime_fusion, gemm). But every layer notes the ONNX nodes it came from, so the
graph's own convolutions can be looked up in what was built. A builder's VERBOSE log says it without
a GPU; the inspector of a deserialised engine says it in JSON.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx

from medisseg.schema import Json

TYPES = {
    "float": "FP32",
    "fp32": "FP32",
    "half": "FP16",
    "fp16": "FP16",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "int8": "INT8",
}
_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<reads>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<gives>.*?)\], TacticName: .*?"
    r"Metadata:(?P<onnx>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Kernel:
    """One layer of a built engine.

    Attributes:
        name: TensorRT's name.
        kind: TensorRT's kind of layer.
        reads: Types of its inputs, such as "FP16".
        weights: Type of its largest constant; "" without one.
        weight_count: How many values that has.
        gives: Types of its outputs.
        nodes: Names of the ONNX nodes that it computes.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    weights: str
    weight_count: int
    gives: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def computes(self) -> str:
        """The type of a convolution's operands, such as "INT8" (whose result is wider)."""
        return self.weights or next(iter((*self.reads, *self.gives)), "none")

    @property
    def on_device(self) -> bool:
        """Whether it runs on the GPU; calls for shapes on the host have no tensors."""
        return bool(self.reads or self.gives)


def from_log(text: str) -> list[Kernel]:
    """Return the kernels that the block "Layers:" of a builder's VERBOSE log lists."""
    found = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            reads, constants, gives = (
                _TENSOR.findall(match[part]) if match[part] else []
                for part in ("reads", "constants", "gives")
            )
            found.append(
                Kernel(
                    match["name"],
                    match["kind"],
                    tuple(_type(kind) for _, kind in reads),
                    *_largest([(_count(sides), _type(kind)) for sides, kind in constants]),
                    tuple(_type(kind) for _, kind in gives),
                    tuple(_NODE.findall(match["onnx"])),
                )
            )
    return found


def from_inspector(text: str) -> list[Kernel]:
    """Return the kernels that the engine inspector's JSON lists (TensorRT 8.6 to 11)."""
    found = []
    for entry in json.loads(text)["Layers"]:
        if isinstance(entry, str):  # an engine without DETAILED verbosity: names alone
            found.append(Kernel(entry, "", (), "", 0, (), ()))
            continue
        constants = [entry["Weights"]] if isinstance(entry.get("Weights"), dict) else []
        constants += entry.get("Constants") or []
        found.append(
            Kernel(
                entry["Name"],
                entry.get("LayerType", ""),
                tuple(map(_described, entry.get("Inputs") or [])),
                *_largest(
                    [
                        (_count(c.get("Dimensions", c.get("Count", 0))), _described(c))
                        for c in constants
                    ]
                ),
                tuple(map(_described, entry.get("Outputs") or [])),
                tuple(_NODE.findall(entry.get("Metadata") or "")),
            )
        )
    return found


def _largest(constants: Sequence[tuple[int, str]]) -> tuple[str, int]:
    """Return the type and the size of the largest of a layer's constants."""
    count, kind = max(constants, default=(0, ""))
    return (kind, count) if count else ("", 0)


def _count(sides: int | str | list[int]) -> int:
    """Return how many values a tensor of these sides has: "64,3,3,3", a list or a count."""
    if isinstance(sides, int):
        return sides
    numbers = sides.split(",") if isinstance(sides, str) else sides
    return math.prod(abs(int(side)) for side in numbers if str(side).strip())


def _described(tensor: Json) -> str:
    """Return the type in the inspector's words: "Half", "Channel major FP16 format where C % 8"."""
    keys = ("Datatype", "Format/Datatype", "Type")
    words = next((str(tensor[key]) for key in keys if key in tensor), "")
    known = [TYPES[word.lower()] for word in re.findall(r"\w+", words) if word.lower() in TYPES]
    return known[0] if known else words


def _type(word: str) -> str:
    return TYPES.get(word.lower(), word)


def convolutions(kernels: Sequence[Kernel], graph: onnx.ModelProto) -> dict[str, int]:
    """Count the graph's convolutions by the type in which the engine computes them.

    One that no kernel names counts as "unseen".
    """
    makers = _makers(kernels)
    counts: Counter[str] = Counter()
    for node in graph.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            kernel = makers.get(node.name)
            counts[kernel.computes if kernel else "unseen"] += 1
    return dict(counts)


def broken_fp32_nodes(
    kernels: Sequence[Kernel], graph: onnx.ModelProto, fp32_nodes: Collection[str]
) -> list[str]:
    """Return the convolutions that had to stay in float32 and that the engine computes otherwise.

    TensorRT for RTX 1.7 computes a convolution whose casts stand right beside it in 16 bits, with
    float32 sums: its inputs and outputs are 16 bits wide by the graph itself, so that is no fault.
    One that reads or gives float32 must be computed in float32. Other layers are fused with
    whatever stands beside them, so an engine does not show their type.
    """
    makers = _makers(kernels)
    makes = {name: node for node in graph.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def between_casts(node: onnx.NodeProto) -> bool:
        before, after = makes.get(node.input[0]), readers.get(node.output[0], [])
        return before is not None and all(other.op_type == "Cast" for other in (before, *after))

    return [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv" and node.name in fp32_nodes and not between_casts(node)
        and node.name in makers and makers[node.name].computes != "FP32"
    ]  # fmt: skip


def _makers(kernels: Sequence[Kernel]) -> dict[str, Kernel]:
    """Return the kernel of each ONNX node.

    A convolution's name also stands at what lays out its input and at what adds its bias: the
    kernel with the most weights computes it.
    """
    makers: dict[str, Kernel] = {}
    for kernel in sorted(kernels, key=lambda kernel: kernel.weight_count):
        makers.update(dict.fromkeys(kernel.nodes, kernel))
    return makers


def by_type(kernels: Sequence[Kernel]) -> dict[str, int]:
    """Count the kernels by the type of what they give."""
    return dict(Counter(kernel.gives[0] for kernel in kernels if kernel.gives))


def to_json(kernels: Sequence[Kernel]) -> bytes:
    """Return the kernels as a part of a bundle."""
    return json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=0).encode()


def from_json(content: bytes) -> list[Kernel]:
    """Return the kernels that :func:`to_json` wrote."""
    rows: list[Json] = json.loads(content)
    lists = ("reads", "gives", "nodes")
    return [Kernel(**row | {name: tuple(row[name]) for name in lists}) for row in rows]


def table(kernels: Sequence[Kernel]) -> str:
    """Return a table of the kernels for people."""
    rows = [("", "kind", "reads", "weights", "gives", "ONNX nodes")]
    for number, kernel in enumerate(kernel for kernel in kernels if kernel.on_device):
        reads, gives = (",".join(dict.fromkeys(types)) for types in (kernel.reads, kernel.gives))
        nodes = " ".join(kernel.nodes) or kernel.name
        rows.append((str(number), kernel.kind, reads, kernel.weights, gives, nodes))
    wide = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        " ".join(f"{cell:{width}}" for cell, width in zip(row, wide, strict=False)) + f" {row[5]}"
        for row in rows
    )
