"""A network's forward and backward pass as CUDA graphs: one launch in place of thousands.

Training the ``edge`` preset in eager PyTorch launches 4,400 kernels a step, and the GPU waits for
them: it was busy for 22 of 176 ms (H200, batch 16, 256 x 256). Replayed, only augmentation, losses
and the optimiser are launched one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medisseg.model.output import TrainingOutput


class GraphedNetwork:
    """Calls a network in training mode through a graph that is captured once an input shape.

    Capturing runs the network a few times; its BatchNorm statistics are put back, so that a
    graphed training sees the numbers of an eager one.

    Args:
        network: Returns a :class:`TrainingOutput`; its parameters stay the ones that are trained.
        dtype: Of autocast; float32: none.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.network, self.dtype = network, dtype
        self._captured: dict[tuple[torch.Size, ...], nn.Module] = {}

    def __call__(self, *views: Tensor) -> list[TrainingOutput]:
        """Return the output of each view [N, 3, H, W]; the next call overwrites it."""
        shapes = tuple(view.shape for view in views)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(views)
        flat = self._captured[shapes](*views)
        count = len(flat) // len(views)
        return [_rebuilt(flat[i : i + count]) for i in range(0, len(flat), count)]

    def _capture(self, views: tuple[Tensor, ...]) -> nn.Module:
        before = [buffer.clone() for buffer in self.network.buffers()]
        half = self.dtype != torch.float32
        # Weights cast outside the graph would be read from where they no longer are.
        with torch.autocast("cuda", self.dtype if half else None, half, cache_enabled=False):
            graphed = torch.cuda.make_graphed_callables(
                _Views(self.network), views, allow_unused_input=True
            )
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
        assert isinstance(graphed, nn.Module)  # a module gives a module
        return graphed


class _Views(nn.Module):
    """The network on several views, as tensors alone: what a graph takes and gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(part for view in views for part in _flat(self.network(view)))


def _flat(output: TrainingOutput) -> tuple[Tensor, ...]:
    """Logits, the features in their order and, in stage 2, the three auxiliary maps."""
    maps = (m for m in output[1:4] if isinstance(m, Tensor))
    return (output.logits, *output.features.values(), *maps)


def _rebuilt(flat: tuple[Tensor, ...]) -> TrainingOutput:
    features = dict(zip(("early", "middle", "late"), flat[1:4], strict=True))
    foreground, background, uncertainty = flat[4:] or (None, None, None)
    return TrainingOutput(flat[0], foreground, background, uncertainty, features)
