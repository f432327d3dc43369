"""Types in the graph: what is rounded, what overflows, what stays in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import builders, layers, precision
from export.settle import Settled, quantized, settle
from medisseg.errors import UserError

SIZE = (64, 96)


def chain(gain: float) -> onnx.ModelProto:
    """images -> 1x1 convolution -> times gain -> divided by gain -> logits."""
    weight = np.random.default_rng(0).normal(size=(1, 3, 1, 1)).astype(np.float32)
    constants = {"weight": weight, "gain": np.float32(gain), "inverse": np.float32(1 / gain)}
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["a"], "first"),
        helper.make_node("Mul", ["a", "gain"], ["b"], "grow"),
        helper.make_node("Mul", ["b", "inverse"], ["logits"], "shrink"),
    ]
    shape = ["batch", 3, *SIZE]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, *SIZE])],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    return model


def picture() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 3, *SIZE)).astype(np.float32)


@pytest.mark.parametrize(("name", "kind"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_emulation_rounds_every_tensor(name: str, kind: type) -> None:
    batch, model = picture(), chain(8.0)
    weight = numpy_helper.to_array(model.graph.initializer[0])
    low = (batch.astype(kind).astype(np.float32) * weight.astype(kind).astype(np.float32)[0]).sum(
        1, keepdims=True
    )
    for factor in (8.0, 1 / 8.0):
        low = low.astype(kind).astype(np.float32) * np.float32(factor)
    given = layers.infer_with(precision.emulated(precision.typed(model, name)))(batch)
    exact = layers.infer_with(model)(batch)
    assert 0 < np.abs(low - exact).max() < 0.05
    np.testing.assert_allclose(given, low.astype(kind).astype(np.float32), rtol=0, atol=1e-2)
    assert np.mean(given == low.astype(kind).astype(np.float32)) > 0.98


def test_overflow_shows_in_the_emulation_and_not_in_onnx_runtime() -> None:
    typed = precision.typed(chain(1e5), "fp16")
    assert not np.isfinite(layers.infer_with(precision.emulated(typed))(picture())).all()


def test_what_overflows_becomes_an_island() -> None:
    model = chain(1e5)
    settled = settle(model, "fp16", [picture()])
    assert set(settled.islands) == {"grow", "shrink"}
    given = layers.infer_with(settled.emulation)(picture())
    np.testing.assert_allclose(given, layers.infer_with(model)(picture()), atol=5e-3)
    types = {n.output[0]: n for n in settled.model.graph.node}
    assert precision.convolution_types(settled.model) == {"FP16": 1}
    assert types["b"].input[0].endswith("_float"), "the island reads a float32 copy"


def test_extremes_decide_on_range_and_never_on_accuracy(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import settle as module

    model, dim = chain(1e4), picture() * 1e-3
    assert settle(model, "fp16", [dim]).islands == ()
    assert set(settle(model, "fp16", [dim], extremes=[picture()]).islands) == {"grow", "shrink"}
    answers = iter([0.0, 0.9])  # exact on the frame, far off on the extreme
    monkeypatch.setattr(module, "_error", lambda *_: next(answers))
    assert settle(graph, "fp16", [picture()], extremes=[picture() * 2]).islands == ()


def test_magnitudes_measured_inside_the_graph_are_those_of_its_tensors(
    graph: onnx.ModelProto,
) -> None:
    answers, largest = layers.measure(graph, [picture(), 3 * picture()])
    np.testing.assert_allclose(answers[1], layers.infer_with(graph)(3 * picture()), atol=1e-4)
    outputs = [layers.layer_outputs(graph, scale * picture()) for scale in (1, 3)]
    for name in outputs[0]:
        wanted = max(float(np.abs(found[name]).max()) for found in outputs)
        maker = next(node for node in graph.graph.node if name in node.output)
        if maker.op_type in precision.MOVES:  # a part of what it moves: bounded, not measured
            assert largest[name] >= wanted * (1 - 1e-4), name
        else:
            assert largest[name] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


def test_network_needs_no_island_and_every_convolution_is_typed(graph: onnx.ModelProto) -> None:
    settled = settle(graph, "fp16", [picture()])
    counts = precision.convolution_types(settled.model)
    convolutions = sum(node.op_type == "Conv" for node in graph.graph.node)
    assert settled.islands == () and counts == {"FP16": convolutions}
    exact = layers.infer_with(graph)(picture())
    given = layers.infer_with(settled.emulation)(picture())
    assert 0 < np.abs(given - exact).max() < 0.05


def test_first_divergence_names_the_layer(graph: onnx.ModelProto) -> None:
    broken = onnx.ModelProto.FromString(graph.SerializeToString())
    convolutions = [node for node in broken.graph.node if node.op_type == "Conv"]
    target = convolutions[len(convolutions) // 2]
    for tensor in broken.graph.initializer:
        if tensor.name == target.input[1]:
            worse = numpy_helper.to_array(tensor) * 1.5
            tensor.CopyFrom(numpy_helper.from_array(worse.astype(np.float32), tensor.name))
    found = layers.first_divergence(graph, broken, picture())
    assert found is not None and found[0] == target.name and found[1] > 0.05


def test_int8_quantises_convolutions_symmetrically(graph: onnx.ModelProto) -> None:
    model = quantized(graph, [picture() for _ in range(2)])
    counts = precision.convolution_types(model)
    assert counts["INT8"] > 0.7 * sum(counts.values())
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    zeros = [
        constants[n.input[2]] for n in model.graph.node if n.op_type.endswith("quantizeLinear")
    ]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    settled = settle(graph, "int8", [picture()], calibration=[picture()], rest="fp16")
    assert "FP32" not in precision.convolution_types(settled.model)
    assert np.isfinite(layers.infer_with(settled.emulation)(picture())).all()


def test_int8_scale_of_a_dead_channel_stays_positive_in_fp16(graph: onnx.ModelProto) -> None:
    """TensorRT refuses a scale of 0; trained EfficientNets have channels of 1e-7 and less."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    widest = {t.name: t for t in graph.graph.initializer if len(t.dims) == 4 and t.dims[0] > 4}
    for tensor in widest.values():
        weight = numpy_helper.to_array(tensor).copy()
        weight[0] *= 1e-6 / np.abs(weight[0]).max()
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    settled = settle(graph, "int8", [picture()], calibration=[picture()], rest="fp16")
    constants = {t.name: numpy_helper.to_array(t) for t in settled.model.graph.initializer}
    scales = [
        constants[n.input[1]]
        for n in settled.model.graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert scales and all((scale > 0).all() for scale in scales)
    exact = layers.infer_with(graph)(picture())
    assert np.abs(layers.infer_with(settled.emulation)(picture()) - exact).max() < 2


def test_fp32_in_the_place_of_fp16_is_refused() -> None:
    built = builders.Built({}, "1", {"FP32": 8, "FP16": 2}, "parsed network")
    with pytest.raises(UserError, match="fp16 was asked for.*FP32.: 8"):
        builders.audit(built, "fp16", "tensorrt")
    assert builders.audit(built, "fp32", "tensorrt") == pytest.approx(0.2)


def test_openvino_rounds_as_asked(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    from export.runtime import openvino_engine

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        with pytest.raises(UserError, match="bf16"):
            builders.build_openvino(Settled(graph, graph), builders.Spec("bf16"))
        return
    monkeypatch.setitem(openvino_engine._HINTS, "bf16", "f32")  # an OpenVINO that does not care
    silent = builders.build_openvino(Settled(graph, graph), builders.Spec("bf16"))
    with pytest.raises(UserError, match="bf16 was asked for"):
        builders.audit(silent, "bf16", "openvino")
    monkeypatch.undo()
    built = builders.build_openvino(Settled(graph, graph), builders.Spec("bf16"))
    assert built.convolutions.get("BF16", 0) > 0.9 * sum(built.convolutions.values())
