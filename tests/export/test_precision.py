"""Types in the graph: what is rounded, what overflows, what stays in float32."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import int8, layers, precision
from export.builders import registry
from export.builders.cpu_builders import build_openvino
from export.builders.spec import Built, Spec
from export.mixed_precision import PreparedGraph, prepare
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
    prepared = prepare(model, "fp16", [picture()])
    assert set(prepared.fp32_nodes) == {"grow", "shrink"}
    given = layers.infer_with(prepared.emulation)(picture())
    np.testing.assert_allclose(given, layers.infer_with(model)(picture()), atol=5e-3)
    types = {n.output[0]: n for n in prepared.model.graph.node}
    assert precision.convolution_types(prepared.model) == {"FP16": 1}
    assert types["b"].input[0].endswith("_float"), "the island reads a float32 copy"


def test_extremes_decide_on_range_and_never_on_accuracy(
    graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, dim = chain(1e4), picture() * 1e-3
    assert prepare(model, "fp16", [dim]).fp32_nodes == ()
    assert set(prepare(model, "fp16", [dim], extremes=[picture()]).fp32_nodes) == {"grow", "shrink"}
    answers = iter([0.0, 0.9])  # exact on the frame, far off on the extreme
    monkeypatch.setattr(layers, "error", lambda *_: next(answers))
    assert prepare(graph, "fp16", [picture()], extremes=[picture() * 2]).fp32_nodes == ()


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
    prepared = prepare(graph, "fp16", [picture()])
    counts = precision.convolution_types(prepared.model)
    convolutions = sum(node.op_type == "Conv" for node in graph.graph.node)
    assert prepared.fp32_nodes == () and counts == {"FP16": convolutions}
    exact = layers.infer_with(graph)(picture())
    given = layers.infer_with(prepared.emulation)(picture())
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
    model, kept = int8.quantized(graph, [picture() for _ in range(2)])
    counts = precision.convolution_types(model)
    assert counts["INT8"] == len(int8.quantizable(graph)) - len(kept) > 0.4 * sum(counts.values())
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    zeros = [
        constants[n.input[2]] for n in model.graph.node if n.op_type.endswith("quantizeLinear")
    ]
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    prepared = prepare(graph, "int8", [picture()], calibration=[picture()], rest="fp16")
    assert "FP32" not in precision.convolution_types(prepared.model)
    assert np.isfinite(layers.infer_with(prepared.emulation)(picture())).all()


def row(names: str, outlier: str = "") -> onnx.ModelProto:
    """Convolutions 1x1 of eight channels with ReLU between them, one of which reads an outlier.

    The outlier is a channel that is a thousand times as large, with weights a thousandth as large.
    """
    rng = np.random.default_rng(0)
    nodes, constants, last = [], [], "images"
    for name in names:
        weight = np.abs(rng.normal(size=(8, 8 if nodes else 3, 1, 1)))
        weight /= weight.sum(axis=1, keepdims=True)
        if name == outlier:
            scale = np.ones((1, 8, 1, 1), np.float32)
            scale[:, 0] = 1000
            weight[:, 0] /= 1000
            constants.append(numpy_helper.from_array(scale, "scale"))
            nodes.append(helper.make_node("Mul", [last, "scale"], ["scaled"], "grow"))
            last = "scaled"
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}.out"], name))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.act"], f"{name}.relu"))
        last = f"{name}.act"
    nodes[-1].output[0] = "logits"
    return helper.make_model(
        helper.make_graph(
            nodes,
            "row",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8, *SIZE])],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def test_int8_rounds_what_convolutions_read_and_nothing_else(graph: onnx.ModelProto) -> None:
    """Rounding the outputs as well cost a trained network 6 points of Dice."""
    model, _ = int8.quantized(graph, [picture()])
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounded = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert rounded and all(
        node.op_type == "Conv" and name in node.input[:2]
        for name in rounded
        for node in readers[name]
    )


def test_int8_keeps_the_convolution_that_hurts_in_floating_point() -> None:
    model, frames = row("abcdefghijklmnop", "g"), [np.abs(picture()) for _ in range(2)]
    exact = layers.infer_with(model)(frames[0])
    _, largest = layers.measure(model, frames)
    every = int8.with_scales(model, largest, int8.quantizable(model), 127)
    assert layers.error(exact, layers.infer_with(every)(frames[0])) > int8.CLOSE
    given, kept = int8.quantized(model, frames)
    assert kept == ("g",)
    assert precision.convolution_types(given) == {"INT8": 15, "FP32": 1}
    assert layers.error(exact, layers.infer_with(given)(frames[0])) < int8.CLOSE
    assert prepare(model, "int8", frames, calibration=frames, rest="fp16").fp32_nodes == ("g",)


def test_int8_keeps_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "CLOSE", 0.0)
    given, kept = int8.quantized(row("abcdefghijklmnopqrst"), [picture()])
    assert len(kept) == 3 == int(int8.MAY_STAY * 20)
    assert precision.convolution_types(given) == {"INT8": 17, "FP32": 3}


def test_the_worst_are_found_without_asking_about_each() -> None:
    harms = {f"{i}": 1e-3 for i in range(128)} | {"17": 0.5, "90": 0.9}
    asked = []

    def harm(names: Collection[str]) -> float:
        asked.append(names)
        return float(np.sqrt(sum(harms[name] ** 2 for name in names)))

    worst = int8.by_error(list(harms), harm)
    assert [next(worst), next(worst)] == ["90", "17"] and len(asked) < 30
    assert list(int8.by_error(["a"], harm)) == ["a"] and not list(int8.by_error([], harm))


def test_int8_for_a_cpu_leaves_a_bit_and_what_reads_a_concat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two products fit into 16 bits, and OpenVINO need not move Q/DQ in front of a Concat."""
    model = row("abcdefgh")
    at = next(i for i, node in enumerate(model.graph.node) if node.name == "d")
    join = helper.make_node("Concat", ["c.act", "c.act"], ["joined"], "join", axis=1)
    model.graph.node[at].input[0] = "joined"
    model.graph.node.insert(at, join)
    for tensor in model.graph.initializer:
        if tensor.name == "d.weight":
            both = np.concatenate([numpy_helper.to_array(tensor)] * 2, axis=1)
            tensor.CopyFrom(numpy_helper.from_array(both, tensor.name))
    monkeypatch.setattr(int8, "PRODUCTS", 1)
    monkeypatch.setattr(int8, "OUTPUTS", 1)
    every = [node.name for node in model.graph.node if node.op_type == "Conv"]
    for target, largest, floating in (("cpu", 63, {"d"}), ("gpu", 127, set())):
        given, kept = int8.quantized(model, [np.abs(picture())], target)
        constants = {t.name: numpy_helper.to_array(t) for t in given.graph.initializer}
        weights = [v for v in constants.values() if v.dtype == np.int8 and v.ndim == 4]
        assert max(int(np.abs(w.astype(int)).max()) for w in weights) == largest
        assert set(every) - set(int8.quantizable(model, target)) == floating and kept == ()


