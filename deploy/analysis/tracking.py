"""From masks of single frames to alarms: hold-off, hysteresis, tracks and flicker.

Most false activations of a polyp detector last under three frames; in a study of 111 colonoscopies
holding an alarm back up to six frames would have removed 88 % of them. So a region becomes an alarm
only once it was there in more than ``hold_off`` consecutive frames. Masks are never carried over:
what is drawn on a frame is the part of its own mask that belongs to a shown track.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medisseg.labels import Label

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
RELEASE = 5  # frames for which a shown track may be missing before its alarm ends
START_MARGIN = 0.2  # share of the way from the threshold to 1 that a new track must reach
MIN_OVERLAP = 0.2  # IoU of boxes that are the same region
# What finds no overlap is tried again with boxes larger by half on every side (buffered IoU, Yang
# et al. 2023): a polyp may move by its own size between two frames. CVC-ClinicDB at 10 frames a
# second, hold-off 3: mean Dice of what is shown 0.60 instead of 0.39, 13 alarms instead of 18.
BUFFER = 0.5
MAX_GAP_S = 1.0  # after longer silence nothing is the same region
FLICKER_FRAMES = 25


@dataclass(frozen=True)
class Region:
    """One region of one frame: box in pixels, area in pixels, mean probability in [0, 1], and the
    class that most of its pixels have (None: the network has one, without a name)."""

    box: Box
    area: int
    confidence: float
    label: Label | None = None


@dataclass
class Track:
    """One region over time. ``seen`` counts consecutive frames, ``missed`` those since; ``label``
    is the class that it had in most frames so far."""

    id: int
    first_seen_s: float
    first_frame: int
    box: Box
    area: int
    confidence: float
    seen: int = 1
    missed: int = 0
    shown: bool = False
    label: Label | None = None
    votes: Counter[Label] = field(default_factory=Counter, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the track as JSON-ready values."""
        values = asdict(replace(self, votes=Counter()))
        del values["votes"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Track:
        """Return the track that :meth:`to_dict` wrote."""
        label = values.get("label")
        made = Label(label["name"], tuple(label["color"])) if label else None
        return cls(**{**values, "label": made})


@dataclass(frozen=True)
class TrackingResult:
    """What is shown on a frame.

    Attributes:
        shown: Shown tracks that are on this frame.
        hidden: Boxes of this frame's regions that must not be drawn.
        alarm: Whether an alarm is on: a shown track, on this frame or missing for a moment.
        flicker: Mean of 1 - IoU between the raw masks of successive frames over the last second.
        events: ("alarm on" or "alarm off", track) since the frame before.
    """

    shown: tuple[Track, ...]
    hidden: tuple[Box, ...]
    alarm: bool
    flicker: float
    events: tuple[tuple[str, Track], ...]


class TemporalFilter:
    """Tracks regions over the frames of one stream, and decides which of them are shown."""

    def __init__(self) -> None:
        self._tracks: list[Track] = []
        self._next_id = 1
        self._last_s: float | None = None
        self._last_mask: npt.NDArray[np.bool_] | None = None
        self._changes: deque[float] = deque(maxlen=FLICKER_FRAMES)

    def update(
        self,
        regions: list[Region],
        moment: float,
        frame_id: int,
        threshold: float,
        hold_off: int,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> TrackingResult:
        """Take the next frame, and return what is shown on it.

        Args:
            regions: Regions of its mask, boxes in pixels.
            moment: Its time in seconds, on the source's clock.
            frame_id: Its number in the stream.
            threshold: Probability above which pixels are foreground.
            hold_off: Frames for which a new alarm is held back.
            mask: Raw mask for the flicker score, bool [h, w]; None for a frame not segmented.
        """
        events: list[tuple[str, Track]] = []
        if self._last_s is not None and not 0 <= moment - self._last_s <= MAX_GAP_S:
            events += self._end(self._tracks)
            self._last_mask = None
        self._last_s = moment
        matched = self._match(regions)
        start = threshold + START_MARGIN * (1 - threshold)
        for index, region in enumerate(regions):
            if index in matched:
                _follow(matched[index], region)
            elif region.confidence >= start:
                self._tracks.append(self._new(region, moment, frame_id))
                matched[index] = self._tracks[-1]
        present = {id(track) for track in matched.values()}
        for track in self._tracks:
            if id(track) not in present:
                track.missed, track.seen = track.missed + 1, 0
        for track in matched.values():
            if not track.shown and track.seen > hold_off:
                track.shown = True
                events.append(("alarm on", track))
        events += self._end([t for t in self._tracks if t.missed > (RELEASE if t.shown else 0)])
        shown = [index for index, track in matched.items() if track.shown]
        return TrackingResult(
            # Copies: the frame is drawn while the tracks already follow the next one.
            tuple(replace(matched[index]) for index in shown),
            tuple(f.box for index, f in enumerate(regions) if index not in shown),
            any(track.shown for track in self._tracks),
            self._flicker(mask),
            tuple((event, replace(track)) for event, track in events),
        )

    def _match(self, regions: list[Region]) -> dict[int, Track]:
        """Assign regions to tracks: by IoU first, then by the IoU of boxes that are enlarged."""
        pairs = sorted(
            (
                (
                    overlap(region.box, track.box),
                    overlap(buffered(region.box), buffered(track.box)),
                    index,
                    number,
                )
                for index, region in enumerate(regions)
                for number, track in enumerate(self._tracks)
            ),
            reverse=True,
        )
        matched: dict[int, Track] = {}
        used: set[int] = set()
        for value, near, index, number in pairs:
            if max(value, near) >= MIN_OVERLAP and index not in matched and number not in used:
                matched[index] = self._tracks[number]
                used.add(number)
        return matched

    def _new(self, region: Region, moment: float, frame_id: int) -> Track:
        track = Track(self._next_id, moment, frame_id, region.box, region.area, region.confidence)
        _vote(track, region)
        self._next_id += 1
        return track

    def _end(self, ended: list[Track]) -> list[tuple[str, Track]]:
        gone = {id(track) for track in ended}
        self._tracks = [track for track in self._tracks if id(track) not in gone]
        return [("alarm off", track) for track in ended if track.shown]

    def _flicker(self, mask: npt.NDArray[np.bool_] | None) -> float:
        if mask is not None:
            if self._last_mask is not None and self._last_mask.shape == mask.shape:
                either = np.count_nonzero(mask | self._last_mask)
                both = np.count_nonzero(mask & self._last_mask)
                self._changes.append(1 - both / either if either else 0.0)
            self._last_mask = mask
        return float(np.mean(self._changes)) if self._changes else 0.0


def _follow(track: Track, region: Region) -> None:
    track.box, track.area, track.confidence = region.box, region.area, region.confidence
    track.seen, track.missed = track.seen + 1, 0
    _vote(track, region)


def _vote(track: Track, region: Region) -> None:
    """Add a frame's class to the track's majority vote; a tie keeps the class before."""
    if region.label is None:
        return
    track.votes[region.label] += 1
    if track.label is None or track.votes[region.label] > track.votes[track.label]:
        track.label = region.label


def buffered(box: Box) -> Box:
    """Return a box enlarged by ``BUFFER`` times its width or height on every side."""
    x, y, width, height = box
    right, down = round(BUFFER * width), round(BUFFER * height)
    return x - right, y - down, width + 2 * right, height + 2 * down


def overlap(a: Box, b: Box) -> float:
    """Return the IoU of two boxes, or 1 where the smaller one lies inside the other."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both, sizes = width * height, (a[2] * a[3], b[2] * b[3])
    if both == min(sizes):
        return 1.0
    return both / (sum(sizes) - both)
