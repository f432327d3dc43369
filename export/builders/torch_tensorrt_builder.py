"""Torch-TensorRT: a lazy, optional backend that compiles the PyTorch network itself."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from export.builders.spec import Built, Spec, local_gpu
from medisseg.errors import UserError


def build_torch_tensorrt(network: Any, spec: Spec) -> Built:
    """Compile an inference network by Torch-TensorRT, with the types it has in PyTorch.

    Never run by us: Torch-TensorRT does not import without TensorRT and a CUDA PyTorch.

    Args:
        network: What ``for_inference(model)`` returned.
        spec: What to build; fp16, bf16 or fp32.
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
    module = torch_tensorrt.compile(wrapped, ir="dynamo", inputs=[image], use_explicit_typing=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.ep"
        sample = torch.zeros(best, device="cuda")
        torch_tensorrt.save(module, str(path), output_format="exported_program", inputs=[sample])
        program = path.read_bytes()

    def opened(traits: Any) -> Any:
        from export.runtime.torch_tensorrt_engine import TorchTensorRTEngine

        return TorchTensorRTEngine(program, traits)

    convolutions = [m for m in wrapped.modules() if isinstance(m, torch.nn.Conv2d)]
    counts = {spec.precision.upper(): len(convolutions)}
    gpu = local_gpu() or "unknown"
    version = torch_tensorrt.__version__
    return Built({"network.ep": program}, version, counts, "compiled module", (gpu,), open=opened)


def _in_type(network: Any, dtype: Any) -> Any:
    """Return the network in ``dtype`` with float32 inputs and outputs."""

    class Cast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.to(dtype)

        def forward(self, images: torch.Tensor) -> Any:
            answer = self.network(images.to(dtype))
            if isinstance(answer, torch.Tensor):
                return answer.float()
            return tuple(part.float() for part in answer)

    return Cast()
