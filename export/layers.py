"""The layers of an ONNX graph: their outputs, their ranges, and where two graphs diverge."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from export.precision import MOVES

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[np.float32]
# A layer whose relative error reaches this has diverged.
DIVERGED = 0.05


def layer_outputs(model: onnx.ModelProto, batch: Array) -> dict[str, Array]:
    """Return every float32 tensor of a float32 graph for a batch [N, 3, H, W], in graph order."""
    model = onnx.shape_inference.infer_shapes(model)
    values = {value.name: value for value in model.graph.value_info}
    given = {output.name for output in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            value = values.get(name)
            if value is None or name in given:
                continue
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                model.graph.output.append(
                    helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                )
    session = session_of(model)
    names = [output.name for output in session.get_outputs()]
    answers = session.run(names, {session.get_inputs()[0].name: batch})
    found = dict(zip(names, answers, strict=True))
    order = [name for node in model.graph.node for name in node.output if name in found]
    return {name: found[name] for name in order}


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Its int8 kernels would overflow on a CPU without VNNI: the graph is computed as it is written.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # The default order holds every tensor whose extremum is asked for until the end: 4 GB.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def infer_with(model: onnx.ModelProto) -> Callable[[Array], Array]:
    """Return a function from images to logits that runs a float32 graph in ONNX Runtime."""
    session = session_of(model)
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def measured(model: onnx.ModelProto) -> Callable[[Array], tuple[Array, dict[str, float]]]:
    """Return a function from images to logits and the largest magnitude of every float32 tensor.

    The extrema are taken inside the graph: fetching every tensor takes longer than computing it.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    values = (*graph.value_info, *graph.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes, ranged = list(graph.node), []
    logits = graph.output[0].name
    del graph.node[:], graph.output[1:]
    for node in nodes:
        graph.node.append(node)
        for name in floats.intersection(node.output) if node.op_type not in MOVES else ():
            ranged.append(name)
            for kind in ("ReduceMax", "ReduceMin"):
                extremum = f"{name}/{kind}"
                graph.node.append(helper.make_node(kind, [name], [extremum], keepdims=0))
                value = helper.make_tensor_value_info(extremum, TensorProto.FLOAT, [])
                graph.output.append(value)
    session = session_of(model)
    given_name = graph.input[0].name
    wanted = [output.name for output in session.get_outputs()]

    def run(batch: Array) -> tuple[Array, dict[str, float]]:
        answers = dict(zip(wanted, session.run(wanted, {given_name: batch}), strict=True))
        found = {given_name: float(np.abs(batch).max())}
        for n in ranged:
            found[n] = max(-float(answers[f"{n}/ReduceMin"]), float(answers[f"{n}/ReduceMax"]))
        for node in nodes:
            for name in node.output:
                if name in floats and node.op_type in MOVES:
                    found[name] = max(found.get(given, 0.0) for given in node.input)
        return answers[logits], found

    return run


def measure(
    model: onnx.ModelProto, batches: Iterable[Array]
) -> tuple[list[Array], dict[str, float]]:
    """Return the logits of each batch, and the largest magnitude of each tensor over all."""
    run, answers = measured(model), []
    largest: dict[str, float] = {}
    for batch in batches:
        answer, found = run(batch)
        answers.append(answer)
        largest = {name: max(value, largest.get(name, 0.0)) for name, value in found.items()}
    return answers, largest


def error(wanted: Array, given: Array) -> float:
    """Return the RMS error relative to the logits' own spread; infinite when not finite."""
    if not np.isfinite(given).all():
        return float("inf")
    scale = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2))) + 1e-3
    return float(np.sqrt(np.mean((wanted.astype(np.float64) - given) ** 2))) / scale


def first_divergence(
    reference: onnx.ModelProto,
    candidate: onnx.ModelProto,
    batch: Array,
    known: Container[str] = (),
) -> tuple[str, float] | None:
    """Return the first layer whose output has diverged, and its relative error (RMS over RMS).

    Where no layer passes ``DIVERGED`` the layer at which the error grows most is named. Layers in
    ``known`` are passed over.
    """
    wanted, given = layer_outputs(reference, batch), layer_outputs(candidate, batch)
    makers = {name: node.name for node in reference.graph.node for name in node.output}
    worst: tuple[str, float] | None = None
    growth, before = 0.0, 0.0
    for name, value in wanted.items():
        if name not in given or makers[name] in known:
            continue
        scale = float(np.sqrt(np.mean(value.astype(np.float64) ** 2))) + 1e-12
        with np.errstate(invalid="ignore", over="ignore"):
            error = float(np.sqrt(np.mean((given[name].astype(np.float64) - value) ** 2))) / scale
        if not np.isfinite(error) or error > DIVERGED:
            return makers[name], error
        if error - before > growth:
            growth, worst = error - before, (makers[name], error)
        before = error
    return worst
