"""The part of a frame that is the endoscopic picture, and how it is chosen.

Processors send whole screens: the picture with names, settings and small pictures beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medisseg.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Image = npt.NDArray[np.uint8]

AUTO, FULL = "auto", "full"


@dataclass(frozen=True)
class Picture:
    """A rectangle of a frame, in pixels.

    Attributes:
        left, top: Its first column and row.
        width, height: Its size.
    """

    left: int
    top: int
    width: int
    height: int

    @classmethod
    def whole(cls, size: tuple[int, ...]) -> Picture:
        """Return the rectangle of a whole frame of ``size`` (height, width)."""
        return cls(0, 0, int(size[1]), int(size[0]))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to index an array with."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    def fills(self, size: tuple[int, ...]) -> bool:
        """Whether it is all of a frame of ``size`` (height, width)."""
        return self == Picture.whole(size)

    def within(self, size: tuple[int, ...]) -> bool:
        """Whether it lies inside a frame of ``size`` (height, width)."""
        return self.left + self.width <= size[1] and self.top + self.height <= size[0]

    def crop(self, image: Any) -> Any:
        """Return its part of an image [H, W, ...]: a view."""
        return image[self.slices]

    def hide_rest(self, image: Image) -> None:
        """Make an image uint8 [H, W, 3] black outside, in place."""
        image[: self.top] = 0
        image[self.top + self.height :] = 0
        image[:, : self.left] = 0
        image[:, self.left + self.width :] = 0

    def place(
        self, part: npt.NDArray[Any], size: tuple[int, int], fill: npt.ArrayLike = 0
    ) -> npt.NDArray[Any]:
        """Return an array [..., H, W] of a frame's ``size``: ``part`` inside, ``fill`` outside."""
        import numpy as np  # here: the runner's options read a Picture, and --help needs no numpy

        if self.fills(size):
            return part
        whole = np.empty((*part.shape[:-2], *size), part.dtype)
        whole[...] = fill
        whole[..., self.slices[0], self.slices[1]] = part
        return whole

    def overlap(self, other: Picture) -> float:
        """Return the intersection over union of two rectangles."""
        width = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        height = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        shared = max(0, width) * max(0, height)
        return shared / (self.area + other.area - shared)

    def contains(self, other: Picture) -> bool:
        """Whether another rectangle lies inside this one, to within 1 % of its sides."""
        wide, high = self.width / 100, self.height / 100
        return (
            other.left >= self.left - wide
            and other.top >= self.top - high
            and other.left + other.width <= self.left + self.width + wide
            and other.top + other.height <= self.top + self.height + high
        )

    def to_list(self) -> list[int]:
        """Return [left, top, width, height]."""
        return [self.left, self.top, self.width, self.height]


def parse_picture(text: str) -> str | Picture:
    """Return "auto", "full" or the rectangle that ``x,y,w,h`` names.

    Raises:
        UserError: Anything else.

    Example:
        >>> parse_picture("660,40,1200,1000")
        Picture(left=660, top=40, width=1200, height=1000)
    """
    if text in (AUTO, FULL):
        return text
    numbers = re.fullmatch(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*,\s*(\d{1,6})\s*", text)
    if not numbers or min(int(numbers[3]), int(numbers[4])) < 16:
        raise UserError(
            f"picture is {text!r}; expected auto, full or x,y,w,h in pixels of the frame "
            "(left, top, width, height; at least 16 x 16)"
        )
    return Picture(*(int(number) for number in numbers.groups()))
