"""Preprocessing and postprocessing on the CPU, or on the GPU that the engine runs on.

On a GPU a frame is copied there once, as it was decoded; preprocessing, inference and the mask
follow there, and the mask and the small logits are copied back. Each direction has a CUDA stream
of its own, so that copies and inference overlap, and is waited for before a frame is handed on: no
memory is used by two stages at a time. Outlines and words are drawn on the CPU, where the encoder
and the page need the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from export.runtime.engine import Array, Values

if TYPE_CHECKING:
    import torch

    from kernels.frames import Mask
    from medisseg.convention import InputConvention

log = logging.getLogger(__name__)
Picture = npt.NDArray[np.uint8]
LIKE_CPU = 1.5  # of 255 levels: how far a trial frame's input may be from the CPU's
SAME_MASK = 0.001  # share of a trial mask's pixels that may differ: logits within rounding of 0


class CpuProcessor:
    """Frames stay in the host's memory; inputs and answers are numpy arrays."""

    def __init__(self, convention: InputConvention) -> None:
        self.convention = convention

    def prepare(self, rgb: Picture) -> Values:
        """Return the network's input, float32 [3, h, w], of a frame uint8 RGB [H, W, 3]."""
        values: Values = self.convention.preprocess(rgb)
        return values

    def stack(self, inputs: Sequence[Values]) -> Values:
        """Return inputs [3, h, w] as one batch [N, 3, h, w]; a single one is not copied."""
        return inputs[0][None] if len(inputs) == 1 else np.stack(cast("Sequence[Array]", inputs))

    def finish(
        self, logits: Values, frame_size: tuple[int, int], threshold: float
    ) -> tuple[Mask, Array]:
        """Return the mask uint8 [H, W] at the frame's size and the logits float32 [K, h, w].

        Args:
            logits: The engine's answer for one frame, [K, h, w].
            frame_size: (height, width) of the frame in pixels.
            threshold: Probability in (0, 1) above which a pixel is foreground.
        """
        return self._mask(logits, frame_size, threshold), cast("Array", logits)

    def _mask(self, logits: Values, frame_size: tuple[int, int], threshold: float) -> Mask:
        from kernels.frames import postprocess

        return postprocess(logits, frame_size, threshold, resize=self.convention.resize)


class GpuProcessor(CpuProcessor):
    """Frames are copied to a device once; inputs and answers are tensors there."""

    def __init__(self, convention: InputConvention, device: torch.device | str) -> None:
        import torch

        super().__init__(convention)
        self._device = torch.device(device)
        self._up, self._down = (torch.cuda.Stream(self._device) for _ in range(2))

    def prepare(self, rgb: Picture) -> Values:
        """Return the network's input, a tensor float32 [3, h, w] on the device."""
        import torch

        with torch.cuda.stream(self._up):
            pixels = torch.from_numpy(rgb).to(self._device, non_blocking=True)
            prepared: Values = self.convention.preprocess(pixels)
            self._up.synchronize()
        return prepared

    def stack(self, inputs: Sequence[Values]) -> Values:
        """Return tensors [3, h, w] as one batch [N, 3, h, w]; a single one is not copied."""
        import torch

        tensors = cast("list[torch.Tensor]", inputs)
        return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)

    def finish(
        self, logits: Values, frame_size: tuple[int, int], threshold: float
    ) -> tuple[Mask, Array]:
        """Return the mask uint8 [H, W] and logits float32 [K, h, w], both copied to the CPU.

        Arguments as for :meth:`CpuProcessor.finish`; ``logits`` is a tensor on the device.
        """
        import torch

        from kernels.frames import Mask

        with torch.cuda.stream(self._down):
            mask = self._mask(logits, frame_size, threshold)
            return Mask(mask.on_cpu, mask.area), cast("torch.Tensor", logits).cpu().numpy()


def choose(convention: InputConvention, device: torch.device | str, classes: int) -> CpuProcessor:
    """Return the processor for an engine on ``device``.

    The GPU's is taken where the engine runs on one, and a trial frame and trial logits come out
    there as on the CPU.
    """
    on_cpu = CpuProcessor(convention)
    if not str(device).startswith("cuda"):
        return on_cpu
    try:
        on_gpu = GpuProcessor(convention, device)
        fault = _difference(on_cpu, on_gpu, classes)
    except Exception as error:  # no CUDA in the extension, another GPU: the CPU can always do it
        fault = str(error)
    if fault:
        log.warning("frames stay on the CPU: %s", fault)
    return on_cpu if fault else on_gpu


def _difference(on_cpu: CpuProcessor, on_gpu: GpuProcessor, classes: int) -> str:
    """Return how the two differ on a generated frame and logits; empty where they agree."""
    random, convention = np.random.default_rng(0), on_cpu.convention
    size = (90, 120)
    rgb = random.integers(0, 256, (*size, 3), np.uint8)
    here = cast("Array", on_cpu.prepare(rgb))
    there = cast("torch.Tensor", on_gpu.prepare(rgb))
    off = float(np.abs(here - there.cpu().numpy()).max()) * min(convention.std) / convention.scale
    if not off <= LIKE_CPU:
        return f"the GPU prepares a frame otherwise, by {off:.1f} of 255 levels"
    logits = random.normal(size=(classes, *convention.size)).astype(np.float32)
    mine, _ = on_cpu.finish(logits, size, 0.5)
    theirs, _ = on_gpu.finish(there.new_tensor(logits), size, 0.5)
    wrong = float((mine.mask != theirs.mask).mean())
    return "" if wrong <= SAME_MASK else f"the GPU makes another mask, {wrong:.1%} of its pixels"
