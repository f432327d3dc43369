"""A program that Torch-TensorRT compiled."""

from __future__ import annotations

import importlib
import io

import numpy as np
import torch

from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine, Images, Outputs


class TorchTensorRTEngine(BaseEngine):
    """An exported program compiled by Torch-TensorRT.

    Args:
        program: The checked bytes of the exported program.
        model_info: Input convention, classes and largest batch.
        device: "auto", "cuda" or "cuda:N".
    """

    backend = "torch-tensorrt"

    def __init__(self, program: bytes, model_info: ModelInfo, device: str = "auto") -> None:
        torch_tensorrt = importlib.import_module("torch_tensorrt")
        self.device = torch.device("cuda" if device == "auto" else device)
        with torch.cuda.device(self.device):
            loaded = torch.export.load(io.BytesIO(program))
            self._module: torch.nn.Module | None = loaded.module()
        where = torch.cuda.get_device_name(self.device)
        super().__init__(model_info, f"Torch-TensorRT {torch_tensorrt.__version__} on {where}")

    def _run(self, batch: Images) -> Outputs:
        answers = self.run_on_device(torch.from_numpy(np.ascontiguousarray(batch)))
        return {name: value.float().cpu().numpy() for name, value in answers.items()}

    @torch.inference_mode()
    def run_on_device(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of images on this GPU, without a copy to the host."""
        if self._module is None:
            raise RuntimeError(f"{self.name} is closed; open it again with load_engine")
        images = batch if isinstance(batch, torch.Tensor) else torch.from_dlpack(batch)
        with torch.cuda.device(self.device):
            answer = self._module(images.to(self.device))
        answers = answer if isinstance(answer, (tuple, list)) else (answer,)
        return dict(zip(("logits", "uncertainty"), answers, strict=False))

    def close(self) -> None:
        """Free the module."""
        self._module = None
