"""Torch-TensorRT: an optional backend that compiles the PyTorch network itself."""

from __future__ import annotations

import importlib
import tempfile
from collections import Counter
from pathlib import Path

import torch

from export.builders.spec import Built, Spec, local_gpu
from export.builders.tensorrt_layers import from_inspector
from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine
from medisseg.errors import UserError


def build_torch_tensorrt(network: torch.nn.Module, spec: Spec) -> Built:
    """Compile an inference network by Torch-TensorRT, with the types it has in PyTorch.

    Never run by us: Torch-TensorRT does not import without TensorRT and a CUDA PyTorch. The tests
    hold the calls against a stand-in.

    Args:
        network: What ``for_inference(model)`` returned.
        spec: What to build; fp16, bf16 or fp32.

    Raises:
        UserError: It is not installed, or part of the network would be left to PyTorch.
    """
    try:
        torch_tensorrt = importlib.import_module("torch_tensorrt")
    except (ImportError, OSError) as error:
        raise UserError(f"--backend torch-tensorrt: it does not import ({error})") from error
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    if spec.precision not in kinds:
        raise UserError("--backend torch-tensorrt builds fp16, bf16, fp32; use tensorrt")
    if not torch.cuda.is_available():
        raise UserError("--backend torch-tensorrt needs an NVIDIA GPU here; use tensorrt-rtx --gpu")
    wrapped = _in_type(network.eval(), kinds[spec.precision]).cuda()
    low, best, high = ((count, *spec.input_shape) for count in spec.batch)
    image = torch_tensorrt.Input(min_shape=low, opt_shape=best, max_shape=high, dtype=torch.float32)
    try:
        module = torch_tensorrt.compile(
            wrapped,
            ir="dynamo",
            inputs=[image],
            use_explicit_typing=True,
            require_full_compilation=True,
            disable_tf32=True,
        )
    except Exception as error:  # whatever its converters and TensorRT raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(
            f"--backend torch-tensorrt did not compile the whole network ({reason}); use tensorrt"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.ep"
        sample = torch.zeros(best, device="cuda")
        torch_tensorrt.save(module, str(path), output_format="exported_program", inputs=[sample])
        program = path.read_bytes()

    def opened(model_info: ModelInfo) -> BaseEngine:
        from export.runtime.torch_tensorrt_engine import TorchTensorRTEngine

        return TorchTensorRTEngine(program, model_info)

    counts = _convolutions(module, spec.precision.upper())
    gpu = local_gpu() or "unknown"
    version = torch_tensorrt.__version__
    return Built({"network.ep": program}, version, counts, "engine", (gpu,), open=opened)


def _convolutions(module: torch.nn.Module, typed: str) -> dict[str, int]:
    """Count the convolutions in the engines of a compiled module by the type they compute in.

    An engine that keeps the names of its layers alone was typed by the network.
    """
    counts: Counter[str] = Counter()
    for part in module.modules():
        inspect = getattr(part, "get_layer_info", None)
        for layer in from_inspector(inspect()) if callable(inspect) else ():
            if "convolution" in layer.name.lower():
                counts[layer.computes if layer.on_device else typed] += 1
    return dict(counts)


def _in_type(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Return the network in ``dtype`` with float32 inputs and outputs."""

    class Cast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.to(dtype)

        def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            answer = self.network(images.to(dtype))
            if isinstance(answer, torch.Tensor):
                return answer.float()
            return tuple(part.float() for part in answer)

    return Cast()
