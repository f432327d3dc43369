"""A call's time on a GPU: one CUDA graph of many calls, replayed, over inputs outside the cache.

Queued plain calls time the launches of short kernels; a graph's replay has none. Calls take turns
over copies of their inputs that together are ROTATED times the L2 cache, so that none finds its
input there (Dao's quack does the same). What is warmed is time, not calls: clocks rise by the
millisecond. ``Gpu`` is what a GPU must offer; the tests give one that only counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

ROTATED = 3  # times the L2 cache that the copies of the inputs take
GRAPHED = 20  # calls in a graph at least: its own launch is a twentieth of each
MOST_COPIES = 512  # of small inputs, whose rows say that they did not fill so much
WARM = 0.2  # seconds


class Gpu(Protocol):
    """Capture and time."""

    l2_bytes: int

    def capture(self, calls: Callable[[], Any]) -> Callable[[], Any]:
        """Return what replays all that ``calls`` launches."""

    def seconds(self, replay: Callable[[], Any]) -> float:
        """Return the GPU's time for it."""


def copies_for(input_bytes: int, l2_bytes: int) -> int:
    """How many copies of the inputs the calls take turns over."""
    return min(max(1, math.ceil(ROTATED * l2_bytes / max(input_bytes, 1))), MOST_COPIES)


def replayed(
    prepare: Callable[[int], Callable[[], Any]],
    copies: int,
    gpu: Gpu,
    seconds: float,
    fewest: int = 5,
) -> list[float]:
    """Return the seconds of one call, one number a replay, over about ``seconds``.

    Args:
        prepare: Makes the call over copy ``i``; called where the graph is captured.
        copies: Copies that the calls take turns over.
        gpu: Captures and times.
        seconds: 0 takes ``fewest`` replays without warming.
        fewest: Replays at least.
    """
    runs: list[Callable[[], Any]] = []
    count = math.ceil(GRAPHED / copies) * copies

    def calls() -> None:
        if not runs:
            runs.extend(prepare(index) for index in range(copies))
        for index in range(count):
            runs[index % copies]()

    replay = gpu.capture(calls)
    spent = 0.0
    while seconds and spent < WARM:
        spent += gpu.seconds(replay)
    times: list[float] = []
    while len(times) < fewest or sum(times) * count < seconds:
        times.append(gpu.seconds(replay) / count)
    return times


class Cuda:
    """The current CUDA device, on one stream: a backward pass runs where its forward pass ran."""

    def __init__(self) -> None:
        import torch

        self.l2_bytes = torch.cuda.get_device_properties("cuda").L2_cache_size
        self._stream = torch.cuda.Stream()

    def capture(self, calls: Callable[[], Any]) -> Callable[[], Any]:
        """Call twice outside the graph, where compilation and first allocations belong."""
        import torch

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            calls()
            calls()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            calls()
        return graph.replay

    def seconds(self, replay: Callable[[], Any]) -> float:
        """The time between two events on the stream."""
        import torch

        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            before.record()
            replay()
            after.record()
        after.synchronize()
        return 1e-3 * before.elapsed_time(after)


def size_of(tensors: Sequence[Any]) -> int:
    """Bytes of tensors."""
    return sum(x.numel() * x.element_size() for x in tensors)
