"""The builder configuration for each version of TensorRT, and what a version cannot build."""

from __future__ import annotations

import ctypes.util
import importlib.util
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from export.builders.spec import Spec, local_gpu
from export.runtime.tensorrt_log import Log, made, ok
from medisseg.errors import UserError
from medisseg.files import replacing

if TYPE_CHECKING:  # the module at run time is tensorrt or tensorrt_rtx, handed on as ``trt``
    import tensorrt as T

# DLA was left out from 10.8 on and came back for AGX Orin.
DLA_UNTIL, DLA_AGAIN = (10, 8), (11, 4, 1)


def version_of(trt: ModuleType) -> tuple[int, ...]:
    """Return TensorRT's version as numbers."""
    return tuple(int(part) for part in trt.__version__.split(".") if part.isdigit())


def is_rtx(trt: ModuleType) -> bool:
    """Whether ``trt`` is TensorRT for RTX."""
    return str(trt.__name__).startswith("tensorrt_rtx")


def is_typed(trt: ModuleType, spec: Spec) -> bool:
    """Whether the network is strongly typed: always, but in TensorRT 8 and for DLA before 11."""
    return is_rtx(trt) or version_of(trt) >= ((11,) if spec.dla >= 0 else (10,))


def refuse(trt: ModuleType, spec: Spec) -> None:
    """Refuse what this version cannot do, before work is spent on it.

    Raises:
        UserError: What cannot be done, and what to do instead.
    """
    name, version = f"{trt.__name__} {trt.__version__}", version_of(trt)
    if spec.dla >= 0:
        if is_rtx(trt) or not (version < DLA_UNTIL or version >= DLA_AGAIN):
            raise UserError(
                f"--dla: {name} has no DLA; use TensorRT up to 10.7, or 11.4.1 on AGX Orin"
            )
        if spec.precision != "fp16":
            raise UserError(f"--dla takes FP16 here, not {spec.precision}; use --precision fp16")
        if spec.batch[0] != spec.batch[-1]:
            raise UserError("--dla takes one batch size; use --batch 1:1:1")
    if version < (10,) and spec.precision == "bf16":
        raise UserError(f"{name} has no typed bfloat16; use --precision fp16")
    if spec.gpus and not hasattr(trt, "ComputeCapability") and spec.gpus != (local_gpu(),):
        raise UserError(
            f"--gpu: {name} builds for the GPU it runs on; build on that GPU, or use "
            "--hardware-compatible, or --backend tensorrt-rtx"
        )
    if spec.version_compatible:
        if is_rtx(trt):
            raise UserError(
                "--version-compatible is for tensorrt; TensorRT for RTX opens its own version's"
            )
        lean = importlib.util.find_spec("tensorrt_lean") or ctypes.util.find_library("nvinfer_lean")
        if not lean:
            raise UserError(
                "--version-compatible needs libnvinfer_lean, which is put into the engine: "
                "pip install tensorrt-lean (on a Jetson: apt install libnvinfer-lean10)"
            )


def configure(
    trt: ModuleType,
    builder: T.Builder,
    config: T.IBuilderConfig,
    network: T.INetworkDefinition,
    spec: Spec,
    log: Log,
) -> tuple[str, ...]:
    """Set shapes, memory, GPUs and compatibility; return the compute capabilities built for."""
    _set_shapes(trt, builder, config, network, spec, log)
    # On by default: it multiplies float32 with 10 bits of mantissa, which no check would notice.
    config.clear_flag(trt.BuilderFlag.TF32)
    ok(not config.get_flag(trt.BuilderFlag.TF32), log, "TF32 could not be turned off")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if spec.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace << 20)
    if spec.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if spec.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if spec.dla >= 0:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = spec.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # An engine that allocates while it runs cannot be captured into a CUDA graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(trt, "ComputeCapability") and spec.gpus:
        return _set_gpus(trt, config, spec, log)
    return (local_gpu() or "unknown",)


def _set_shapes(
    trt: ModuleType,
    builder: T.Builder,
    config: T.IBuilderConfig,
    network: T.INetworkDefinition,
    spec: Spec,
    log: Log,
) -> None:
    tensor = network.get_input(0)
    low, best, high = (trt.Dims((count, *spec.input_shape)) for count in spec.batch)
    if spec.dla >= 0:  # DLA takes no dynamic shapes
        tensor.shape = best
    profile: T.IOptimizationProfile = made(builder.create_optimization_profile(), log, "profile")
    profile.set_shape(tensor.name, low, best, high)
    ok(config.add_optimization_profile(profile) >= 0, log, f"batches {spec.batch} were refused")


def _set_gpus(trt: ModuleType, config: Any, spec: Spec, log: Log) -> tuple[str, ...]:  # RTX's
    able = [name.lower() for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    unable = [gpu for gpu in spec.gpus if gpu not in able]
    if unable:
        raise UserError(
            f"--gpu {','.join(unable)}: {trt.__name__} {trt.__version__} builds for "
            f"{', '.join(sorted(able))}; use --backend tensorrt on that machine for others"
        )
    config.num_compute_capabilities = len(spec.gpus)
    for i, gpu in enumerate(spec.gpus):
        chosen = getattr(trt.ComputeCapability, gpu.upper())
        ok(config.set_compute_capability(chosen, i), log, f"{gpu} was refused")
    return spec.gpus


def weakly_typed(
    trt: ModuleType,
    network: T.INetworkDefinition,
    config: T.IBuilderConfig,
    spec: Spec,
    fp32_nodes: Collection[str],
) -> None:
    """Set builder flags and pin layers to float32, for TensorRT 8 and for DLA before TensorRT 11.

    Their networks are weakly typed: a flag allows a type, and the builder chooses by speed.
    """
    if spec.precision in ("fp16", "int8"):
        config.set_flag(trt.BuilderFlag.FP16)
    if spec.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    if not fp32_nodes:
        return
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.name in fp32_nodes:
            layer.precision = trt.float32


def open_timing_cache(config: T.IBuilderConfig, path: Path, log: Log) -> None:
    """Set a builder's timing cache from a file; an absent or refused one begins empty."""
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None:
        raise UserError(f"--timing-cache {path} is of another TensorRT or damaged; delete it")
    ok(config.set_timing_cache(cache, False), log, f"--timing-cache {path} was refused")


def save_timing_cache(config: T.IBuilderConfig, path: Path) -> None:
    """Write a builder's timing cache to a file."""
    with replacing(path) as tmp_path:
        tmp_path.write_bytes(bytes(config.get_timing_cache().serialize()))
