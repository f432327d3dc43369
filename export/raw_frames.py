"""Preprocessing and threshold inside the graph: uint8 frames in, uint8 masks out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.graph import check, scale_factor
from medisseg.convention import InputConvention


def with_frames(
    model: onnx.ModelProto,
    convention: InputConvention,
    frame_size: tuple[int, int],
    color: str,
    threshold: float,
) -> onnx.ModelProto:
    """Put preprocessing and threshold inside a graph: uint8 frames in, uint8 masks out.

    Args:
        model: A graph from "images" to "logits" [N, K, h, w].
        convention: How the network wants its input.
        frame_size: (height, width) of the frames.
        color: Channel order of the frames, "RGB" or "BGR".
        threshold: Probability above which a pixel is foreground (one class; else the largest wins).

    Returns:
        A graph with input "frames" [N, H, W, 3] and outputs "mask" [N, H, W] and "logits".
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    make = _Maker(model)
    top, left, height, width = convention.content(frame_size)

    image = make("Cast", "frames", to=TensorProto.FLOAT)
    if color != convention.color:
        image = make("Gather", image, make.constant([2, 1, 0], np.int64), axis=3)
    image = make("Transpose", image, perm=[0, 3, 1, 2])
    if (height, width) != tuple(frame_size):
        image = _resize(make, image, frame_size, (height, width))
    std = np.array(convention.std, np.float64)[:, None, None]
    mean = np.array(convention.mean, np.float64)[:, None, None]
    image = make("Mul", image, make.constant(convention.scale / std, np.float32))
    image = make("Add", image, make.constant(-mean / std, np.float32))
    if (height, width) != tuple(convention.size):
        ends = (convention.size[0] - top - height, convention.size[1] - left - width)
        pads = [0, 0, top, left, 0, 0, *ends]
        image = make("Pad", image, make.constant(pads, np.int64))
    before, make.nodes = make.nodes, []

    logits = "logits"
    if (height, width) != tuple(convention.size):
        corners = ([top, left], [top + height, left + width], [2, 3])
        logits = make("Slice", logits, *(make.constant(values, np.int64) for values in corners))
    if (height, width) != tuple(frame_size):
        logits = _resize(make, logits, (height, width), frame_size)
    classes = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    if classes == 1:
        above = make.constant(math.log(threshold / (1 - threshold)), np.float32)
        chosen = make("Greater", logits, above)
        chosen = make("Squeeze", chosen, make.constant([1], np.int64))
    else:
        chosen = make("ArgMax", logits, axis=1, keepdims=0)
    # TensorRT casts to uint8 from floating point only.
    chosen = make("Cast", chosen, to=TensorProto.FLOAT)
    make("Cast", chosen, out="mask", to=TensorProto.UINT8)

    for node in graph.node:
        node.input[:] = [image if name == "images" else name for name in node.input]
    inside = list(graph.node)
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend([*before, *inside, *make.nodes])
    shape: list[str | int | None] = ["batch", *frame_size]
    graph.input.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, [*shape, 3]))
    graph.output.insert(0, helper.make_tensor_value_info("mask", TensorProto.UINT8, shape))
    check(model)
    return model


def _resize(make: _Maker, image: str, old: tuple[int, int], new: tuple[int, int]) -> str:
    """Resize bilinearly with half-pixel centres: the convention's rule."""
    factors = [scale_factor(*pair) for pair in zip(old, new, strict=True)]
    scales = make.constant([1, 1, *factors], np.float32)
    return make("Resize", image, "", scales, mode="linear",
                coordinate_transformation_mode="half_pixel")  # fmt: skip


class _Maker:
    """Appends nodes and constants with fresh names."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0

    def __call__(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        self._count += 1
        out = out or f"frames_{kind.lower()}_{self._count}"
        name = f"frames/{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name, **attributes))
        return out

    def constant(self, values: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        self._count += 1
        name = f"frames_constant_{self._count}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name
