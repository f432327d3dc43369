"""Coordinates between a frame and the endoscopic picture in it; the part that may be shown."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from medisseg.picture import Picture

if TYPE_CHECKING:
    from deploy.analysis.tracking import Region
    from deploy.pipeline.stream import Frame
    from medisseg.picture_tracker import PictureTracker

NOWHERE = Picture(0, 0, 0, 0)


def visible(tracker: PictureTracker, place: Picture) -> Picture:
    """Return the rectangle that may be shown with ``--hide-outside``; empty before it is found."""
    return place if tracker.found else NOWHERE


def on_frame(frame: Frame, found: list[Region]) -> list[Region]:
    """Move a frame's mask and its regions from the picture's coordinates to the frame's.

    ``frame.mask`` is replaced; the regions come back with their boxes moved.
    """
    place, mask = frame.place, frame.mask
    if place is None or mask is None or place.fills(frame.size):
        return found
    from kernels.frames import Mask

    frame.mask = Mask(place.place(mask.on_cpu, frame.size), mask.area)
    return [
        dataclasses.replace(r, box=(r.box[0] + place.left, r.box[1] + place.top, *r.box[2:]))
        for r in found
    ]
