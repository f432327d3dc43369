"""A frame in the pipeline, and the state of one stream."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploy.analysis.quality import GOOD
from deploy.analysis.tracking import TemporalFilter, TrackingResult
from deploy.audit import utc_of
from deploy.outputs.recording import VideoRecorder
from deploy.outputs.results import Results
from deploy.pipeline.state import Change, FrameCounter, StreamState
from deploy.pipeline.timing import Timing
from deploy.sources.source import SQUARE, Source
from deploy.status import Settings, StreamStatus
from export.runtime.engine import Array, Values
from medisseg.labels import Label
from medisseg.picture import FULL, Picture
from medisseg.picture_tracker import PictureTracker

if TYPE_CHECKING:
    import av

    from deploy.outputs.score import VideoScore
    from kernels.frames import Mask

log = logging.getLogger(__name__)
NOTHING = TrackingResult((), (), False, 0.0, ())
FRAME = "frame"  # key of the fault that the newest frame had
ON_THE_WAY = 3  # frames of a file from decoding to screen: one comes, one is inferred, one drawn


@dataclass
class Frame:
    """One frame, its mask and its timings; every stage fills in its part.

    Attributes:
        id: Number within its stream, from 0, counting every frame that came.
        time_s: The source's time in seconds.
        arrived: Monotonic seconds at which it was decoded.
        outcome: "processed", "dropped" or "failed".
        off: Why it was not segmented although it could be read; empty if it was.
        aspect: Width of a pixel over its height.
        still: Whether its picture has not changed for some seconds: a frozen camera.
        raw: Its number in the raw recording; None where it is not in it.
        place: The endoscopic picture in the frame: what is judged and segmented.
        visible: What of it may be seen; None: all.
        ms: Milliseconds spent in each stage.
    """

    id: int
    stream: Stream
    picture: av.VideoFrame | None  # None where nothing could be decoded
    time_s: float
    arrived: float
    connection: int = 0
    error: str = ""
    aspect: Fraction = SQUARE
    still: bool = False
    raw: int | None = None
    place: Picture | None = None
    visible: Picture | None = None
    outcome: str = "processed"
    settings: Settings = field(default_factory=Settings)
    rgb: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0, 3), np.uint8))
    quality: str = GOOD
    off: str = ""
    input: Values | None = None  # the network's input, float32 [3, h, w]
    answer: Values | None = None  # the engine's logits, float32 [K, h, w]
    logits: Array | None = None  # the same on the CPU
    mask: Mask | None = None
    shown_mask: npt.NDArray[np.uint8] | None = None
    confidence: float = 0.0
    tracking: TrackingResult = NOTHING
    status: StreamStatus | None = None
    latency_ms: float = 0.0
    on_the_way: bool = True  # neither shown nor given up
    ms: dict[str, float] = field(default_factory=dict)

    @property
    def decoded(self) -> av.VideoFrame:
        """The decoded picture; frames without one end in the source's stage."""
        assert self.picture is not None
        return self.picture

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as shown."""
        height, width = self.rgb.shape[:2]
        return height, width

    @property
    def inside(self) -> tuple[int, int]:
        """(height, width) of the picture in it."""
        return self.place.size if self.place else self.size

    def line(self, overlay: int | None, dice: float | None) -> dict[str, object]:
        """Return the frame's line in ``results.jsonl``."""
        status, mask = self.status, self.mask
        same = mask is not None and self.shown_mask is mask.mask
        shown_rle = None
        if self.shown_mask is not None and not same:
            from kernels.frames import encode_rle

            shown_rle = encode_rle(self.shown_mask)
        values: dict[str, object] = {
            **brief(self),
            "state": status.state if status else None,
            "off": self.off,
            "quality": self.quality,
            "size": list(self.size),
            "picture": self.place.to_list() if self.place else None,
            "area": mask.area if mask else 0,
            "boxes": [list(map(int, box)) for box in mask.boxes] if mask else [],
            "confidence": round(self.confidence, 4),
            "alarm": self.tracking.alarm,
            "tracks": [track.to_dict() for track in self.tracking.shown],
            "flicker": round(self.tracking.flicker, 4),
            "rle": mask.rle if mask else None,
            "shown_rle": shown_rle,
            "raw": self.raw,
            "overlay": overlay,
            "settings": dataclasses.asdict(self.settings),
            "latency_ms": round(self.latency_ms, 3),
            "ms": {stage: round(value, 3) for stage, value in self.ms.items()},
        }
        if len(self.stream.labels) > 1:
            values["classes"] = self._classes()
        if dice is not None:
            values["dice"] = round(dice, 5)
        return values

    def _classes(self) -> list[dict[str, object]]:
        """Return name, colour, pixels and run lengths of each class in what was shown."""
        from kernels.frames import encode_rle

        if self.shown_mask is None:
            return []
        parts = [
            (label, (self.shown_mask == index).astype(np.uint8))
            for index, label in enumerate(self.stream.labels, start=1)
        ]
        return [
            {**dataclasses.asdict(label), "pixels": int(part.sum()), "rle": encode_rle(part)}
            for label, part in parts
            if part.any()
        ]


