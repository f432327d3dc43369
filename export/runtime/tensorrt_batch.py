"""One batch size of a TensorRT engine: its context, tensors, pinned memory and CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from export.runtime.tensorrt_log import made, ok
from medisseg.errors import UserError

if TYPE_CHECKING:
    import tensorrt as T

    from export.runtime.kernel_cache import KernelCache
    from export.runtime.tensorrt_log import Log

log = logging.getLogger(__name__)
# Up to so many images each batch size has its own graph; a longer batch runs in the next doubling.
EXACT = 8


def batch_sizes(low: int, high: int) -> list[int]:
    """Return the batch sizes that are captured: every batch of up to ``high`` images fits in one.

    Example:
        >>> batch_sizes(1, 20)
        [1, 2, 3, 4, 5, 6, 7, 8, 16, 20]
    """
    sizes = set(range(low, min(high, EXACT) + 1)) | {max(low, high)}
    size = 2 * EXACT
    while size < high:
        sizes.add(max(low, size))
        size *= 2
    return sorted(sizes)


@dataclass(frozen=True)
class OpenPlan:
    """A plan that is open on a GPU, and what all its batch sizes share.

    Attributes:
        trt: The module ``tensorrt`` or ``tensorrt_rtx``.
        engine: The deserialised plan.
        log: Where TensorRT says why it refused.
        device: The GPU.
        stream: All its work runs on this one.
        scratch: Memory that every context computes in, uint8.
        cache: Kernels of TensorRT for RTX; None for TensorRT.
        given: Name of the input.
        names: Names of all tensors.
    """

    trt: ModuleType
    engine: T.ICudaEngine
    log: Log
    device: torch.device
    stream: torch.cuda.Stream
    scratch: torch.Tensor
    cache: KernelCache | None
    given: str
    names: Sequence[str]


class BatchSize:
    """Context, tensors and CUDA graph for batches of ``count`` images.

    Addresses and shapes belong to a context, and a captured graph holds both: each batch size has
    its own. Contexts of one engine run one after the other on its stream, so their scratch memory
    is one.

    Attributes:
        inside: The input on the GPU.
        answers: The outputs on the GPU, by name.
        host: The outputs in pinned memory, by name.
    """

    def __init__(self, shared: OpenPlan, count: int) -> None:
        trt, plan, device, given = shared.trt, shared.engine, shared.device, shared.given
        self._log, self._stream, self._scratch = shared.log, shared.stream, shared.scratch
        context: T.IExecutionContext = made(_context(trt, plan, shared.cache), self._log, "context")
        self._context = context
        whole = (count, *_sides(plan.get_tensor_shape(given))[1:])
        ok(context.set_input_shape(given, whole), self._log, f"TensorRT refused images {whole}")
        ok(not context.infer_shapes(), self._log, "TensorRT could not infer the outputs' shapes")
        _give(context, shared.scratch)
        tensors = {
            name: torch.zeros(
                _sides(context.get_tensor_shape(name)), dtype=_dtype(trt, plan, name), device=device
            )
            for name in shared.names
        }
        for name, value in tensors.items():
            done = context.set_tensor_address(name, value.data_ptr())
            ok(done, self._log, f"TensorRT refused the address of {name}")
        self.inside = tensors.pop(given)
        self.answers = tensors
        self._host_in = torch.zeros(whole, dtype=self.inside.dtype, pin_memory=True)
        self.host = {
            name: torch.zeros(value.shape, dtype=value.dtype, pin_memory=True)
            for name, value in tensors.items()
        }
        self._graph: torch.cuda.CUDAGraph | None = None
        torch.cuda.current_stream(device).synchronize()  # the tensors were zeroed on that one
        self._capture()

    def _capture(self) -> None:
        """Run once, which loads and compiles kernels, then capture a CUDA graph if TensorRT can."""
        with torch.cuda.stream(self._stream):
            self._enqueue()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may allocate on the GPU meanwhile: only this one is held to the rules.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue()
        except (RuntimeError, UserError) as error:
            log.warning(
                "no CUDA graph for %d images (%s); they run without one", len(self.inside), error
            )
            return
        self._graph = graph

    def _enqueue(self) -> None:
        done = self._context.execute_async_v3(self._stream.cuda_stream)
        ok(done, self._log, "TensorRT could not run the plan; build the bundle again here")

    def run(self) -> None:
        """Run on the engine's stream, which is current, from ``inside`` to ``answers``."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._enqueue()

    def from_host(self, images: torch.Tensor) -> None:
        """Copy images to ``inside``, through pinned memory, on the current stream."""
        self._host_in[: len(images)].copy_(images)
        self.inside.copy_(self._host_in, non_blocking=True)

    def to_host(self) -> None:
        """Copy ``answers`` to ``host``, on the current stream."""
        for name, value in self.answers.items():
            self.host[name].copy_(value, non_blocking=True)


def _context(
    trt: ModuleType, plan: T.ICudaEngine, cache: KernelCache | None
) -> T.IExecutionContext | None:
    """Create a context without scratch memory of its own; None where TensorRT refuses."""
    if not hasattr(trt, "ExecutionContextAllocationStrategy"):  # before TensorRT 10
        return plan.create_execution_context_without_device_memory()
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if cache is None:
        return plan.create_execution_context(strategy)
    cache.runtime_config.set_execution_context_allocation_strategy(strategy)
    return plan.create_execution_context(cache.runtime_config)


def _give(context: Any, scratch: torch.Tensor) -> None:
    """Set a context's scratch memory, uint8."""
    if hasattr(context, "set_device_memory"):
        context.set_device_memory(scratch.data_ptr(), scratch.numel())
    else:  # before TensorRT 10.1
        context.device_memory = scratch.data_ptr()


def _sides(shape: T.Dims) -> tuple[int, ...]:
    return tuple(shape[i] for i in range(len(shape)))


def _dtype(trt: ModuleType, plan: T.ICudaEngine, name: str) -> torch.dtype:
    kinds = {
        trt.float32: torch.float32,
        trt.float16: torch.float16,
        trt.uint8: torch.uint8,
    }
    return kinds[plan.get_tensor_dtype(name)]
