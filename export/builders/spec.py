"""What a builder is asked for and what it makes; the GPUs that can be named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine

if TYPE_CHECKING:
    from rich.progress import Progress

Bars = Callable[[], "Progress"]  # gives a bar, as a context manager
GPUS = ("sm75", "sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
LAYERS = "layers.json"  # the part of a bundle that lists an engine's kernels


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
        gpu_name: GPU that the kernels were chosen on; None where they are compiled when it opens.
        kernels: Number of kernels of an engine by the type of what they give.
        scratch_mb: Scratch memory of one run at the largest batch, in MB; None where not known.
    """

    parts: dict[str, bytes]
    backend_version: str
    convolutions: dict[str, int]
    inspected: str
    compute_capabilities: tuple[str, ...] = ()
    open: Callable[[ModelInfo], BaseEngine] | None = None
    gpu_name: str | None = None
    kernels: dict[str, int] = field(default_factory=dict)
    scratch_mb: float | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)


def gpu_name() -> str | None:
    """Return the name of this machine's GPU, or None without one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def local_gpu() -> str | None:
    """Return this machine's compute capability as "sm89", or None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"
