"""Parts on streams of their own: nothing is read too early, and the answer is the network's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from export.runtime.parallel_branches import ParallelBranches, parts
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.network import StageTwo


class Stream:
    """Knows which parts were done when its next one starts."""

    def __init__(self) -> None:
        self.done: set[int] = set()

    def wait_event(self, event: set[int]) -> None:
        self.done |= event

    def wait_stream(self, other: Stream) -> None:
        self.done |= other.done

    def record_event(self) -> set[int]:
        return set(self.done)


class Cuda:
    """Stands in for torch.cuda: every part sees what its stream has waited for."""

    def __init__(self) -> None:
        self.Stream = Stream
        self.now = Stream()
        self.maker: dict[int, int] = {}
        self.kept: list[Any] = []
        self.most = 0  # parts that did not wait for one another

    def current_stream(self) -> Stream:
        return self.now

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def watched(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The part, refusing inputs that its stream did not wait for."""

        def run(*inputs: Any) -> Any:
            missing = {self.maker.get(id(x), 0) for x in tree_leaves(inputs)} - self.now.done - {0}
            assert not missing, f"read before part {missing} was done"
            answer = forward(*inputs)
            number = len(self.kept) + 1
            self.most = max(self.most, number - 1 - len(self.now.done))
            self.now.done.add(number)
            self.kept.append(answer)
            self.maker.update((id(x), number) for x in tree_leaves(answer))
            return answer

        return run


@pytest.fixture(params=[("edge", False), ("edge", True), ("edge-lite", True)])
def network(request: pytest.FixtureRequest) -> StageTwo:
    preset, uncertainty = request.param
    made: Any = for_inference(create_model(preset).eval(), uncertainty=uncertainty)
    return made


@torch.inference_mode()
def test_every_part_waits_for_what_it_reads_and_for_little_else(network: StageTwo) -> None:
    images = torch.randn(1, 3, 64, 96)
    wanted = network(images)
    cuda = Cuda()
    branches = ParallelBranches(network, cuda.watched, cuda)
    for _ in range(2):
        given = branches(images)
        torch.testing.assert_close(given, wanted, rtol=0, atol=0)
        assert cuda.now.done == set(range(1, len(cuda.kept) + 1)), "the caller waits for all"
    assert cuda.most > 8
    with branches.in_turn():
        cuda.most = 0
        branches(images)
    assert cuda.most == 0


def test_parts_are_the_whole_network(network: StageTwo) -> None:
    inside = [id(p) for _, part in parts(network) for p in part.parameters()]
    assert sorted(inside) == sorted(id(p) for p in network.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_graph_on_a_gpu_answers_as_the_network(compiled: bool) -> None:
    from export.model_info import ModelInfo
    from export.runtime.torch_engine import TorchEngine
    from medisseg.convention import InputConvention

    torch.manual_seed(0)
    model: Any = create_model("edge").eval()
    model_info = ModelInfo(InputConvention(size=(64, 96)), max_batch=2)
    network = for_inference(model, portable=False)
    engine = TorchEngine(network, model_info, "cuda", "fp32", compiled=compiled)
    for count in (1, 2, 1):
        for _ in range(20):
            images = torch.randn(count, 3, 64, 96)
            with torch.inference_mode():
                wanted = model(images).numpy()
            given = engine.infer(images.numpy())
            np.testing.assert_allclose(given, wanted, rtol=1e-3, atol=1e-3)
