"""Where frames become inputs and logits become masks: on the CPU, or on the engine's own GPU.

On a GPU a frame goes up once, as it was decoded; preprocessing, inference and the mask follow
there, and the mask and the small logits come down. Each stage has a stream of its own, so that
copies and inference overlap, and waits for it before it hands a frame on: no memory is used by two
at a time. Outlines and words are drawn on the CPU, where the encoder and the page need the picture.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kernels.frames import Mask
    from medisseg.convention import InputConvention

log = logging.getLogger(__name__)
Picture = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
LIKE_CPU = 1.5  # of 255 levels: how far a trial frame's input may be from the CPU's
SAME_MASK = 0.001  # share of a trial mask's pixels that may differ: logits within rounding of 0


class OnCPU:
    """Frames stay in the host's memory; inputs and answers are numpy arrays."""

    def __init__(self, convention: InputConvention) -> None:
        self.convention = convention

    def prepare(self, rgb: Picture) -> Any:
        """Return the network's input [3, h, w] of a frame uint8 RGB [H, W, 3]."""
        return self.convention.preprocess(rgb)

    def stack(self, inputs: list[Any]) -> Any:
        """Return inputs as one batch [N, 3, h, w]."""
        return inputs[0][None] if len(inputs) == 1 else np.stack(inputs)

    def finish(
        self, logits: Any, frame_size: tuple[int, int], threshold: float
    ) -> tuple[Mask, Logits]:
        """Return the mask at the frame's size and the logits [K, h, w], both on the CPU."""
        from kernels.frames import postprocess

        mask = postprocess(logits, frame_size, threshold, resize=self.convention.resize)
        return mask, logits


class OnGPU(OnCPU):
    """Frames go up to a device as they are; inputs and answers are tensors there."""

    def __init__(self, convention: InputConvention, device: Any) -> None:
        import torch

        super().__init__(convention)
        self._torch: Any = torch
        self._device = torch.device(device)
        self._up, self._down = (torch.cuda.Stream(self._device) for _ in range(2))

    def prepare(self, rgb: Picture) -> Any:
        """As on the CPU; a tensor."""
        with self._torch.cuda.stream(self._up):
            pixels = self._torch.from_numpy(rgb).to(self._device, non_blocking=True)
            made = self.convention.preprocess(pixels)
            self._up.synchronize()
        return made

    def stack(self, inputs: list[Any]) -> Any:
        """As on the CPU; a tensor."""
        return inputs[0][None] if len(inputs) == 1 else self._torch.stack(inputs)

    def finish(
        self, logits: Any, frame_size: tuple[int, int], threshold: float
    ) -> tuple[Mask, Logits]:
        """As on the CPU."""
        from kernels.frames import Mask

        with self._torch.cuda.stream(self._down):
            mask, _ = super().finish(logits, frame_size, threshold)
            return Mask(mask.on_cpu, mask.area), logits.cpu().numpy()


def choose(convention: InputConvention, device: object, classes: int) -> OnCPU:
    """Return the GPU where the engine runs on one and a trial comes out there as on the CPU."""
    on_cpu = OnCPU(convention)
    if not str(device).startswith("cuda"):
        return on_cpu
    try:
        on_gpu = OnGPU(convention, device)
        fault = _difference(on_cpu, on_gpu, classes)
    except Exception as error:  # no CUDA in the extension, another GPU: the CPU can always do it
        fault = str(error)
    if fault:
        log.warning("frames stay on the CPU: %s", fault)
    return on_cpu if fault else on_gpu


def _difference(on_cpu: OnCPU, on_gpu: OnCPU, classes: int) -> str:
    """Say what a trial frame and trial logits come out as on one and not on the other."""
    random, convention = np.random.default_rng(0), on_cpu.convention
    size = (90, 120)
    rgb = random.integers(0, 256, (*size, 3), np.uint8)
    here, there = on_cpu.prepare(rgb), on_gpu.prepare(rgb)
    off = float(np.abs(here - there.cpu().numpy()).max()) * min(convention.std) / convention.scale
    if not off <= LIKE_CPU:
        return f"the GPU prepares a frame otherwise, by {off:.1f} of 255 levels"
    logits = random.normal(size=(classes, *convention.size)).astype(np.float32)
    mine, _ = on_cpu.finish(logits, size, 0.5)
    theirs, _ = on_gpu.finish(there.new_tensor(logits), size, 0.5)
    wrong = float((mine.mask != theirs.mask).mean())
    return "" if wrong <= SAME_MASK else f"the GPU makes another mask, {wrong:.1%} of its pixels"
