"""Independent parts of a network in parallel, each on a CUDA stream of its own.

At batch 1 hardly a kernel fills a GPU, and a few hundred in a row cost their latencies. Each part
of Stage II gets a CUDA stream: it waits for the parts whose tensors it takes and for nothing
else. What starts on the caller's stream ends there, so a CUDA graph captures the whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from medisseg.model.network import StageTwo

Forward = Callable[..., object]
MAIN = ""  # the caller's stream, which carries the longest way through the network


def parts(network: StageTwo) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts that make up the network, each with the name of its branch.

    Parts of one branch run in the order of the network's forward: the guides from coarse to fine.
    """
    yield MAIN, network.encoder
    for level, field in enumerate(network.fields):
        yield f"field {level}", field
    for name, branch in network.decoupling.named_children():
        yield name, branch
    if network.with_uncertainty:
        yield "uncertainty", network.auxiliary
    for name in ("foreground", "background"):
        for guide in getattr(network, f"guides_{name}"):
            yield name, guide
    for aggregation in network.aggregations:
        yield MAIN, aggregation
    for index, (name, decoder) in enumerate(network.decoders.items()):
        yield name if index else MAIN, decoder  # the finest one is made last
    yield MAIN, network.output


class ParallelBranches:
    """A network whose parts run on streams of their own.

    Between its parts the network only passes tensors on; an operator there would not be waited for.

    Args:
        network: In evaluation mode; its parts' ``forward`` is replaced.
        wrap: What is done to each part's forward before: ``torch.compile``, say.
        cuda: ``torch.cuda``, or what stands in for it in a test.
    """

    def __init__(
        self,
        network: StageTwo,
        wrap: Callable[[Forward], Forward] = lambda forward: forward,
        cuda: ModuleType = torch.cuda,
    ) -> None:
        self._network, self._cuda = network, cuda
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._made: dict[
            int, tuple[torch.Tensor, torch.cuda.Event]
        ] = {}  # id of a tensor -> it and its event
        part: Any
        for branch, part in parts(network):
            if branch != MAIN and branch not in self._streams:
                self._streams[branch] = cuda.Stream()
            part.forward = self._on(branch, wrap(part.forward))

    def __call__(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run images float [N, 3, H, W]; the caller's stream waits for every branch."""
        answer: torch.Tensor | tuple[torch.Tensor, ...] = self._network(images)
        for _, event in self._made.values():
            self._cuda.current_stream().wait_event(event)
        self._made.clear()
        return answer

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run every part on the caller's stream within a block."""
        streams, self._streams = self._streams, {}
        try:
            yield
        finally:
            self._streams = streams

    def _on(self, branch: str, forward: Forward) -> Forward:
        def run(*inputs: object) -> object:
            caller = self._cuda.current_stream()
            stream = self._streams.get(branch, caller)
            for tensor in _tensors(inputs):
                if id(tensor) in self._made:
                    stream.wait_event(self._made[id(tensor)][1])
                elif stream is not caller:
                    stream.wait_stream(caller)
            with self._cuda.stream(stream):
                answer = forward(*inputs)
                event = stream.record_event()
            # Held until all branches are done: memory that is freed serves its own stream at once.
            self._made.update((id(tensor), (tensor, event)) for tensor in _tensors(answer))
            return answer

        return run


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
