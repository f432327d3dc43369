"""Kernels are read from the builder's log and from the inspector's JSON, old and new."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper

from export import verify
from export.builders import registry, tensorrt_layers
from export.builders.spec import Built
from medisseg.errors import UserError

LOG = """Layers:
Name: shape_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:\x20
Name: lay_1, LayerType: kgen, Inputs: [ { Name: images, Dimensions: [-1,3,64,96], Strides: [1,1,1,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [], Outputs: [ { Name: a, Dimensions: [-1,4,64,96], Strides: [1,1,1,1], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: cast/images_low][ONNX Layer: stem/Conv]
Name: stem/Conv_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,64,96], Strides: [1,1,1,1], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [32,4,3,3], Strides: [1,1,1,1], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }, { Name: s, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }], Outputs: [ { Name: b, Dimensions: [-1,32,32,48], Strides: [1,1,1,1], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: stem/Conv]
"""  # noqa: E501


def graph(*names: str) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], [name], name) for name in names]
    return helper.make_model(helper.make_graph(nodes, "g", [], []))


def entry(name: str, reads: str, weights: str, gives: str) -> dict[str, object]:
    return {
        "Name": f"{name} + relu",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": reads}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 8, 8, 8], "Format/Datatype": gives}],
        "Weights": {"Type": weights, "Count": 216},
        "Bias": {"Type": "Float", "Count": 8},
        "Metadata": f"[ONNX Layer: {name}]\x1e[ONNX Layer: relu]",
    }


def test_log_of_the_builder() -> None:
    kernels = tensorrt_layers.from_log(LOG)
    assert [kernel.kind for kernel in kernels] == ["shape_call", "kgen", "correlation"]
    assert kernels[1].reads == ("FP32",) and kernels[1].gives == ("FP16",)
    assert kernels[2].weights == "FP16" and kernels[2].weight_count == 32 * 4 * 9
    # No kind is called "conv", and the name also stands at what only lays out the input.
    assert tensorrt_layers.convolutions(kernels, graph("stem/Conv")) == {"FP16": 1}
    assert tensorrt_layers.by_type(kernels) == {"FP16": 2}
    assert tensorrt_layers.from_json(tensorrt_layers.to_json(kernels)) == kernels
    assert "shape_0" not in tensorrt_layers.table(kernels), "no kernel on the device"


def test_inspector_of_a_real_engine() -> None:
    half = "Channel major FP16 format where channel % 8 == 0"
    text = json.dumps({"Layers": [
        entry("a", half, "Half", half),
        # INT8 that gives 16 bits, as ours do: counted by what it multiplies.
        entry("b", "Thirty-two wide channel vectorized row major Int8 format", "Int8", half),
        entry("c", "Row major linear FP32", "Float", "Row major linear FP32"),
    ]})  # fmt: skip
    kernels = tensorrt_layers.from_inspector(text)
    found = tensorrt_layers.convolutions(kernels, graph("a", "b", "c", "d"))
    assert found == {"FP16": 1, "INT8": 1, "FP32": 1, "unseen": 1}


def audited(precision: str, **convolutions: int) -> float:
    return registry.audit(Built({}, "11.4", convolutions, "engine"), precision, "tensorrt")


def test_audit_takes_nothing_found_for_an_error() -> None:
    assert audited("fp16", FP16=9, FP32=1) == 0.9
    assert audited("int8", INT8=6, FP16=4) == 0.4
    depthwise_left_out = Built({}, "11.4", {"INT8": 3, "FP16": 7}, "engine")
    assert registry.audit(depthwise_left_out, "int8", "tensorrt", quantized=4) == 0.7
    for asked in (8, 0):
        with pytest.raises(UserError, match="int8 was asked for"):
            lost = {"INT8": 3 if asked else 0, "FP16": 7}
            registry.audit(Built({}, "11.4", lost, "engine"), "int8", "tensorrt", asked)
    for found in ({}, {"unseen": 7}):
        with pytest.raises(UserError, match="no convolution was found in the engine"):
            audited("fp16", **found)
    with pytest.raises(UserError, match="fp16 was asked for"):
        audited("fp16", FP16=4, unseen=6)


def test_engine_with_names_alone_is_refused_by_the_audit() -> None:
    kernels = tensorrt_layers.from_inspector(json.dumps({"Layers": ["a + relu", "b"]}))
    counts = tensorrt_layers.convolutions(kernels, graph("a", "b"))
    with pytest.raises(UserError, match="no convolution was found"):
        audited("fp16", **counts)


def test_largest_batch_is_verified() -> None:
    """An engine that mixes the images of a batch, and is right for one."""
    batch = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    alone = lambda images: 4 * images[:, :1]  # noqa: E731
    verify.check_batch(alone, batch, 0.002, "engine")
    with pytest.raises(verify.Diverged, match="image 0 of a batch of 4 answers otherwise"):
        verify.check_batch(lambda images: alone(images[::-1]), batch, 0.002, "engine")
