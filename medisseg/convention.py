"""How an image becomes a network's input: the one definition that every part preprocesses through.

The resize is bilinear with half-pixel centres, clamped edges and no antialiasing, as in
``torch.nn.functional.interpolate(..., align_corners=False)``; training, prediction, verification
and the runner therefore see the same pixels to within 1/255.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medisseg.schema import Json

if TYPE_CHECKING:
    from kernels.arrays import Array

COLORS = ("RGB", "BGR")
RESIZES = ("stretch", "letterbox")


@dataclass(frozen=True)
class InputConvention:
    """What a network was trained on; travels with every checkpoint, ONNX file and bundle.

    Attributes:
        color: Channel order of the input, "RGB" or "BGR".
        scale: Factor applied to uint8 values before normalisation.
        mean: Per-channel mean of the scaled values, in the order of ``color``.
        std: Per-channel standard deviation, likewise.
        size: Network input (height, width) in pixels, multiples of 16.
        resize: "stretch" to the size, or "letterbox" (keep the aspect, pad with zeros after
            normalisation, centred).
    """

    color: str = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    size: tuple[int, int] = (256, 256)
    resize: str = "stretch"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "size"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.color not in COLORS:
            raise ValueError(f"color is {self.color!r}; expected one of {COLORS}")
        if self.resize not in RESIZES:
            raise ValueError(f"resize is {self.resize!r}; expected one of {RESIZES}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0 or self.scale <= 0:
            raise ValueError(
                f"mean, std and scale must be 3, 3 and 1 numbers, std and scale > 0: {self}"
            )
        if len(self.size) != 2 or any(side < 16 or side % 16 for side in self.size):
            raise ValueError(f"size is {self.size}; expected (height, width), multiples of 16")

    def preprocess(self, image: Array) -> Array:
        """Turn a uint8 RGB image [H, W, 3] into the network's input, float32 [3, h, w].

        A tensor on a GPU gives one there, on PyTorch's current stream.
        """
        from kernels import frames

        # The kernel reads its frame in the order that ``layout`` names and writes RGB.
        swap = self.color == "BGR"
        mean, std = (self.mean[::-1], self.std[::-1]) if swap else (self.mean, self.std)
        pixels = frames.preprocess(
            image,
            self.size,
            tuple(value / (255 * self.scale) for value in mean),
            tuple(value / (255 * self.scale) for value in std),
            layout="RGB",
            resize=self.resize,
        )
        if not swap:
            return pixels
        array = isinstance(pixels, np.ndarray)
        return np.ascontiguousarray(pixels[::-1]) if array else pixels.flip(0)

    def restore(
        self, logits: npt.NDArray[np.float32], frame_size: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Bring logits [K, h, w] back to an image of ``frame_size`` (height, width): [K, H, W]."""
        from kernels import frames

        top, left, height, width = self.content(frame_size)
        inside = np.ascontiguousarray(
            logits[:, top : top + height, left : left + width], np.float32
        )
        restored: npt.NDArray[np.float32] = frames.resize(inside, frame_size)
        return restored

    def content(self, frame_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (top, left, height, width) of a frame's pixels inside the network input."""
        from kernels import frames

        return frames.content(frame_size, self.size, self.resize)

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Json) -> InputConvention:
        """Return the convention that :meth:`to_dict` wrote; unknown fields raise TypeError."""
        return cls(**fields)
