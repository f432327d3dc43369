"""A stand-in for torch.cuda on a machine without a GPU: streams that run late, graphs, two devices.

Work that is queued on a stream runs when something waits for that stream, so an answer that is read
too early is seen to be old. A capture records what is queued; in "global" mode any other thread's
allocation breaks it, as CUDA does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Stream:
    """An ordered queue of work on one device."""

    numbers = itertools.count(1000)

    def __init__(self, cuda: Cuda, device: Any) -> None:
        self.cuda, self.device = cuda, cuda.index(device)
        self.cuda_stream = next(Stream.numbers)
        self.queued: list[Callable[[], None]] = []
        self.issued = self.done = 0
        self.capturing: Graph | None = None
        cuda.streams[self.cuda_stream] = self

    def add(self, work: Callable[[], None]) -> None:
        if self.capturing is not None:
            self.capturing.work.append(work)
        else:
            self.queued.append(work)
            self.issued += 1

    def run_to(self, number: int) -> None:
        """Run what was queued as the first ``number`` pieces of work."""
        while self.done < number and self.queued:
            self.queued.pop(0)()
            self.done += 1

    def synchronize(self) -> None:
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.run_to(self.issued)

    def wait_stream(self, other: Stream) -> None:
        number = other.issued
        self.add(lambda: other.run_to(number))


class Graph:
    """What a capture recorded."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.work = cuda, []

    def replay(self) -> None:
        self.cuda.current_stream().add(lambda: [work() for work in self.work])  # type: ignore[func-returns-value]


class DeviceTensor(torch.Tensor):
    """Memory of a device: copies to and from it are queued on the current stream.

    What PyTorch computes from it runs at once; within a capture, again at each replay.
    """

    cuda: Cuda

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_function__(func, types, args, kwargs or {})
        graph = cls.cuda.current_stream().capturing
        if graph is not None and isinstance(made, DeviceTensor):
            again = functools.partial(func, *args, **kwargs or {})
            graph.work.append(lambda: plain(made).copy_(plain(again())))
        return made

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Any:
        copy_later(DeviceTensor.cuda, self, source, non_blocking)
        return self


class PinnedTensor(torch.Tensor):
    """Pinned host memory."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Any:
        if isinstance(source, DeviceTensor):
            copy_later(DeviceTensor.cuda, self, source, non_blocking)
        else:
            plain(self).copy_(source)
        return self


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as an ordinary tensor."""
    return tensor.as_subclass(torch.Tensor)


def copy_later(cuda: Cuda, to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
    target, origin = plain(to), plain(source)
    pinned = isinstance(source, (PinnedTensor, DeviceTensor)) and type(to) is not torch.Tensor
    stream = cuda.current_stream()
    stream.add(lambda: target.copy_(origin))
    if not (non_blocking and pinned):
        stream.synchronize()


class Cuda:
    """What the engine uses of torch.cuda."""

    def __init__(self, names: tuple[str, ...] = ("GPU A", "GPU B"), busy: bool = True) -> None:
        self.names, self.busy = names, busy  # busy: another thread allocates all the time
        self.device_now = 0
        self.streams: dict[int, Stream] = {}
        self.homes: dict[int, int] = {}  # address -> device
        self.sizes: dict[int, int] = {}  # address -> bytes
        self._current = {i: Stream(self, i) for i in range(len(names))}
        self.refuse_capture: Exception | None = None
        self.refuse_enqueue = False  # inside a capture
        self.no_driver = False
        self.capture_modes: list[str] = []
        self.allocated = 0
        DeviceTensor.cuda = self

    def index(self, device: Any) -> int:
        if isinstance(device, int):
            return device
        where = torch.device(device)
        return self.device_now if where.index is None else where.index

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return self.device_now

    def get_device_name(self, device: Any = None) -> str:
        return self.names[self.device_now if device is None else self.index(device)]

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        return (8, 9)

    def current_stream(self, device: Any = None) -> Stream:
        return self._current[self.device_now if device is None else self.index(device)]

    def Stream(self, device: Any = None) -> Stream:
        return Stream(self, self.device_now if device is None else device)

    def CUDAGraph(self) -> Graph:
        return Graph(self)

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.device_now = self.device_now, self.index(device)
        try:
            yield
        finally:
            self.device_now = before

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self._current[stream.device]
        self._current[stream.device] = stream
        with self.device(stream.device):
            try:
                yield
            finally:
                self._current[stream.device] = before

    @contextlib.contextmanager
    def graph(
        self, graph: Graph, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        stream = stream or Stream(self, self.device_now)
        self.capture_modes.append(capture_error_mode)
        stream.synchronize()
        stream.capturing = graph
        try:
            with self.stream(stream):
                yield
        finally:
            stream.capturing = None
        if capture_error_mode == "global" and self.busy:
            raise RuntimeError("operation failed due to a previous error during capture")
        if self.refuse_capture is not None:
            raise self.refuse_capture

    def new(self, tensor: torch.Tensor, device: Any) -> DeviceTensor:
        address = tensor.data_ptr()
        self.homes[address] = self.index(device)
        self.sizes[address] = tensor.numel() * tensor.element_size()
        self.allocated += self.sizes[address]
        return tensor.as_subclass(DeviceTensor)


class Torch:
    """PyTorch with that CUDA: stands in for the name ``torch`` of a module under test."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def zeros(
        self, *shape: Any, device: Any = None, pin_memory: bool = False, **options: Any
    ) -> Any:
        return self._made(torch.zeros, shape, device, pin_memory, options)

    def empty(
        self, *shape: Any, device: Any = None, pin_memory: bool = False, **options: Any
    ) -> Any:
        return self._made(torch.empty, shape, device, pin_memory, options)

    def _made(self, make: Any, shape: Any, device: Any, pin: bool, options: Any) -> Any:
        tensor = make(*shape, **options)
        if device is not None and torch.device(device).type == "cuda":
            return self.cuda.new(tensor, device)
        return tensor.as_subclass(PinnedTensor) if pin else tensor
