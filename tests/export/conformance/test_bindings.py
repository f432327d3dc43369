"""TensorRT's real bindings have what our code uses, in the versions that machines have."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
from libraries import JETPACK_6, LAST_8, LAST_10, LAST_11, ROOT, python

SOURCES = sorted(
    path
    for path in (ROOT / "export").rglob("*.py")
    if path.stem.startswith("tensorrt") or path.stem == "kernel_cache"
)
# What only some versions have; our code asks for it behind a check of the version or of the name.
OLD = (LAST_8, JETPACK_6, LAST_10)
SINCE_10 = (JETPACK_6, LAST_10, LAST_11, "rtx")
ONLY = {
    "ExecutionContextAllocationStrategy": SINCE_10,
    "IBuilderConfig.progress_monitor": SINCE_10,
    "IExecutionContext.set_device_memory": SINCE_10,
    "IProgressMonitor": SINCE_10,
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": SINCE_10,
    "BuilderFlag.FP16": OLD,
    "BuilderFlag.INT8": OLD,
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": OLD,
    "ILayer.precision": OLD,
    "ICudaEngine.device_memory_size": OLD,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": OLD,
    "BuilderFlag.REQUIRE_USER_ALLOCATION": ("rtx",),
    "ComputeCapability": ("rtx",),
    "IBuilderConfig.num_compute_capabilities": ("rtx",),
    "IBuilderConfig.set_compute_capability": ("rtx",),
    "DynamicShapesKernelSpecializationStrategy": ("rtx",),
    "CudaGraphStrategy": ("rtx",),
    "IRuntimeConfig.create_runtime_cache": ("rtx",),
    "IRuntimeConfig.set_runtime_cache": ("rtx",),
    "IRuntimeConfig.cuda_graph_strategy": ("rtx",),
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": ("rtx",),
    "IRuntimeCache": ("rtx",),
    "ICudaEngine.create_runtime_config": (LAST_10, LAST_11, "rtx"),
    "IRuntimeConfig": (LAST_10, LAST_11, "rtx"),
    "ICudaEngine.create_execution_context_without_device_memory": OLD,
}
# The class of each variable that holds a TensorRT object in our code.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "layer": "ILayer",
    "tensor": "ITensor",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "plan": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "_engine": "ICudaEngine",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "_kernels": "IRuntimeCache",
}
HOLDERS = ("self", "engine")  # objects of ours that hold one of those


def used(source: str) -> set[str]:
    """Return the names "X.Y" of ``trt.X.Y`` and "Class.attribute" that a source uses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        text, owner = ast.unparse(node), ast.unparse(node.value).split(".")
        if text.startswith("trt.") and "(" not in text and "__" not in text:
            found.add(text.removeprefix("trt."))
        elif len(owner) == 1 or (len(owner) == 2 and owner[0] in HOLDERS):
            kind = CLASSES.get(owner[-1])
            if kind and not node.attr.startswith("_"):
                found.add(f"{kind}.{node.attr}")
    ours = {"ICudaEngine.device", "ICudaEngine.close", "ICudaEngine.name", "ICudaEngine.model_info"}
    return found - ours


def everything_used() -> set[str]:
    return set().union(*(used(path.read_text()) for path in SOURCES))


def test_what_is_used_is_found() -> None:
    names = everything_used()
    assert "NetworkDefinitionCreationFlag.STRONGLY_TYPED" in names
    assert {"Builder.build_serialized_network", "IExecutionContext.execute_async_v3"} <= names
    assert {"ICudaEngine.get_tensor_profile_shape", "Runtime.DLA_core"} <= names
    assert len(names) > 50


@pytest.mark.parametrize("version", [LAST_8, JETPACK_6, LAST_10, LAST_11, "rtx"])
def test_every_name_is_in_the_bindings(signatures: Callable[[str], Any], version: str) -> None:
    known = signatures(version)
    names = everything_used()
    absent = {name for name in names if not known.has(name)}
    allowed = {
        name
        for name in names
        for only, versions in ONLY.items()
        if (name == only or name.startswith(f"{only}.")) and version not in versions
    }
    assert absent <= allowed, absent - allowed
    assert not {name for name in allowed if known.has(name)} - absent


@pytest.mark.parametrize("version", [LAST_8, JETPACK_6, LAST_10, LAST_11])
def test_bindings_without_a_driver_raise_type_error(
    places: Callable[..., Any], version: str
) -> None:
    """What ``tensorrt_log.opened`` turns into one line."""
    code = (
        "import tensorrt as trt\n"
        "from export.runtime import tensorrt_log\n"
        "log = tensorrt_log.logger(trt)\n"
        "for kind in (trt.Builder, trt.Runtime):\n"
        "    try: tensorrt_log.opened(kind, log)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    done = python(places(version), "-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("UserError TensorRT finds no NVIDIA" in line for line in lines)


def test_signatures_refuse_what_pybind_refuses(signatures: Callable[[str], Any]) -> None:
    known = signatures(LAST_11)
    known.check("IExecutionContext", "set_tensor_address", ("logits", 4096), {})
    for wrong in [("logits", "4096"), ("logits",), ("logits", 1, 2), (1, 1)]:
        with pytest.raises(TypeError, match="fits none"):
            known.check("IExecutionContext", "set_tensor_address", wrong, {})
    with pytest.raises(AttributeError):
        known.check("IExecutionContext", "enqueue", (), {})
