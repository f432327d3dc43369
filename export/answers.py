"""Answers of an engine, or of the emulation of its precision, and the remedy when they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from export import layers, precision, verify
from export.graph import OPSET_BF16
from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine
from export.samples import ReferenceFrame

if TYPE_CHECKING:
    import onnx

    from export.mixed_precision import PreparedGraph


def resized(frames: Sequence[ReferenceFrame], model_info: ModelInfo) -> list[ReferenceFrame]:
    """Return frames resized to the size that a graph with preprocessing inside takes.

    Images are resized bilinearly, masks to the nearest pixel; where preprocessed images are taken
    (``model_info.frame_size`` is None) the frames come back as they are.
    """
    if model_info.frame_size is None:
        return list(frames)
    import cv2

    height, width = model_info.frame_size
    out = []
    for frame in frames:
        image = np.asarray(cv2.resize(frame.image, (width, height)), np.uint8)
        mask = frame.mask
        if mask is not None:
            small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            mask = np.asarray(small, np.uint8)
        out.append(ReferenceFrame(image, mask, frame.name))
    return out


def engine_answer(engine: BaseEngine) -> verify.Answer:
    """Return a function that runs an engine on one image.

    It takes uint8 RGB [H, W, 3] and returns logits float32 [1, K, h, w] and the mask uint8 [H, W],
    which is None for an engine without preprocessing inside (``verify`` then makes it itself).
    """
    if engine.model_info.frame_size is None:
        return verify.answer_with(engine.infer, engine.convention)

    def answer(image: verify.Image) -> tuple[verify.Array, verify.Image]:
        outputs = engine.frame_outputs(_in_color(image, engine.model_info)[None])
        return outputs["logits"], outputs["mask"][0]

    return answer


def emulated_answer(
    emulation: onnx.ModelProto,
    model_info: ModelInfo,
    infer: Callable[[verify.Array], verify.Array] | None = None,
) -> verify.Answer:
    """Return a function that runs the float32 emulation of a precision on one image.

    Its input and output are those of :func:`engine_answer`.

    Args:
        emulation: The float32 graph that rounds as the precision does.
        model_info: Input convention, classes and frame size of the network.
        infer: A session of that graph that is open already: images float32 [N, 3, H, W] to
            logits float32 [N, K, h, w]; None opens one.
    """
    if infer is not None and model_info.frame_size is None:
        return verify.answer_with(infer, model_info.convention)
    session = layers.session_of(emulation)
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    if model_info.frame_size is None:
        return verify.answer_with(
            lambda batch: session.run(outputs[:1], {name: batch})[0], model_info.convention
        )

    def answer(image: verify.Image) -> tuple[verify.Array, verify.Image]:
        mask, logits = session.run(outputs[:2], {name: _in_color(image, model_info)[None]})
        return logits, mask[0]

    return answer


def _in_color(image: verify.Image, model_info: ModelInfo) -> verify.Image:
    """Return an RGB image uint8 [H, W, 3] in the channel order that the graph takes."""
    return np.ascontiguousarray(image[..., ::-1]) if model_info.frame_color == "BGR" else image


def remedy(
    exact: onnx.ModelProto,
    prepared: PreparedGraph,
    image: verify.Image,
    model_info: ModelInfo,
    wanted: str,
) -> str:
    """Name the first layer at which the final graph diverges from the float32 graph, and a remedy.

    Args:
        exact: The float32 graph from "images" [N, 3, H, W] to "logits" [N, K, h, w].
        prepared: The graph in its final precision, before preprocessing was put inside.
        image: A frame, uint8 RGB [H, W, 3], for which the answers differ.
        model_info: Input convention of the network.
        wanted: The precision asked for: "fp32", "fp16", "bf16" or "int8".

    Returns:
        A text that ends the sentence of an error.
    """
    batch = model_info.convention.preprocess(image)[None]
    emulation = prepared.emulation
    if emulation is exact and wanted in precision.TYPES:  # OpenVINO rounds when it compiles
        emulation = precision.emulated(precision.typed(_for_bfloat16(exact), wanted))
    found = layers.first_divergence(exact, emulation, batch, prepared.fp32_nodes)
    where = f"first to diverge: {found[0]} (error {found[1]:.1%}); " if found else ""
    return (
        where
        + {
            "int8": "calibrate on more frames (--calibration-images), or use --precision fp16",
            "fp16": "use --precision bf16 or fp32",
            "bf16": "use --precision fp32, or fp16 on a GPU, or allow more with --tolerance 0.02",
            "fp32": "the export itself differs: report it with the checkpoint",
        }[wanted]
    )


def _for_bfloat16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in opset 22, which has bfloat16 convolutions; its operators mean the same."""
    copied: onnx.ModelProto = type(graph).FromString(graph.SerializeToString())
    copied.opset_import[0].version = max(copied.opset_import[0].version, OPSET_BF16)
    return copied
