"""TensorRT and TensorRT for RTX engines on an NVIDIA GPU.

PyTorch is the memory: named tensors are its CUDA tensors, copies go through pinned memory on one
stream. Every batch size is warmed and captured into a CUDA graph when the engine opens: a capture
beside a live stream would be broken by whatever another thread does on the GPU.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from export.model_info import ModelInfo
from export.runtime import tensorrt_log
from export.runtime.engine import BaseEngine, Images, Outputs
from export.runtime.kernel_cache import KernelCache
from export.runtime.tensorrt_batch import BatchSize, OpenPlan, batch_sizes
from medisseg.errors import UserError

if TYPE_CHECKING:  # the module at run time is tensorrt or tensorrt_rtx
    import tensorrt as T


class TensorRTEngine(BaseEngine):
    """A plan of TensorRT or TensorRT for RTX.

    Args:
        module: "tensorrt" or "tensorrt_rtx".
        plan: The checked bytes of the engine.
        model_info: Input convention, classes and largest batch.
        precision: For the name.
        device: "auto", "cuda" or "cuda:N".
        version_compatible: The plan carries the runtime of the version that built it.
        dla: Core of a Jetson's accelerator that the plan was built for, -1 for none.
        kernels: File of the kernels that TensorRT for RTX compiled on this machine.

    Raises:
        UserError: No driver, too little memory, or a plan that this version cannot open.
    """

    device: torch.device

    def __init__(
        self,
        module: str,
        plan: bytes,
        model_info: ModelInfo,
        precision: str = "fp16",
        device: str = "auto",
        *,
        version_compatible: bool = False,
        dla: int = -1,
        kernels: Path | None = None,
    ) -> None:
        trt = importlib.import_module(module)
        self.backend = "tensorrt-rtx" if module == "tensorrt_rtx" else "tensorrt"
        index = torch.device("cuda" if device == "auto" else device).index
        self.device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self._trt, self._log = trt, tensorrt_log.logger(trt)
        where = torch.cuda.get_device_name(self.device)
        title = "TensorRT for RTX" if module == "tensorrt_rtx" else "TensorRT"
        super().__init__(model_info, f"{title} {trt.__version__} {precision} on {where}")
        with torch.cuda.device(self.device):
            runtime: T.Runtime = tensorrt_log.opened(trt.Runtime, self._log)
            if version_compatible:
                runtime.engine_host_code_allowed = True
            if dla >= 0:
                runtime.DLA_core = dla
            engine: T.ICudaEngine = tensorrt_log.made(
                runtime.deserialize_cuda_engine(plan), self._log, "engine; build it again here"
            )
            # Closed in this order: batches, engine, runtime.
            self._runtime: T.Runtime | None = runtime
            self._engine: T.ICudaEngine | None = engine
            self._stream = torch.cuda.Stream(self.device)
            self._batches = self._opened(engine, kernels)

    def _opened(self, engine: T.ICudaEngine, kernels: Path | None) -> dict[int, BatchSize]:
        """Make, warm and capture every batch size; they share one scratch memory."""
        trt = self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or "logits" not in names:
            raise UserError(f"the plan has the tensors {names}; expected one input and logits")
        low, _, high = (shape[0] for shape in engine.get_tensor_profile_shape(inputs[0], 0))
        if high < self.max_batch:
            raise UserError(f"the plan takes up to {high} images, its manifest says otherwise")
        size = getattr(engine, "device_memory_size_v2", None)  # absent before TensorRT 10.1
        size = engine.device_memory_size if size is None else size
        rtx = self.backend == "tensorrt-rtx"
        cache = KernelCache(trt, engine, kernels) if rtx else None
        try:
            scratch = torch.empty(max(size, 256), dtype=torch.uint8, device=self.device)
            shared = OpenPlan(
                trt, engine, self._log, self.device, self._stream, scratch, cache, inputs[0], names
            )
            batches = {
                count: BatchSize(shared, count) for count in batch_sizes(low, self.max_batch)
            }
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.name}: too little GPU memory for this plan; build it with --batch 1:1:1"
            ) from error
        if cache:
            cache.save()
        return batches

    def _run(self, batch: Images) -> Outputs:
        given = torch.from_numpy(np.ascontiguousarray(batch))
        work = self._batch(len(batch))
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            work.from_host(given)
            work.run()
            work.to_host()
            self._stream.synchronize()
        return {name: answer[: len(batch)].numpy().copy() for name, answer in work.host.items()}

    def run_on_device(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of a batch on this GPU (a tensor, or anything with ``__dlpack__``).

        The answers are the engine's own memory: the next run overwrites them.
        """
        images = batch if isinstance(batch, torch.Tensor) else torch.from_dlpack(batch)
        work = self._batch(len(images))
        with torch.cuda.device(self.device):
            callers = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(callers)
            with torch.cuda.stream(self._stream):
                work.inside[: len(images)].copy_(images, non_blocking=True)
                work.run()
            callers.wait_stream(self._stream)
        return {name: answer[: len(images)] for name, answer in work.answers.items()}

    def _batch(self, count: int) -> BatchSize:
        """Return the smallest batch size that holds ``count`` images."""
        if self._engine is None:
            raise RuntimeError(f"{self.name} is closed; open it again with load_engine")
        if count > self.max_batch:
            raise ValueError(f"batch of {count}; this engine takes at most {self.max_batch}")
        return self._batches[min(size for size in self._batches if size >= count)]

    def close(self) -> None:
        """Free contexts, graphs and the engine, in this order."""
        self._batches = {}
        self._engine = self._runtime = None
