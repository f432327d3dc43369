"""TensorRT and TensorRT for RTX through one builder.

The network is strongly typed: its types are those of the ONNX graph, and TensorRT may not change
them. Only TensorRT before 10.12 (JetPack 6 has 10.3) takes the FP16 builder flag instead, with the
float32 layers pinned. What was parsed is counted before it is built, without a GPU.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.builders.spec import Built, Spec, local_gpu
from export.builders.tensorrt_watch import logger, monitor
from export.settle import Settled
from medisseg.errors import UserError
from medisseg.files import replacing

if TYPE_CHECKING:  # the module at run time is tensorrt or tensorrt_rtx, handed on as ``trt``
    import tensorrt as T

STRONGLY_TYPED_FROM = (10, 12)


def build_tensorrt(module: str, settled: Settled, spec: Spec, progress: Any) -> Built:
    """Build a plan with the Python module ``tensorrt`` or ``tensorrt_rtx``.

    Args:
        module: Which of the two.
        settled: The graph in its final precision.
        spec: What to build.
        progress: Returns a rich progress bar, as a context manager.

    Raises:
        UserError: The graph or the GPU is not supported, or the build failed; the message is
            TensorRT's own.
        KeyboardInterrupt: Ctrl-C stopped the build at its next step.
    """
    trt = importlib.import_module(module)
    log = logger(trt)
    typed = _version(trt) >= STRONGLY_TYPED_FROM or module == "tensorrt_rtx"
    _refuse(trt, module, spec, typed)
    # On a machine without a GPU TensorRT for RTX still makes a builder; TensorRT does not.
    builder: T.Builder = _made(
        trt.Builder(log), log, "a builder (is there an NVIDIA GPU and driver?)"
    )
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if typed else 0
    network: T.INetworkDefinition = _made(builder.create_network(flags), log, "a network")
    parser: T.OnnxParser = _made(trt.OnnxParser(network, log), log, "a parser")
    if not parser.parse(settled.model.SerializeToString()):
        errors = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise UserError(f"{module} {trt.__version__} cannot parse the graph: {errors}")
    config: T.IBuilderConfig = _made(builder.create_builder_config(), log, "a configuration")
    capabilities = _configure(trt, builder, config, network, spec, log)
    if not typed:
        _weakly_typed(trt, network, config, spec, settled.islands)
    counts = parsed_convolutions(trt, network) if typed else {}
    # TensorRT for RTX times no kernels while it builds: its cache operations are empty.
    cache = None if module == "tensorrt_rtx" else spec.timing_cache
    if cache:
        _open_timing_cache(config, cache, log)
    plan = _run(trt, builder, network, config, progress, log)
    if cache:
        _save_timing_cache(config, cache)
    if not typed:
        counts = engine_convolutions(trt, plan, log)
    return Built(
        {"network.engine": plan},
        trt.__version__,
        counts,
        "parsed network" if typed else "engine",
        capabilities,
        open=_opener(module, plan, capabilities, spec),
    )


def parsed_convolutions(trt: Any, network: T.INetworkDefinition) -> dict[str, int]:
    """Count the convolutions of a strongly typed network by the type they compute in."""
    names = {trt.float32: "FP32", trt.float16: "FP16", trt.bfloat16: "BF16", trt.int8: "INT8"}
    makers: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for k in range(layer.num_outputs):
            makers[layer.get_output(k).name] = layer.type
        if layer.type not in (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION):
            continue
        kind = names.get(layer.get_output(0).dtype, str(layer.get_output(0).dtype))
        if makers.get(layer.get_input(0).name) == trt.LayerType.DEQUANTIZE:
            kind = "INT8"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def engine_convolutions(trt: Any, plan: bytes, log: Any) -> dict[str, int]:
    """Count the convolutions of a built engine by the type of their output (needs the GPU)."""
    import json

    runtime: T.Runtime = trt.Runtime(log)
    engine: T.ICudaEngine = _made(
        runtime.deserialize_cuda_engine(plan), log, "an engine of the plan"
    )
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    counts: dict[str, int] = {}
    for entry in json.loads(text)["Layers"]:
        if isinstance(entry, str) or "conv" not in entry.get("LayerType", "").lower():
            continue
        described = entry["Outputs"][0]["Format/Datatype"].lower()
        kinds = {"half": "FP16", "fp16": "FP16", "bf": "BF16", "int8": "INT8"}
        kind = next((name for key, name in kinds.items() if key in described), "FP32")
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _refuse(trt: Any, module: str, spec: Spec, typed: bool) -> None:
    """Refuse what this version cannot do, before work is spent on it."""
    version = f"{module} {trt.__version__}"
    if spec.dla >= 0 and (module == "tensorrt_rtx" or _version(trt) >= (11, 0)):
        raise UserError(f"--dla: {version} has no DLA; use TensorRT 10 on a Jetson")
    if not typed and spec.precision == "bf16":
        raise UserError(f"{version} has no typed bfloat16 here; use --precision fp16")
    if spec.gpus and not hasattr(trt, "ComputeCapability"):
        raise UserError(
            f"--gpu: {version} builds for the GPU it runs on; build on that GPU, or use "
            "--hardware-compatible, or --backend tensorrt-rtx"
        )


def _configure(
    trt: Any,
    builder: T.Builder,
    config: T.IBuilderConfig,
    network: T.INetworkDefinition,
    spec: Spec,
    log: Any,
) -> tuple[str, ...]:
    """Set profile, memory, GPUs and compatibility; return the compute capabilities built for."""
    profile: T.IOptimizationProfile = _made(builder.create_optimization_profile(), log, "a profile")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shapes = [trt.Dims((count, *spec.input_shape)) for count in spec.batch]
        profile.set_shape(tensor.name, *shapes)
    _ok(config.add_optimization_profile(profile) >= 0, log, f"batches {spec.batch} were refused")
    if spec.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if spec.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if spec.hardware_compatible:
        level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.hardware_compatibility_level = level
    if spec.dla >= 0:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = spec.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if spec.gpus:
        return _set_gpus(trt, config, spec, log)
    return (local_gpu() or "unknown",)


def _set_gpus(trt: Any, config: Any, spec: Spec, log: Any) -> tuple[str, ...]:
    able = [name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    unable = [gpu for gpu in spec.gpus if gpu not in able]
    if unable:
        raise UserError(
            f"--gpu {','.join(unable)}: {module_of(trt)} {trt.__version__} builds for "
            f"{', '.join(sorted(able))}; use --backend tensorrt on that machine for others"
        )
    config.num_compute_capabilities = len(spec.gpus)
    for i, gpu in enumerate(spec.gpus):
        chosen = getattr(trt.ComputeCapability, gpu.upper())
        _ok(config.set_compute_capability(chosen, i), log, f"{gpu} was refused")
    return spec.gpus


def _weakly_typed(
    trt: Any,
    network: T.INetworkDefinition,
    config: T.IBuilderConfig,
    spec: Spec,
    islands: Collection[str],
) -> None:
    """TensorRT 10.3 to 10.11: the builder flag, and float32 pinned where it is needed."""
    if spec.precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    elif spec.precision == "int8":
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.INT8)
    kept = set(islands)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.name in kept:
            layer.precision = trt.float32


def _open_timing_cache(config: T.IBuilderConfig, path: Path, log: Any) -> None:
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None:
        raise UserError(f"--timing-cache {path} is of another TensorRT or damaged; delete it")
    _ok(config.set_timing_cache(cache, False), log, f"--timing-cache {path} was refused")


def _save_timing_cache(config: T.IBuilderConfig, path: Path) -> None:
    with replacing(path) as beside:
        beside.write_bytes(bytes(config.get_timing_cache().serialize()))


def _run(
    trt: Any,
    builder: T.Builder,
    network: T.INetworkDefinition,
    config: T.IBuilderConfig,
    progress: Any,
    log: Any,
) -> bytes:
    """Build in a thread, so that Ctrl-C reaches this one and stops the build at its next step."""
    with progress() as bar:
        watch = monitor(trt, bar)
        config.progress_monitor = watch
        result: list[Any] = []

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
            watch.cancelled = True
            thread.join()
            raise
    if isinstance(result[0], BaseException):
        raise result[0]
    return bytes(_made(result[0], log, "an engine"))


def _made(thing: Any, log: Any, what: str) -> Any:
    _ok(thing is not None, log, f"TensorRT gave no {what.removeprefix('a ').removeprefix('an ')}")
    return thing


def _ok(good: bool, log: Any, what: str) -> None:
    """TensorRT answers False or None where it fails: every answer comes through here."""
    if not good:
        said = "; ".join(getattr(log, "errors", [])[-3:]) or "no reason was given"
        raise UserError(f"{what} ({said})")


def _opener(module: str, plan: bytes, capabilities: tuple[str, ...], spec: Spec) -> Any:
    """Return a function that opens the plan here, or None where no such GPU is."""
    if local_gpu() not in capabilities:
        return None

    def opened(traits: Any) -> Any:
        from export.runtime.tensorrt_engine import TensorRTEngine

        newer = spec.version_compatible
        return TensorRTEngine(module, plan, traits, spec.precision, version_compatible=newer)

    return opened


def _version(trt: Any) -> tuple[int, int]:
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def module_of(trt: Any) -> str:
    """Return the name of the module that ``trt`` is."""
    return str(trt.__name__).split(".")[0]
