"""From a graph in its final precision to what a backend runs: ONNX Runtime and OpenVINO.

The TensorRT family is in ``tensorrt_family.py``; ``BUILDERS`` lists all.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.precision import convolution_types
from export.runtime.engine import BaseEngine
from export.settle import Settled
from export.traits import Traits
from medisseg.errors import UserError

GPUS = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")


@dataclass(frozen=True)
class Spec:
    """What to build, beyond the graph.

    Attributes:
        precision: "fp16", "bf16", "fp32" or "int8".
        batch: Smallest, best and largest batch.
        input_name: Name and shape without the batch of the graph's input.
        gpus: Compute capabilities such as "sm89"; empty for the GPU of this machine.
        workspace: Limit of TensorRT's scratch memory in MiB; 0 for none.
        timing_cache: File of kernel timings that is read and written.
        hardware_compatible: Build one engine for every GPU from Ampere on (slower).
        version_compatible: Build an engine that newer TensorRT versions open.
        dla: Core of a Jetson's accelerator, -1 for none.
    """

    precision: str
    batch: tuple[int, int, int] = (1, 1, 4)
    input_name: str = "images"
    input_shape: tuple[int, ...] = (3, 256, 256)
    gpus: tuple[str, ...] = ()
    workspace: int = 0
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    dla: int = -1


@dataclass(frozen=True)
class Built:
    """What a builder made.

    Attributes:
        parts: File name to contents, beside the ONNX graph.
        backend_version: Version of the library that built it.
        convolutions: Number of convolutions by the type they compute in, as inspected.
        inspected: What was inspected: "parsed network", "engine", "graph".
        compute_capabilities: GPUs that it runs on; empty for a CPU.
        open: Opens it on this machine for verification; None where it cannot run.
    """

    parts: dict[str, bytes]
    backend_version: str
    convolutions: dict[str, int]
    inspected: str
    compute_capabilities: tuple[str, ...] = ()
    open: Callable[[Traits], BaseEngine] | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def build_onnx(settled: Settled, spec: Spec, progress: Any = None) -> Built:
    """Return the graph itself, for ONNX Runtime."""
    import onnxruntime

    from export.runtime.onnx_engine import OnnxEngine

    content = settled.model.SerializeToString()
    return Built(
        {},
        onnxruntime.__version__,
        convolution_types(settled.model),
        "graph",
        open=lambda traits: OnnxEngine(content, traits, spec.precision),
    )


def build_openvino(settled: Settled, spec: Spec, progress: Any = None) -> Built:
    """Convert the float32 (or Q/DQ) graph to OpenVINO's format and inspect what it compiles to."""
    import openvino

    from export.runtime.openvino_engine import OpenVinoEngine, options
    from medisseg.convention import InputConvention

    options(openvino.Core(), spec.precision, None)  # refuses what this CPU cannot do
    network = openvino.Core().read_model(settled.model.SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(network, path, compress_to_fp16=False)
        parts = {
            name: (Path(folder) / name).read_bytes() for name in ("network.xml", "network.bin")
        }

    def opened(traits: Traits) -> OpenVinoEngine:
        return OpenVinoEngine(parts["network.xml"], parts["network.bin"], traits, spec.precision)

    engine = opened(Traits(InputConvention()))
    counts = engine.convolution_types()
    engine.close()
    version = openvino.__version__.split("-")[0]
    return Built(parts, version, counts, "compiled network", open=opened)


def available(backend: str) -> str | None:
    """Return why ``backend`` cannot build here, or None where it can."""
    module = {
        "tensorrt": "tensorrt",
        "tensorrt-rtx": "tensorrt_rtx",
        "torch-tensorrt": "torch_tensorrt",
        "openvino": "openvino",
        "onnx": "onnxruntime",
    }[backend]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # nothing, or an empty folder as type stubs leave it
        install = {
            "tensorrt": "pip install tensorrt (on a Jetson it comes with JetPack)",
            "torch-tensorrt": "pip install torch-tensorrt, with a CUDA build of PyTorch",
        }
        how = install.get(backend, f"pip install {module.replace('_', '-')}")
        return f"--backend {backend}: the Python module {module} is not installed; {how}"
    return None


def default_precision(backend: str) -> str:
    """Return the precision that a backend builds when none is asked for."""
    if backend == "openvino":
        import openvino

        from export.runtime.openvino_engine import fast_bfloat16

        return "bf16" if fast_bfloat16(openvino.Core()) else "fp32"
    return "fp32" if backend == "onnx" else "fp16"


def graph_precision(backend: str, precision: str) -> tuple[str, str]:
    """Return (precision of the graph, precision of what INT8 leaves) for a backend.

    OpenVINO takes a float32 graph and rounds when it compiles.
    """
    if backend == "openvino":
        return ("int8" if precision == "int8" else "fp32"), "fp32"
    return precision, "fp32" if backend == "onnx" else "fp16"


def audit(built: Built, precision: str, backend: str) -> float:
    """Return the share of convolutions in FP16; refuse what is not what was asked for.

    Raises:
        UserError: 16 bits or INT8 was asked for and most convolutions are float32.
    """
    total = sum(built.convolutions.values())
    share = {kind: count / total for kind, count in built.convolutions.items()} if total else {}
    wanted = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}.get(precision)
    if total and wanted and share.get(wanted, 0.0) < 0.5:
        raise UserError(
            f"{precision} was asked for, but of {total} convolutions in the {built.inspected} "
            f"{built.convolutions} compute in {backend}: nothing was written; update {backend}, "
            "or ask for --precision fp32"
        )
    return share.get("FP16", 0.0)


def _tensorrt(module: str) -> Callable[..., Built]:
    def built(settled: Settled, spec: Spec, progress: Any = None) -> Built:
        from export.tensorrt_family import build_tensorrt

        return build_tensorrt(module, settled, spec, progress)

    return built


def _torch_tensorrt(settled: Settled, spec: Spec, progress: Any = None) -> Built:
    from export.torch_tensorrt_builder import build_torch_tensorrt

    return build_torch_tensorrt(settled.network, spec)


BUILDERS: dict[str, Callable[..., Built]] = {
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt_rtx"),
    "torch-tensorrt": _torch_tensorrt,
    "openvino": build_openvino,
    "onnx": build_onnx,
}
