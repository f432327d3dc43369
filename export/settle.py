"""Bring a float32 graph to the precision asked for, keeping in float32 what needs it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export import layers, precision
from medisseg.errors import UserError

Array = npt.NDArray[np.float32]
# Rounds of "compare layer outputs, keep the first that diverged in float32".
ROUNDS = 8
# The emulated logits may be off by this much, RMS over RMS, before layers are looked at.
CLOSE = 0.02


@dataclass(frozen=True)
class Settled:
    """A graph in its final precision.

    Attributes:
        model: What is shipped.
        emulation: A float32 graph that rounds as ``model`` does, for any CPU.
        islands: Names of the layers kept in float32.
        network: The PyTorch network that the graph is of, for Torch-TensorRT.
        infer: Runs ``emulation`` on preprocessed images; None where nobody opened it yet.
    """

    model: onnx.ModelProto
    emulation: onnx.ModelProto
    islands: tuple[str, ...] = ()
    network: Any = None
    infer: Callable[[Array], Array] | None = None


def settle(
    graph: onnx.ModelProto,
    wanted: str,
    batches: Sequence[Array],
    *,
    extremes: Sequence[Array] = (),
    calibration: Sequence[Array] = (),
    rest: str = "fp16",
) -> Settled:
    """Return ``graph`` in ``wanted`` precision.

    Args:
        graph: Float32 graph.
        wanted: "fp32", "fp16", "bf16" or "int8".
        batches: Preprocessed real frames [1, 3, H, W]; the layers' outputs on them decide what
            stays in float32.
        extremes: Preprocessed images on which no layer may overflow; how exact the answer is
            does not matter there.
        calibration: Preprocessed images for INT8.
        rest: Precision of what INT8 leaves in floating point.
    """
    rounds = ROUNDS
    if wanted == "int8":
        if not calibration:
            raise UserError("--precision int8 needs --data DIR: real frames to calibrate on")
        graph = quantized(graph, calibration)
        if rest == "fp32":
            return Settled(graph, graph)
        wanted = rest
        # A value that rounds to the next of 256 steps looks like a diverged layer: only what
        # cannot be held is kept in float32.
        rounds = 0
    if wanted == "fp32":
        return Settled(graph, graph)
    return _settled(graph, wanted, batches, extremes, rounds)


def _settled(
    graph: onnx.ModelProto,
    wanted: str,
    batches: Sequence[Array],
    extremes: Sequence[Array],
    rounds: int,
) -> Settled:
    """Find the layers that must stay in float32 by comparing layer outputs.

    First those whose values FP16 cannot hold; then, while the answer is off, the first layer at
    which the rounded graph parts from the exact one.
    """
    islands: set[str] = set()
    every = (*batches, *extremes)
    exact: list[Array] = []
    if wanted == "fp16":
        exact, largest = layers.measure(graph, every)
        islands.update(precision.out_of_range(largest, graph))
    elif rounds:
        exact = list(map(layers.infer_with(graph), every))
    for left in range(rounds, -1, -1):
        model = precision.typed(graph, wanted, islands)
        emulation = precision.emulated(model)
        infer = _remembering(layers.infer_with(emulation))
        if not left:
            break
        errors = [_error(*pair) for pair in zip(exact, map(infer, every), strict=True)]
        errors[len(batches) :] = [0.0 if np.isfinite(e) else e for e in errors[len(batches) :]]
        worst = int(np.argmax(errors))
        if errors[worst] < CLOSE:
            break
        diverged = layers.first_divergence(graph, emulation, every[worst], islands)
        if diverged is None:
            break
        islands.add(diverged[0])
    kept = tuple(node.name for node in graph.graph.node if node.name in islands)
    if kept:
        logging.getLogger(__name__).info("kept in float32: %s", ", ".join(kept))
    return Settled(model, emulation, kept, infer=infer)


def _remembering(infer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Answer a batch that was asked before from memory: verification meets the same extremes."""
    known: dict[bytes, Array] = {}

    def answer(batch: Array) -> Array:
        key = hashlib.sha256(batch.tobytes()).digest()
        if key not in known:
            known[key] = infer(batch)
        return known[key]

    return answer


def _error(wanted: Array, given: Array) -> float:
    """Return the RMS error relative to the logits' own spread; infinite when not finite."""
    if not np.isfinite(given).all():
        return float("inf")
    scale = float(np.sqrt(np.mean(wanted.astype(np.float64) ** 2))) + 1e-3
    return float(np.sqrt(np.mean((wanted.astype(np.float64) - given) ** 2))) / scale


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def quantized(graph: onnx.ModelProto, calibration: Sequence[Array]) -> onnx.ModelProto:
    """Return the graph with Q/DQ around its convolutions, calibrated on real frames.

    Symmetric int8 with a scale per output channel, as TensorRT requires. Convolutions with one
    output channel (gates and the logits) stay in floating point: they are a thousandth of the
    work and the most sensitive.
    """
    from onnxruntime import quantization as q

    class Frames(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
            batch = next(self._left, None)
            return None if batch is None else {graph.graph.input[0].name: batch}

    shapes = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    thin = [
        node.name
        for node in graph.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[1], [0])[0] <= 4
    ]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph, source)
        # It recommends the folding and the shapes that our graphs come with.
        with _without_warnings():
            q.quantize_static(
                str(source),
                str(target),
                Frames(),
                quant_format=q.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=q.QuantType.QInt8,
                weight_type=q.QuantType.QInt8,
                nodes_to_exclude=thin,
                calibrate_method=q.CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,  # TensorRT has no int32 DequantizeLinear
                    "CalibMovingAverage": True,
                },
            )
        return onnx.load(target)
