"""The builders by backend, whether each can build here, and the check of what it made."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

from export.builders.cpu_builders import build_onnx, build_openvino
from export.builders.spec import Bars, Built, Spec
from export.mixed_precision import PreparedGraph
from export.runtime import tensorrt_log
from medisseg.errors import UserError


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
    return _unusable(backend, module)


def _unusable(backend: str, module: str) -> str | None:
    """Return why an installed library of the TensorRT family cannot build here."""
    if backend not in ("tensorrt", "torch-tensorrt"):
        return None
    try:
        library = importlib.import_module(module)
        if backend == "tensorrt":  # asked now, not after minutes of export
            tensorrt_log.opened(library.Builder, tensorrt_log.logger(library))
    except (ImportError, OSError) as error:
        return f"--backend {backend}: {module} does not import ({error}); install it again"
    except UserError as error:
        return f"--backend {backend}: {error}"
    return None


def refuse(backend: str, spec: Spec) -> None:
    """Refuse what the installed version of a backend cannot build, before anything is exported.

    Raises:
        UserError: What cannot be built, and what to do instead.
    """
    if backend in ("tensorrt", "tensorrt-rtx"):
        from export.builders import tensorrt_config

        tensorrt_config.refuse(importlib.import_module(backend.replace("-", "_")), spec)


def default_precision(backend: str) -> str:
    """Return the precision that a backend builds when none is asked for.

    "fp16" on GPUs, "bf16" for OpenVINO on a CPU with AMX, else "fp32".
    """
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


def audit(built: Built, precision: str, backend: str, quantized: int | None = None) -> float:
    """Return the share of convolutions in FP16; refuse what is not what was asked for.

    Args:
        built: What the builder made, with its convolutions counted by type.
        precision: What was asked for: "fp32", "fp16", "bf16" or "int8".
        backend: Name of the backend, for errors.
        quantized: For int8, how many convolutions of the graph read INT8; None for all.

    Returns:
        The share in [0, 1].

    Raises:
        UserError: Fewer than half of the convolutions that were to be 16 bits or INT8 are, or no
            convolution was found.
    """
    total = sum(built.convolutions.values())
    if total == built.convolutions.get("unseen", 0):
        raise UserError(
            f"no convolution was found in the {built.inspected} that {backend} built, so its "
            f"precision is not known: nothing was written; update {backend}"
        )
    wanted = {"fp16": "FP16", "bf16": "BF16", "int8": "INT8"}.get(precision)
    asked = total if quantized is None else quantized
    if wanted and built.convolutions.get(wanted, 0) < max(1, asked / 2):
        raise UserError(
            f"{precision} was asked for, but of {total} convolutions in the {built.inspected} "
            f"{built.convolutions} compute in {backend}: nothing was written; update {backend}, "
            "or ask for --precision fp32"
        )
    return built.convolutions.get("FP16", 0) / total


def _tensorrt(module: str) -> Callable[..., Built]:
    def built(prepared: PreparedGraph, spec: Spec, progress: Bars) -> Built:
        from export.builders.tensorrt_builder import build_tensorrt

        return build_tensorrt(module, prepared, spec, progress)

    return built


def _torch_tensorrt(prepared: PreparedGraph, spec: Spec, progress: Bars) -> Built:
    from export.builders.torch_tensorrt_builder import build_torch_tensorrt

    assert prepared.network is not None
    return build_torch_tensorrt(prepared.network, spec)


BUILDERS: dict[str, Callable[..., Built]] = {
    "tensorrt": _tensorrt("tensorrt"),
    "tensorrt-rtx": _tensorrt("tensorrt_rtx"),
    "torch-tensorrt": _torch_tensorrt,
    "openvino": build_openvino,
    "onnx": build_onnx,
}
