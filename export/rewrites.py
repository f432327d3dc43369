"""Exact rewrites that make a graph cheaper on every backend; they need a fixed input size."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper


def merge_projections(model: onnx.ModelProto) -> int:
    """Merge a 1 x 1 convolution into the one that alone reads it, where that is less work.

    Both are linear, so the weights multiply. The bias of the first does not reach into the padding
    of the second: what it adds is a constant inside and a map [1, C, H, W] that differs near the
    border. The second projection of a CDFA is such a pair.

    Args:
        model: A float32 graph whose sizes are fixed but for the batch; changed in place.

    Returns:
        How many pairs were merged; the constants that nothing reads any more are left in.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sides = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim][2:]
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    makers = {name: node for node in graph.node for name in node.output}
    gone: list[onnx.NodeProto] = []
    for node in list(graph.node):
        first = makers.get(node.input[0]) if node.op_type == "Conv" else None
        if first is None or first.op_type != "Conv" or readers[first.output[0]] > 1:
            continue
        if not all(name in weights for conv in (first, node) for name in conv.input[1:]):
            continue
        small, large = (numpy_helper.to_array(weights[conv.input[1]]) for conv in (first, node))
        how = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = _is_plain(first) and how.get("group", 1) == 1 and max(how.get("strides", [1])) == 1
        cells, outputs = int(np.prod(large.shape[2:])), len(large)
        before = small.size + large.size
        if not plain or small.shape[2:] != (1, 1) or outputs * small.shape[1] * cells >= before:
            continue
        merged = np.einsum("omyx,mi->oiyx", large, small[:, :, 0, 0])
        bias = numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 else 0
        if len(first.input) > 2:
            constant = numpy_helper.to_array(weights[first.input[2]])
            added = _through(constant, large, sides[first.output[0]], how)
            inside = np.einsum("omyx,m->o", large, constant)
            border, bias = added - inside[:, None, None], bias + inside
            if np.abs(border).max() > 0:
                _add(model, node, border)
        given = {"weight": merged, "bias": bias} if np.ndim(bias) else {"weight": merged}
        for part, values in given.items():
            named = numpy_helper.from_array(values.astype(np.float32), f"{node.name}.{part}")
            graph.initializer.append(named)
        node.input[:] = [first.input[0], *(f"{node.name}.{part}" for part in given)]
        gone.append(first)
    for first in gone:
        graph.node.remove(first)
    return len(gone)


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a 1 x 1 convolution keeps the map's size and mixes all its channels."""
    how = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    moved = max(how.get("strides", [1])) > 1 or any(how.get("pads", [0]))
    return not moved and how.get("group", 1) == 1


def _through(
    constant: np.ndarray, weight: np.ndarray, sides: list[int], how: dict[str, list[int]]
) -> np.ndarray:
    """Return the convolution of a map of ``constant`` [C] as [O, H, W]."""
    import torch
    from torch.nn import functional as F

    top, left, bottom, right = how.get("pads", [0, 0, 0, 0])
    flat = torch.from_numpy(constant.astype(np.float64))[None, :, None, None].expand(-1, -1, *sides)
    padded = F.pad(flat, (left, right, top, bottom))
    kernel = torch.from_numpy(weight.astype(np.float64))
    answer: np.ndarray = F.conv2d(padded, kernel, dilation=how.get("dilations", [1, 1]))[0].numpy()
    return answer


def _add(model: onnx.ModelProto, node: onnx.NodeProto, border: np.ndarray) -> None:
    """Add ``border`` [O, H, W] to what a convolution gives."""
    name, given = f"{node.name}/border", node.output[0]
    model.graph.initializer.append(numpy_helper.from_array(border[None].astype(np.float32), name))
    node.output[0] = f"{node.name}/inside"
    add = helper.make_node("Add", [node.output[0], name], [given], f"{node.name}/Add")
    model.graph.node.insert(list(model.graph.node).index(node) + 1, add)
