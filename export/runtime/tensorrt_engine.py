"""TensorRT, TensorRT for RTX and Torch-TensorRT engines on an NVIDIA GPU.

PyTorch is the memory: named tensors are its CUDA tensors, copies go through two pinned buffers a
tensor on one stream, and each batch size is captured once into a CUDA graph.
"""

from __future__ import annotations

import importlib
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from export.runtime.engine import BaseEngine
from export.traits import Traits
from medisseg.errors import UserError

if TYPE_CHECKING:  # the module at run time is tensorrt or tensorrt_rtx
    import tensorrt as T

log = logging.getLogger(__name__)


class TensorRTEngine(BaseEngine):
    """A plan of TensorRT or TensorRT for RTX.

    Args:
        module: "tensorrt" or "tensorrt_rtx".
        plan: The checked bytes of the engine.
        traits: What the network is.
        precision: For the name.
        device: "auto", "cuda" or "cuda:N".
        version_compatible: The plan carries the runtime of the version that built it.
    """

    def __init__(
        self,
        module: str,
        plan: bytes,
        traits: Traits,
        precision: str = "fp16",
        device: str = "auto",
        version_compatible: bool = False,
    ) -> None:
        trt = importlib.import_module(module)
        self.backend = "tensorrt-rtx" if module == "tensorrt_rtx" else "tensorrt"
        self.device = torch.device("cuda" if device == "auto" else device)
        self._trt = trt
        with torch.cuda.device(self.device):
            runtime: T.Runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            runtime.engine_host_code_allowed = version_compatible
            engine: T.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise UserError(f"{module} {trt.__version__} cannot open this plan; build it again")
            context: T.IExecutionContext | None = engine.create_execution_context()
            if context is None:
                raise UserError(f"{module}: too little GPU memory for this plan; use --batch 1:1:1")
            self._stream = torch.cuda.Stream(self.device)
        self._runtime: Any = runtime  # closed in this order: contexts, engine, runtime
        self._engine: Any = engine
        self._context: Any = context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or "logits" not in names:
            raise UserError(f"the plan has the tensors {names}; expected one input and logits")
        self._input, self._outputs = inputs[0], [n for n in names if n not in inputs]
        self._plans: dict[int, _Shape] = {}
        where = torch.cuda.get_device_name(self.device)
        title = "TensorRT for RTX" if module == "tensorrt_rtx" else "TensorRT"
        super().__init__(traits, f"{title} {trt.__version__} {precision} on {where}")

    def _run(self, batch: npt.NDArray[Any]) -> dict[str, Any]:
        shape = self._shape(len(batch))
        slot = shape.next_slot()
        slot.host_in.copy_(torch.from_numpy(np.ascontiguousarray(batch)))
        with torch.cuda.stream(self._stream):
            shape.inside.copy_(slot.host_in, non_blocking=True)
            shape.run()
            for name, value in shape.answers.items():
                slot.host_out[name].copy_(value, non_blocking=True)
        self._stream.synchronize()
        return {name: value.numpy().copy() for name, value in slot.host_out.items()}

    def run_on_device(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return the outputs of a batch on this GPU (a tensor, or anything with ``__dlpack__``).

        The answers are the engine's own memory: the next run overwrites them.
        """
        images = batch if isinstance(batch, torch.Tensor) else torch.from_dlpack(batch)
        shape = self._shape(len(images))
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            shape.inside.copy_(images, non_blocking=True)
            shape.run()
        torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return shape.answers

    def _shape(self, count: int) -> _Shape:
        if self._context is None:
            raise RuntimeError(f"{self.name} is closed; open it again with load_engine")
        if count > self.max_batch:
            raise ValueError(f"batch of {count}; this engine takes at most {self.max_batch}")
        if count not in self._plans:
            # Addresses and shapes belong to the context: a graph captured them, so each batch
            # size has its own context.
            context = self._context if not self._plans else self._engine.create_execution_context()
            _true(context is not None, "create_execution_context")
            self._plans[count] = _Shape(self, context, count)
        return self._plans[count]

    def close(self) -> None:
        """Free contexts, graphs and the engine, in this order."""
        self._plans.clear()
        self._context = self._engine = self._runtime = None


class _Slot:
    """Pinned host memory of one run."""

    def __init__(self, inside: torch.Tensor, answers: dict[str, torch.Tensor]) -> None:
        self.host_in = torch.empty_like(inside, device="cpu", pin_memory=True)
        self.host_out = {
            name: torch.empty_like(value, device="cpu", pin_memory=True)
            for name, value in answers.items()
        }


class _Shape:
    """Everything for one batch size: context, device tensors, two pinned slots, a CUDA graph."""

    def __init__(self, engine: TensorRTEngine, context: T.IExecutionContext, count: int) -> None:
        self._context, self._stream = context, engine._stream
        plan: T.ICudaEngine = engine._engine
        trt, device = engine._trt, engine.device
        whole = (count, *_sides(plan.get_tensor_shape(engine._input))[1:])
        _true(context.set_input_shape(engine._input, whole), f"set_input_shape {whole}")
        _true(not context.infer_shapes(), "infer_shapes")
        self.inside = torch.empty(whole, dtype=_dtype(trt, plan, engine._input), device=device)
        self.answers = {
            name: torch.empty(
                _sides(context.get_tensor_shape(name)), dtype=_dtype(trt, plan, name), device=device
            )
            for name in engine._outputs
        }
        for name, value in ((engine._input, self.inside), *self.answers.items()):
            _true(context.set_tensor_address(name, value.data_ptr()), f"set_tensor_address {name}")
        self._slots = [_Slot(self.inside, self.answers) for _ in range(2)]
        self._turn = 0
        self._graph: Any = None
        self._capture()

    def _capture(self) -> None:
        with torch.cuda.stream(self._stream):
            self._enqueue()  # lazily loaded kernels must not be loaded inside a capture
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._enqueue()
        except RuntimeError as error:
            log.warning("no CUDA graph for this engine (%s); it runs without one", error)
            return
        self._graph = graph

    def _enqueue(self) -> None:
        done = self._context.execute_async_v3(self._stream.cuda_stream)
        _true(done, "execute_async_v3")

    def run(self) -> None:
        """Run on the engine's stream, from ``inside`` to ``answers``."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._enqueue()

    def next_slot(self) -> _Slot:
        """Return the pinned buffers in turn."""
        self._turn = 1 - self._turn
        return self._slots[self._turn]


class TorchTensorRTEngine(BaseEngine):
    """An exported program compiled by Torch-TensorRT."""

    backend = "torch-tensorrt"

    def __init__(self, program: bytes, traits: Traits) -> None:
        torch_tensorrt = importlib.import_module("torch_tensorrt")
        self._module: Any = torch.export.load(io.BytesIO(program)).module()
        name = f"Torch-TensorRT {torch_tensorrt.__version__} on {torch.cuda.get_device_name()}"
        super().__init__(traits, name)

    @torch.inference_mode()
    def _run(self, batch: npt.NDArray[Any]) -> dict[str, Any]:
        answer = self._module(torch.from_numpy(np.ascontiguousarray(batch)).cuda())
        answers = answer if isinstance(answer, (tuple, list)) else (answer,)
        return {
            name: value.float().cpu().numpy()
            for name, value in zip(("logits", "uncertainty"), answers, strict=False)
        }

    def close(self) -> None:
        """Free the module."""
        self._module = None


def _sides(shape: T.Dims) -> tuple[int, ...]:
    return tuple(shape[i] for i in range(len(shape)))


def _dtype(trt: Any, plan: T.ICudaEngine, name: str) -> torch.dtype:
    kinds = {
        trt.float32: torch.float32,
        trt.float16: torch.float16,
        trt.bfloat16: torch.bfloat16,
        trt.uint8: torch.uint8,
    }
    return kinds[plan.get_tensor_dtype(name)]


def _true(good: bool, what: str) -> None:
    """TensorRT answers False where it fails."""
    if not good:
        raise UserError(f"TensorRT failed in {what}; build the bundle again on this machine")
