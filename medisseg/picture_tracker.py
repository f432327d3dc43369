"""Where the endoscopic picture of a video stands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medisseg.picture import AUTO, Picture
from medisseg.picture_search import look, picture_of

if TYPE_CHECKING:
    from medisseg.picture import Image

SAME = 0.95  # overlap of two looks at one picture
LOOKS_TO_MOVE, LOOKS_TO_SHRINK = 2, 4
RETRY_S = 0.1  # between two looks while nothing was found yet


class PictureTracker:
    """Where the picture of a video stands: steady, and found again when the layout changes.

    A dark or blurred frame says nothing; a picture that grows or moves must be seen twice, one
    that shrinks four times, as shadows at its rim shrink it for a while.

    Args:
        choice: "auto", "full" or a rectangle.
        interval: Seconds of the video between two looks.

    Example:
        >>> tracker = PictureTracker()
        >>> [tracker(frame, time).width for frame, time in video]
        [1200, 1200, 1200]
    """

    def __init__(self, choice: str | Picture = AUTO, interval: float = 0.5) -> None:
        self.choice, self.interval = choice, interval
        self._held: Picture | None = None  # None: nothing was found yet
        self._size: tuple[int, ...] = ()
        self._rival: Picture | None = None
        self._votes = 0
        self._looked = -math.inf

    def __call__(self, image: Image, time_s: float) -> Picture:
        """Return where the picture stands in a frame, uint8 RGB [H, W, 3], at a time in seconds.

        Raises:
            UserError: A rectangle that does not lie inside the frame.
        """
        if self.choice != AUTO:
            return picture_of(image, self.choice)
        if image.shape[:2] != self._size:
            self._held, self._rival, self._size = None, None, image.shape[:2]
            self._looked = -math.inf
        wait = RETRY_S if self._held is None else self.interval
        if not 0 <= time_s - self._looked < wait:
            self._looked = time_s
            self._weigh(look(image))
        return self._held or Picture.whole(image.shape)

    @property
    def found(self) -> bool:
        """Whether the picture's place is known: chosen, or found in a frame of this size."""
        return self.choice != AUTO or self._held is not None

    def _weigh(self, found: Picture | None) -> None:
        if found is None:
            return
        held = self._held
        if held is None or held.overlap(found) > SAME:
            self._held, self._rival = held or found, None
            return
        same = self._rival is not None and self._rival.overlap(found) > SAME
        self._votes = self._votes + 1 if same else 1
        self._rival = found
        if self._votes >= (LOOKS_TO_SHRINK if held.contains(found) else LOOKS_TO_MOVE):
            self._held, self._rival = found, None
