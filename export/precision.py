"""Strongly typed precision: which tensor of a graph is float32 and which is 16 bits wide.

``typed`` writes the types into the ONNX graph, so that TensorRT (10.12 and newer, 11, for RTX)
builds exactly them. ``emulated`` turns that graph into one that any CPU runs and that rounds the
same tensors: 16-bit storage with float32 accumulation, as tensor cores do; ONNX Runtime on x86
runs the typed graph itself in float32 and would hide an overflow. ``mixed_precision.py`` finds
what must stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import drop_unused

Array = npt.NDArray[np.float32]
TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_NUMPY: dict[str, npt.DTypeLike] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
# A sum inside a layer, or the next image, may be larger than what the frames showed.
HEADROOM = 4.0
LARGEST = 65504.0 / HEADROOM
# Inputs that stay float32 by the operator's definition: Resize's region and scales.
_ALWAYS_FLOAT = {"Resize": (1, 2)}
_KEPT = ("Cast", "ConstantOfShape", "Range")
_SCALED = ("QuantizeLinear", "DequantizeLinear")
# Operators that move values, and those that choose among them: nothing new has to be rounded.
MOVES = frozenset(
    (
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    )
)
CHOOSES = frozenset(("Clip", "Max", "MaxPool", "Min", "ReduceMax", "Relu"))


@dataclass
class _Rewrite:
    """A graph being rewritten: names of tensors by type, and what was already cast."""

    model: onnx.ModelProto
    low: int
    floats: set[str]
    weights: dict[str, Array]
    lows: set[str]
    nodes: list[onnx.NodeProto]
    made: set[str]

    def cast(self, name: str, to_low: bool) -> str:
        """Return the name of ``name`` in the other type, casting it on first use."""
        other = f"{name}_{'low' if to_low else 'float'}"
        if other not in self.made:
            self.made.add(other)
            to = self.low if to_low else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [other], f"cast/{other}", to=to))
        return other


def typed(
    model: onnx.ModelProto, precision: str, fp32_nodes: Iterable[str] = ()
) -> onnx.ModelProto:
    """Return the graph with 16-bit tensors; inputs and outputs of the graph stay as they are.

    Args:
        model: A float32 graph.
        precision: "fp16" or "bf16".
        fp32_nodes: Names of nodes that stay in float32.
    """
    kept = set(fp32_nodes)
    work = _begin(model, TYPES[precision])
    weights: dict[str, onnx.TensorProto] = {}
    for node in work.model.graph.node:
        if not _is_float(node, work.floats):
            work.nodes.append(node)
            continue
        low = node.name not in kept and node.op_type not in _KEPT
        fixed = _ALWAYS_FLOAT.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if name not in work.floats:
                continue
            if low and i not in fixed:
                if name in work.weights:
                    node.input[i] = f"{name}_low"
                    rounded = work.weights[name].astype(_NUMPY[precision])
                    if node.op_type in _SCALED and i == 1:
                        # A channel of weights near 1e-7 is dead, but TensorRT refuses a scale of 0.
                        least = ml_dtypes.finfo(_NUMPY[precision]).smallest_subnormal
                        rounded = np.maximum(rounded, least)
                    weights[node.input[i]] = _tensor(rounded, node.input[i], work.low)
                elif name not in work.lows:
                    node.input[i] = work.cast(name, True)
            elif name in work.lows:
                node.input[i] = work.cast(name, False)
        work.nodes.append(node)
        if low:
            work.lows.update(name for name in node.output if name in work.floats)
    _restore_outputs(work)
    graph = work.model.graph
    graph.initializer.extend(weights.values())
    _finish(work)
    return work.model


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds every tensor that ``model`` holds in 16 bits.

    Args:
        model: A graph from :func:`typed`, possibly with Q/DQ or preprocessing in it.
    """
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = model.graph
    known = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    types = {name: kind for name, kind in types.items() if kind in TYPES.values()}
    for tensor in graph.initializer:
        if tensor.data_type in TYPES.values():
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    nodes = []
    for node in graph.node:
        low = [(i, name) for i, name in enumerate(node.output) if name in types]
        if node.op_type in MOVES | CHOOSES:
            low = []  # a strongly typed node: its inputs are rounded as well
        for i, name in low:
            node.output[i] = f"{name}_exact"
        if low and node.op_type == "Cast":
            node.attribute[0].i = TensorProto.FLOAT
        nodes.append(node)
        for _, name in low:
            # ONNX Runtime keeps this pair: it drops only casts that it inserted itself.
            names = f"{name}_exact", f"{name}_rounded", name
            for start, end, to in (
                (names[0], names[1], types[name]),
                (names[1], names[2], TensorProto.FLOAT),
            ):
                nodes.append(helper.make_node("Cast", [start], [end], f"round/{end}", to=to))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


def out_of_range(peaks: Mapping[str, float], model: onnx.ModelProto) -> list[str]:
    """Return the nodes that FP16 cannot hold: a result, or an input, above ``LARGEST``.

    Args:
        peaks: Largest magnitude of each tensor over real frames, see ``layers.measure``.
        model: The float32 graph.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        values = [peaks.get(name, 0.0) for name in (*node.input, *node.output)]
        for name in node.input:
            if name in constants and constants[name].data_type == TensorProto.FLOAT:
                values.append(float(np.abs(numpy_helper.to_array(constants[name])).max(initial=0)))
        if max(values, default=0.0) > LARGEST or not np.isfinite(values).all():
            found.append(node.name)
    return found


def convolution_types(model: onnx.ModelProto) -> dict[str, int]:
    """Count the graph's convolutions by the type they compute in: {"FP16": 228}."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantized = set()
    for node in model.graph.node:
        for name in node.output:
            if node.op_type == "DequantizeLinear":
                quantized.add(name)
            elif node.op_type == "Cast":
                types[name] = node.attribute[0].i
    names = {TensorProto.FLOAT: "FP32", TensorProto.FLOAT16: "FP16", TensorProto.BFLOAT16: "BF16"}
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            weight = node.input[1]
            kind = "INT8" if weight in quantized else names.get(types.get(weight, 0), "other")
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def _begin(model: onnx.ModelProto, low: int) -> _Rewrite:
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = model.graph
    known = (*graph.value_info, *graph.input, *graph.output)
    floats = {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    weights = {}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            weights[tensor.name] = numpy_helper.to_array(tensor)
    return _Rewrite(model, low, floats | set(weights), weights, set(), [], set())


def _is_float(node: onnx.NodeProto, floats: set[str]) -> bool:
    return any(name in floats for name in (*node.input, *node.output))


def _restore_outputs(work: _Rewrite) -> None:
    """Cast 16-bit outputs of the graph back to float32 under their own names."""
    graph = work.model.graph
    wanted = {output.name for output in graph.output} & work.lows
    for node in work.nodes:
        node.output[:] = [f"{name}_low16" if name in wanted else name for name in node.output]
        node.input[:] = [f"{name}_low16" if name in wanted else name for name in node.input]
    for name in sorted(wanted):
        work.nodes.append(
            helper.make_node(
                "Cast", [f"{name}_low16"], [name], f"cast/{name}", to=TensorProto.FLOAT
            )
        )


def _finish(work: _Rewrite) -> None:
    graph = work.model.graph
    del graph.node[:], graph.value_info[:]
    graph.node.extend(work.nodes)
    drop_unused(work.model)
    onnx.checker.check_model(work.model, full_check=True)


def _tensor(values: npt.NDArray[np.generic], name: str, kind: int) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, values.shape, values.tobytes(), raw=True)
