"""The graph as ONNX Runtime and OpenVINO run it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from export.builders.spec import Bars, Built, Spec
from export.mixed_precision import PreparedGraph
from export.model_info import ModelInfo
from export.precision import convolution_types


def build_onnx(prepared: PreparedGraph, spec: Spec, progress: Bars | None = None) -> Built:
    """Return the graph as ONNX Runtime runs it: nothing is compiled ahead.

    Args:
        prepared: The graph in its final precision.
        spec: The precision, for the engine's name.
        progress: Not used: it takes no time.
    """
    import onnxruntime

    from export.runtime.onnx_engine import OnnxEngine

    content = prepared.model.SerializeToString()
    return Built(
        {},
        onnxruntime.__version__,
        convolution_types(prepared.model),
        "graph",
        open=lambda model_info: OnnxEngine(content, model_info, spec.precision),
    )


def build_openvino(prepared: PreparedGraph, spec: Spec, progress: Bars | None = None) -> Built:
    """Convert the float32 (or Q/DQ) graph to OpenVINO's format and inspect what it compiles to.

    Args:
        prepared: The graph: OpenVINO itself rounds to fp16 or bf16 when it compiles.
        spec: The precision to compile in.
        progress: Not used: OpenVINO reports none.

    Raises:
        UserError: This CPU does not compute in the precision asked for.
    """
    import openvino

    from export.runtime.openvino_engine import OpenVinoEngine, options
    from medisseg.convention import InputConvention

    options(openvino.Core(), spec.precision, None)  # refuses what this CPU cannot do
    network = openvino.Core().read_model(prepared.model.SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        parts = {
            name: (Path(folder) / name).read_bytes() for name in ("network.xml", "network.bin")
        }

    def opened(model_info: ModelInfo) -> OpenVinoEngine:
        return OpenVinoEngine(
            parts["network.xml"], parts["network.bin"], model_info, spec.precision
        )

    engine = opened(ModelInfo(InputConvention()))
    counts = engine.convolution_types()
    engine.close()
    version = openvino.__version__.split("-")[0]
    return Built(parts, version, counts, "compiled network", open=opened)