def convolution(name: str, outputs: int, inputs: int, side: int, groups: int = 1) -> Any:
    weight = np.ones((outputs, inputs // groups, side, side), np.float32)
    node = helper.make_node("Conv", ["x", f"{name}.w"], [f"{name}.y"], name, group=groups)
    return node, numpy_helper.from_array(weight, f"{name}.w")


def test_int8_leaves_depthwise_and_grouped_convolutions_in_floating_point() -> None:
    """TensorRT runs them slower in INT8 than in FP16; a CPU waits for small ones' rounding."""
    made = [
        convolution("depthwise", 64, 64, 3, 64),
        convolution("grouped", 64, 64, 3, 4),
        convolution("small", 64, 16, 1),
        convolution("narrow", 8, 64, 3),
        convolution("dense", 64, 64, 1),
    ]
    nodes, weights = zip(*made, strict=True)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64, 8, 8])
    model = helper.make_model(helper.make_graph(nodes, "g", [value], [value], weights))
    assert int8.quantizable(model, "gpu") == ["small", "narrow", "dense"]
    assert int8.quantizable(model, "cpu") == ["dense"]


def test_int8_scale_of_a_dead_channel_stays_positive_in_fp16(graph: onnx.ModelProto) -> None:
    """TensorRT refuses a scale of 0; trained EfficientNets have channels of 1e-7 and less."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    widest = {t.name: t for t in graph.graph.initializer if len(t.dims) == 4 and t.dims[0] > 4}
    for tensor in widest.values():
        weight = numpy_helper.to_array(tensor).copy()
        weight[0] *= 1e-6 / np.abs(weight[0]).max()
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    prepared = prepare(graph, "int8", [picture()], calibration=[picture()], rest="fp16")
    constants = {t.name: numpy_helper.to_array(t) for t in prepared.model.graph.initializer}
    scales = [
        constants[n.input[1]]
        for n in prepared.model.graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert scales and all((scale > 0).all() for scale in scales)
    exact = layers.infer_with(graph)(picture())
    assert np.abs(layers.infer_with(prepared.emulation)(picture()) - exact).max() < 2


def test_fp32_in_the_place_of_fp16_is_refused() -> None:
    built = Built({}, "1", {"FP32": 8, "FP16": 2}, "parsed network")
    with pytest.raises(UserError, match="fp16 was asked for.*FP32.: 8"):
        registry.audit(built, "fp16", "tensorrt")
    assert registry.audit(built, "fp32", "tensorrt") == pytest.approx(0.2)


def test_openvino_rounds_as_asked(graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    from export.runtime import openvino_engine

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        with pytest.raises(UserError, match="bf16"):
            build_openvino(PreparedGraph(graph, graph), Spec("bf16"))
        return
    monkeypatch.setitem(openvino_engine._HINTS, "bf16", "f32")  # an OpenVINO that does not care
    silent = build_openvino(PreparedGraph(graph, graph), Spec("bf16"))
    with pytest.raises(UserError, match="bf16 was asked for"):
        registry.audit(silent, "bf16", "openvino")
    monkeypatch.undo()
    built = build_openvino(PreparedGraph(graph, graph), Spec("bf16"))
    assert built.convolutions.get("BF16", 0) > 0.9 * sum(built.convolutions.values())
