"""Convert a float32 graph to another precision, keeping in float32 the layers that need it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from export import int8, layers, precision
from medisseg.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[np.float32]
# Rounds of "compare layer outputs, keep the first that diverged in float32".
ROUNDS = 8
# The emulated logits may be off by this much, RMS over RMS, before layers are looked at.
CLOSE = 0.02


@dataclass(frozen=True)
class PreparedGraph:
    """A graph in its final precision.

    Attributes:
        model: What is shipped.
        emulation: A float32 graph that rounds as ``model`` does, for any CPU.
        fp32_nodes: Names of the layers kept in float32, and of the convolutions that INT8 left out.
        network: The PyTorch network that the graph is of, for Torch-TensorRT.
        infer: Runs ``emulation`` on preprocessed images; None where nobody opened it yet.
    """

    model: onnx.ModelProto
    emulation: onnx.ModelProto
    fp32_nodes: tuple[str, ...] = ()
    network: nn.Module | None = None
    infer: Callable[[Array], Array] | None = None


def prepare(
    graph: onnx.ModelProto,
    wanted: str,
    batches: Sequence[Array],
    *,
    extremes: Sequence[Array] = (),
    calibration: Sequence[Array] = (),
    rest: str = "fp16",
) -> PreparedGraph:
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
    floating: tuple[str, ...] = ()
    if wanted == "int8":
        if not calibration:
            raise UserError("--precision int8 needs --data DIR: real frames to calibrate on")
        # What stays in float32 beside INT8 is for a CPU, in FP16 for a GPU.
        target = "cpu" if rest == "fp32" else "gpu"
        graph, floating = int8.quantized(graph, calibration, target)
        if rest == "fp32":
            return PreparedGraph(graph, graph, floating)
        wanted = rest
        # A value that rounds to the next of 256 steps looks like a diverged layer: only what
        # cannot be held is kept in float32.
        rounds = 0
    if wanted == "fp32":
        return PreparedGraph(graph, graph)
    prepared = _mixed(graph, wanted, batches, extremes, rounds)
    return dataclasses.replace(prepared, fp32_nodes=(*floating, *prepared.fp32_nodes))


def _mixed(
    graph: onnx.ModelProto,
    wanted: str,
    batches: Sequence[Array],
    extremes: Sequence[Array],
    rounds: int,
) -> PreparedGraph:
    """Find the layers that must stay in float32 by comparing layer outputs.

    First those whose values FP16 cannot hold; then, while the answer is off, the first layer at
    which the rounded graph parts from the exact one.
    """
    fp32_nodes: set[str] = set()
    every = (*batches, *extremes)
    exact: list[Array] = []
    if wanted == "fp16":
        exact, largest = layers.measure(graph, every)
        fp32_nodes.update(precision.out_of_range(largest, graph))
    elif rounds:
        exact = list(map(layers.infer_with(graph), every))
    for left in range(rounds, -1, -1):
        model = precision.typed(graph, wanted, fp32_nodes)
        emulation = precision.emulated(model)
        infer = _remembering(layers.infer_with(emulation))
        if not left:
            break
        errors = [layers.error(*pair) for pair in zip(exact, map(infer, every), strict=True)]
        errors[len(batches) :] = [0.0 if np.isfinite(e) else e for e in errors[len(batches) :]]
        worst = int(np.argmax(errors))
        if errors[worst] < CLOSE:
            break
        diverged = layers.first_divergence(graph, emulation, every[worst], fp32_nodes)
        if diverged is None:
            break
        fp32_nodes.add(diverged[0])
    kept = tuple(node.name for node in graph.graph.node if node.name in fp32_nodes)
    if kept:
        logging.getLogger(__name__).info("kept in float32: %s", ", ".join(kept))
    return PreparedGraph(model, emulation, kept, infer=infer)


def _remembering(infer: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Cache a function's answers by batch: the extreme images are asked for again to verify."""
    known: dict[bytes, Array] = {}

    def answer(batch: Array) -> Array:
        key = hashlib.sha256(batch.tobytes()).digest()
        if key not in known:
            known[key] = infer(batch)
        return known[key]

    return answer
