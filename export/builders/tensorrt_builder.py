"""TensorRT and TensorRT for RTX through one builder.

The network is strongly typed: its types are those of the ONNX graph, and TensorRT may not change
them. Only TensorRT 8, and DLA before 11, take builder flags instead, with the float32 layers
pinned. What was built is read kernel by kernel, from the builder's own account or the inspector.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from export.builders import tensorrt_layers
from export.builders.spec import LAYERS, Bars, Built, Spec, gpu_name, local_gpu
from export.builders.tensorrt_config import (
    configure,
    is_rtx,
    is_typed,
    open_timing_cache,
    refuse,
    save_timing_cache,
    version_of,
    weakly_typed,
)
from export.builders.tensorrt_layers import Kernel
from export.builders.tensorrt_watch import monitor
from export.mixed_precision import PreparedGraph
from export.model_info import ModelInfo
from export.older_opset import lowered
from export.runtime import tensorrt_log
from export.runtime.engine import BaseEngine
from export.runtime.tensorrt_log import Log, made, ok
from medisseg.errors import UserError

if TYPE_CHECKING:  # the module at run time is tensorrt or tensorrt_rtx, handed on as ``trt``
    import tensorrt as T


def build_tensorrt(module: str, prepared: PreparedGraph, spec: Spec, progress: Bars) -> Built:
    """Build a plan with the Python module ``tensorrt`` or ``tensorrt_rtx``.

    Args:
        module: Which of the two.
        prepared: The graph in its final precision.
        spec: What to build.
        progress: Returns a rich progress bar, as a context manager.

    Raises:
        UserError: The graph or the GPU is not supported, the build failed (the message is
            TensorRT's own), or what was built is not what was asked for.
        KeyboardInterrupt: Ctrl-C stopped the build at its next step.
    """
    trt = importlib.import_module(module)
    log = tensorrt_log.logger(trt, verbose=True)
    refuse(trt, spec)
    typed = is_typed(trt, spec)
    # On a machine without a GPU TensorRT for RTX still makes a builder; TensorRT does not.
    builder: T.Builder = tensorrt_log.opened(trt.Builder, log)
    if typed:
        kind = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    else:  # TensorRT 8 needs it, 10 ignores it, 11 has none
        kind = trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    network: T.INetworkDefinition = made(builder.create_network(1 << int(kind)), log, "network")
    parser: T.OnnxParser = made(trt.OnnxParser(network, log), log, "parser")
    graph = prepared.model if version_of(trt) >= (10,) or is_rtx(trt) else lowered(prepared.model)
    if not parser.parse(graph.SerializeToString()):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise UserError(f"{module} {trt.__version__} cannot parse the graph: {errors}")
    config: T.IBuilderConfig = made(builder.create_builder_config(), log, "configuration")
    capabilities = configure(trt, builder, config, network, spec, log)
    if not typed:
        weakly_typed(trt, network, config, spec, prepared.fp32_nodes)
    # TensorRT for RTX times no kernels while it builds: its cache operations are empty.
    cache = None if is_rtx(trt) else spec.timing_cache
    if cache:
        open_timing_cache(config, cache, log)
    plan = _run(trt, builder, network, config, progress, log)
    if cache:
        save_timing_cache(config, cache)
    kernels = tensorrt_layers.from_log(log.layers) or _inspected(trt, plan, spec, log)
    wrong = tensorrt_layers.broken_fp32_nodes(kernels, prepared.model, prepared.fp32_nodes)
    ok(not wrong, log, f"{module} computes what had to stay in float32 otherwise: {wrong}")
    return Built(
        {"network.engine": plan, LAYERS: tensorrt_layers.to_json(kernels)},
        trt.__version__,
        tensorrt_layers.convolutions(kernels, prepared.model),
        "engine",
        capabilities,
        open=_opener(module, plan, capabilities, spec),
        gpu_name=None if is_rtx(trt) else gpu_name(),
        kernels=tensorrt_layers.by_type(kernels),
        scratch_mb=log.scratch_mb,
    )


def _inspected(trt: ModuleType, plan: bytes, spec: Spec, log: Log) -> list[Kernel]:
    """Return the kernels of a plan by opening it, which needs its GPU."""
    runtime: T.Runtime = tensorrt_log.opened(trt.Runtime, log)
    if spec.version_compatible:
        runtime.engine_host_code_allowed = True
    if spec.dla >= 0:
        runtime.DLA_core = spec.dla
    engine: T.ICudaEngine = made(runtime.deserialize_cuda_engine(plan), log, "engine of the plan")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return tensorrt_layers.from_inspector(text)


def _run(
    trt: ModuleType,
    builder: T.Builder,
    network: T.INetworkDefinition,
    config: T.IBuilderConfig,
    progress: Bars,
    log: Log,
) -> bytes:
    """Build in a thread, so that Ctrl-C reaches this one and stops the build at its next step."""
    with progress() as bar:
        watch: Any = monitor(trt, bar) if hasattr(trt, "IProgressMonitor") else None  # not in 8
        if watch:
            config.progress_monitor = watch
        result: list[T.IHostMemory | BaseException | None] = []

        def work() -> None:
            try:
                result.append(builder.build_serialized_network(network, config))
            except BaseException as error:  # handed to the waiting thread
                result.append(error)

        thread = threading.Thread(target=work, name="tensorrt-build")
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
        except BaseException:
            if watch:
                watch.cancelled = True
            thread.join()
            raise
    if isinstance(result[0], BaseException):
        raise result[0]
    return bytes(made(result[0], log, "engine"))


def _opener(
    module: str, plan: bytes, capabilities: tuple[str, ...], spec: Spec
) -> Callable[[ModelInfo], BaseEngine] | None:
    """Return a function that opens the plan here; None without a GPU that it was built for."""
    if local_gpu() not in capabilities:
        return None

    def opened(model_info: ModelInfo) -> BaseEngine:
        from export.runtime.tensorrt_engine import TensorRTEngine

        newer = spec.version_compatible
        return TensorRTEngine(
            module, plan, model_info, spec.precision, version_compatible=newer, dla=spec.dla
        )

    return opened
