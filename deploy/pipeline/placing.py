"""From the frame to the endoscopic picture in it and back; what of a frame may be seen."""

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
    """Return what may be seen where the rest is hidden: nothing while the place is not known."""
    return place if tracker.found else NOWHERE


def on_frame(frame: Frame, found: list[Region]) -> list[Region]:
    """Bring a mask and its regions from the picture to the whole frame."""
    place, mask = frame.place, frame.mask
    if place is None or mask is None or place.fills(frame.size):
        return found
    from kernels.frames import Mask

    frame.mask = Mask(place.place(mask.on_cpu, frame.size), mask.area)
    return [
        dataclasses.replace(r, box=(r.box[0] + place.left, r.box[1] + place.top, *r.box[2:]))
        for r in found
    ]
