"""PyTorch: the reference on a CPU; half precision in a CUDA graph, with our kernels, on a GPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from export.model_info import ModelInfo
from export.runtime.engine import BaseEngine, Images, Outputs
from export.runtime.parallel_branches import ParallelBranches
from medisseg.errors import UserError
from medisseg.model.blocks import TeLU
from medisseg.model.network import StageTwo

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARTS = 64  # compiled forms of one class of part: its levels, inputs and batch sizes
# Settings of Inductor: weights as constants, laid out anew; convolutions by the fastest in a trial.
FREEZING = {"freezing": True}
AUTOTUNING = {"max_autotune": True}


@dataclass(frozen=True)
class Captured:
    """One batch size as a CUDA graph.

    Attributes:
        graph: From ``images`` to ``answers``.
        inside: The images on the GPU, float32 [N, 3, H, W].
        images: What the caller fills: ``inside``, or pinned memory that the graph copies there.
        answers: On the GPU in the network's dtype, or float32 in pinned memory.
    """

    graph: torch.cuda.CUDAGraph
    inside: torch.Tensor
    images: torch.Tensor
    answers: dict[str, torch.Tensor]


class TorchEngine(BaseEngine):
    """A network in PyTorch.

    On a GPU each batch size is captured once into a CUDA graph, Stage II on parallel branches, with
    the convolution algorithms that were fastest in a trial: the last bits may differ from one
    process to the next. From numpy to numpy the graph holds the copies and casts too: beside its
    launch the host copies images into pinned memory, waits, and copies the answers out.

    Args:
        network: What ``for_inference(model)`` returned. For a GPU, with ``portable=False``: our
            kernels, and no constant that a graph would have to fetch from the host.
        model_info: Input convention, classes and largest batch.
        device: "cpu", "cuda" or "cuda:N".
        precision: "fp32", "fp16" or "bf16"; "auto" is fp16 on a GPU and fp32 on a CPU.
        threads: Threads on a CPU while this engine runs; None leaves PyTorch's setting.
        compiled: Run through torch.compile, which fuses TeLU with what stands before it; window
            mixing, enlargements and spatial gates stay our kernels.
        inductor: Settings of Inductor while it compiles, such as ``FREEZING`` or ``AUTOTUNING``.
    """

    backend = "pytorch"
    device: torch.device

    def __init__(
        self,
        network: torch.nn.Module,
        model_info: ModelInfo,
        device: str = "cpu",
        precision: str = "auto",
        threads: int | None = None,
        compiled: bool = False,
        inductor: Mapping[str, object] | None = None,
    ) -> None:
        self.device = torch.device(device)
        cuda = self.device.type == "cuda"
        if precision == "auto":
            precision = "fp16" if cuda else "fp32"
        if precision not in _DTYPES:
            raise UserError(f"PyTorch runs {', '.join(_DTYPES)}; got precision {precision}")
        self.dtype = _DTYPES[precision]
        self._threads = threads
        self._graphs: dict[tuple[int, bool], Captured] = {}
        network = network.to(self.device, self.dtype).eval()
        self._network: Any = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compiler = functools.partial(torch.compile, fullgraph=True, dynamic=False)
        form: Callable[[Any], Any] = compiler if compiled else lambda forward: forward
        self._in_turn: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self._compiling: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        if compiled:
            self._compiling = functools.partial(_compiling, inductor or {})
            for part in self._network.modules():
                if isinstance(part, TeLU):
                    part.portable = True
        if cuda and isinstance(network, StageTwo):
            self._network = ParallelBranches(network, form)
            self._in_turn = self._network.in_turn
        else:
            self._network = form(self._network)
        where = torch.cuda.get_device_name(self.device) if cuda else "CPU"
        how = ", torch.compile" if compiled else ""
        super().__init__(model_info, f"PyTorch {torch.__version__} {precision} on {where}{how}")

    @torch.inference_mode()
    def _run(self, batch: Images) -> Outputs:
        if self._network is None:
            raise RuntimeError(f"{self.name} is closed; open it again with load_engine")
        images = torch.from_numpy(np.ascontiguousarray(batch))
        if self.device.type != "cuda":
            answers = self.run_on_device(images)
            return {name: answer.float().numpy() for name, answer in answers.items()}
        captured = self._captured(images, host=True)
        captured.images.copy_(images)
        captured.graph.replay()
        torch.cuda.current_stream(self.device).synchronize()
        return {name: answer.numpy().copy() for name, answer in captured.answers.items()}

    @torch.inference_mode()
    def run_on_device(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of images that already lie on the device, without a copy to the host.

        Args:
            batch: A tensor [N, 3, H, W], or anything with ``__dlpack__``.

        On a GPU the answer is the captured graph's own memory: the next run overwrites it.
        """
        images = batch if isinstance(batch, torch.Tensor) else torch.from_dlpack(batch)
        if self.device.type != "cuda":
            with _threads(self._threads), self._compiling():
                return self._forward(images)
        captured = self._captured(images, host=False)
        captured.images.copy_(images, non_blocking=True)
        captured.graph.replay()
        return captured.answers

    def _forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = self._network(images.to(self.dtype, memory_format=torch.channels_last))
        if isinstance(answer, torch.Tensor):
            return {"logits": answer}
        return dict(zip(("logits", "uncertainty"), answer, strict=True))

    def _captured(self, images: torch.Tensor, host: bool) -> Captured:
        key = len(images), host
        if key not in self._graphs:
            self._graphs[key] = self._capture(images.shape, host)
        return self._graphs[key]

    def _capture(self, shape: torch.Size, host: bool) -> Captured:
        exact = self.dtype == torch.float32
        with torch.cuda.device(self.device), _convolutions(exact), self._compiling():
            inside = torch.zeros(shape, device=self.device)
            images = torch.zeros(shape, pin_memory=True) if host else inside
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # outside the capture: compilation, trials, allocation
                with self._in_turn():  # a trial beside other parts would time those too
                    self._forward(inside)
                self._forward(inside)
                answers = self._forward(inside)
            torch.cuda.current_stream().wait_stream(side)
            if host:
                pinned = {n: torch.zeros(x.shape, pin_memory=True) for n, x in answers.items()}
            graph = torch.cuda.CUDAGraph()
            # Another thread may allocate on the GPU meanwhile: only this one is held to the rules.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                if host:
                    inside.copy_(images, non_blocking=True)
                answers = self._forward(inside)
                if host:
                    for name, answer in answers.items():
                        pinned[name].copy_(answer.float().contiguous(), non_blocking=True)
        return Captured(graph, inside, images, pinned if host else answers)

    def close(self) -> None:
        """Free the network and the captured graphs."""
        self._graphs.clear()
        self._network = None


@contextlib.contextmanager
def _compiling(inductor: Mapping[str, object]) -> Iterator[None]:
    """Let torch.compile make every part's forms, by these settings of Inductor, for a while."""
    from torch._dynamo import config as dynamo
    from torch._inductor import config

    with dynamo.patch(recompile_limit=PARTS), config.patch(dict(inductor)):
        yield


@contextlib.contextmanager
def _convolutions(exact: bool) -> Iterator[None]:
    """Within a block, let cuDNN time its algorithms; ``exact`` keeps TF32 out of float32."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32 = True, not exact
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32 = before


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set PyTorch's number of CPU threads, a setting of the whole process, within a block."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