def brief(frame: Frame) -> dict[str, object]:
    """Return the values of every line, that of a dropped frame too."""
    return {
        "id": frame.id,
        "stream": frame.stream.index,
        "time_s": round(frame.time_s, 6),
        "monotonic_s": round(frame.arrived, 6),
        "utc": utc_of(frame.arrived),
        "outcome": frame.outcome,
        "error": frame.error,
    }


class Stream:
    """A source and what is kept of it: counts, times, state, tracks, recordings."""

    def __init__(
        self,
        index: int,
        source: Source,
        stale_s: float,
        began: float,
        picture: str | Picture = FULL,
    ) -> None:
        self.index = index
        self.source = source
        self.counter = FrameCounter()
        self.timing = Timing()
        self.state = StreamState(source.live, stale_s, began)
        self.temporal = TemporalFilter()
        self.picture = PictureTracker(picture)
        self.place: Picture | None = None  # where it stood in the newest frame
        self.raw_picture = PictureTracker(picture)  # the raw video goes its own way
        self.faults: dict[str, str] = {}  # what of this stream has stopped, and why
        self.slots = threading.Semaphore(ON_THE_WAY)  # taken by files only, released by all
        self.overlay: VideoRecorder | None = None
        self.raw: VideoRecorder | None = None
        self.score: VideoScore | None = None
        self.labels: tuple[Label, ...] = ()  # of the network's classes
        self.results: Results | None = None
        self.raw_offered = 0
        self.raw_missed = 0
        self.warnings: dict[str, int] = {}
        self.quality: dict[str, int] = {}
        self.alarms_on = 0
        self.ended = ""  # why its source gives no more frames
        self.last: Frame | None = None  # the newest shown frame
        self.first_shown: float | None = None
        self.last_shown = 0.0

    def warn(self, text: str) -> bool:
        """Count a warning; return whether it is the first of its kind."""
        self.warnings[text] = self.warnings.get(text, 0) + 1
        return self.warnings[text] == 1

    def missing(self, video: str, frame: Frame, error: Exception) -> None:
        """Count a frame that a recording cannot take, and show it as an alarm."""
        text = f"frames missing from the {video} video"
        self.faults[FRAME] = f"a frame is missing from the {video} video: {error}"
        if self.warn(text):
            log.warning("%s: frame %d: %s", self.source.name, frame.id, self.faults[FRAME])

    def alarms(self) -> tuple[str, ...]:
        """Return the alarms to show, one line each."""
        parts = (self.overlay, self.raw, self.results)
        stopped = [part.stopped for part in parts if part and part.stopped]
        return tuple(dict.fromkeys([*stopped, *self.faults.values()]))

    def status(self, backend: str, frame: Frame | None) -> tuple[StreamStatus, Change | None]:
        """Return the status with ``frame`` on the screen, and the change of state or None."""
        state, reason, age, change = self.state.now()
        tracking = frame.tracking if frame else NOTHING
        recorders = [part for part in (self.overlay, self.raw) if part]
        recording = bool(recorders) and not any(part.stopped for part in recorders)
        status = StreamStatus(
            stream=self.index,
            source=self.source.name,
            state=state,
            reason=reason,
            age_s=age,
            frame_id=frame.id if frame else None,
            frames=self.counter.snapshot(),
            latency_ms={
                "last": self.last.latency_ms if self.last else 0.0,
                **self.timing.percentiles(),
            },
            fps=self.timing.fps(),
            alarm=tracking.alarm,
            tracks=tuple(track.to_dict() for track in tracking.shown),
            quality=frame.quality if frame else GOOD,
            flicker=tracking.flicker,
            size=frame.size if frame else None,
            picture=frame.place.to_list() if frame and frame.place else None,
            aspect=float(frame.aspect) if frame else 1.0,
            recording=recording,
            alarms=self.alarms(),
            backend=backend,
            settings=frame.settings if frame else Settings(),
        )
        return status, change

    def release(self, frame: Frame) -> None:
        """Free a file's slot for the next frame, once for each that is shown or dropped."""
        if frame.on_the_way:
            frame.on_the_way = False
            self.slots.release()

    def shown(self, frame: Frame) -> None:
        """Count a frame as shown now, with its latency."""
        now = time.monotonic()
        self.release(frame)
        self.faults.pop(FRAME, None)
        frame.latency_ms = (now - frame.arrived) * 1e3
        self.timing.shown(frame.latency_ms, frame.arrived)
        self.first_shown = frame.arrived if self.first_shown is None else self.first_shown
        self.last_shown, self.last = now, frame
