"""INT8 through Q/DQ: inputs and weights of convolutions are quantised, their outputs are not.

Symmetric int8 and a scale per output channel of the weights, as TensorRT requires; its kernels
accumulate in int32 and give 16 bits, so nothing is gained by rounding the outputs as well. With
outputs rounded a trained ``edge`` had Dice 0.934 between the masks, without 0.994 (8 images).

The few convolutions that add most error stay in floating point. They are found by group testing:
the logits of the graph with half of the convolutions quantised are compared with the float
graph's, and the worse half is halved again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export import layers
from export.graph import drop_unused

Array = npt.NDArray[np.float32]
# RMS error over RMS of the logits at which no more convolutions are kept in floating point.
CLOSE = 0.02
# At most this share of the convolutions may be.
MAY_STAY = 0.15
# Frames on which logits are compared.
COMPARED = 2
# Convolutions with so few output channels (gates and the logits) are a thousandth of the work.
THIN = 4
# A CPU takes longer to round a convolution's input than it saves with fewer products an output.
# edge-kvasir, OpenVINO, one core: 59.0 ms in float32, 45.3 with 146 convolutions in INT8, 44.6 with
# the 85 of at least 64 products and 16 outputs, whose logits are a third closer to the float ones.
PRODUCTS, OUTPUTS = 64, 16
# A CPU without VNNI adds two products in 16 bits, which overflow with weights of 8 bits.
LEVELS = {"cpu": 63, "gpu": 127}


def quantizable(graph: onnx.ModelProto, target: str = "gpu") -> list[str]:
    """Return the names of the convolutions that INT8 is for, in graph order.

    Never depthwise and grouped ones: TensorRT runs them slower than in FP16. On a CPU not those
    that read a Concat: OpenVINO 2026.4 moves the quantisation in front of it and answers otherwise
    (fusion of the fields of ``edge``: logits off by 13 %, by 0.3 % as written).
    """
    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    joined = {
        name
        for node in graph.graph.node
        if node.op_type == "Concat" and target == "cpu"
        for name in node.output
    }
    names = []
    for node in graph.graph.node:
        if node.op_type != "Conv" or _groups(node) > 1 or node.input[0] in joined:
            continue
        outputs, *products = shapes.get(node.input[1], [0])
        enough = outputs >= OUTPUTS and math.prod(products) >= PRODUCTS
        if outputs > THIN and (target == "gpu" or enough):
            names.append(node.name)
    return names


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def quantized(
    graph: onnx.ModelProto, calibration: Sequence[Array], target: str = "gpu"
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the graph with Q/DQ, and the quantizable convolutions that were left without.

    Args:
        graph: Float32 graph.
        calibration: Preprocessed real frames [1, 3, H, W].
        target: "gpu" or "cpu", which takes one bit less of the weights.
    """
    _, largest = layers.measure(graph, calibration)
    compared = calibration[:COMPARED]
    exact = list(map(layers.infer_with(graph), compared))

    def rounded(names: Collection[str]) -> onnx.ModelProto:
        return with_scales(graph, largest, names, LEVELS[target])

    def error(names: Collection[str]) -> float:
        infer = layers.infer_with(rounded(names))
        return max(layers.error(*pair) for pair in zip(exact, map(infer, compared), strict=True))

    names = quantizable(graph, target)
    every = tuple(names)
    worst = by_error(names, error)
    while len(names) - 1 >= (1 - MAY_STAY) * len(every) and error(names) > CLOSE:
        names.remove(next(worst))
    return rounded(names), tuple(name for name in every if name not in names)


def by_error(names: Sequence[str], error: Callable[[Collection[str]], float]) -> Iterator[str]:
    """Yield convolutions, those that add most error first, by bisection of groups.

    A group's error is about the sum of its members', so a group without error is never divided.

    Args:
        names: Names of convolutions.
        error: Relative RMS error of the logits when these convolutions are quantised.
    """
    groups = [(0.0, tuple(names))] if names else []
    while groups:
        _, group = heapq.heappop(groups)
        if len(group) == 1:
            yield group[0]
            continue
        half = len(group) // 2
        for part in (group[:half], group[half:]):
            heapq.heappush(groups, (-error(part), part))


def with_scales(
    graph: onnx.ModelProto, largest: Mapping[str, float], names: Collection[str], levels: int
) -> onnx.ModelProto:
    """Return the graph with Q/DQ before the convolutions ``names``.

    Args:
        graph: Float32 graph.
        largest: Largest magnitude of each tensor, see ``layers.measure``.
        names: Convolutions with constant weights.
        levels: Largest magnitude of a weight, 127 or less.
    """
    model: onnx.ModelProto = onnx.ModelProto.FromString(graph.SerializeToString())
    constants = {t.name: t for t in graph.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()

    def add(kind: str, start: str, name: str, end: str) -> str:
        inputs = [start, f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node(kind, inputs, [end], f"{end}/{kind}"))
        return end

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    for node in model.graph.node:
        for name in node.input[:2] if node.name in names else ():
            if name in made:
                continue
            made.add(name)
            if name in constants:
                weights, scale = _weights(numpy_helper.to_array(constants[name]), levels)
                constant(f"{name}_scale", scale)
                constant(f"{name}_zero", np.zeros(len(scale), np.int8))
                start = constant(f"{name}_int8", weights)
                add("DequantizeLinear", start, name, f"{name}_dequantized")
                nodes[-1].attribute.append(helper.make_attribute("axis", 0))
            else:
                constant(f"{name}_scale", np.asarray(max(largest[name], 1e-6) / 127, np.float32))
                constant(f"{name}_zero", np.asarray(0, np.int8))
                start = add("QuantizeLinear", name, name, f"{name}_int8")
                add("DequantizeLinear", start, name, f"{name}_dequantized")
        if node.name in names:
            node.input[:2] = [f"{name}_dequantized" for name in node.input[:2]]
        nodes.append(node)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    drop_unused(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _weights(exact: Array, levels: int) -> tuple[npt.NDArray[np.int8], Array]:
    """Return weights int8 [O, I, kh, kw] and their scales float32 [O].

    The scale of a dead channel is bounded: ONNX Runtime divides the bias by it, into an int32.
    """
    peaks = np.abs(exact).max(axis=(1, 2, 3))
    scale = np.maximum(peaks, max(1e-4 * float(peaks.max()), 1e-6)) / np.float32(levels)
    steps = np.rint(exact / scale[:, None, None, None])
    return np.clip(steps, -levels, levels).astype(np.int8), scale.astype(np.float32)
