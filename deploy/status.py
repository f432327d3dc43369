"""States, settings and status of a stream: what every part of the runner may name.

Imports nothing else of the runner.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from medisseg.colors import Color

LIVE, STALE, OFFLINE, AI_OFF = "LIVE", "STALE", "OFFLINE", "AI-OFF"
STATES = (LIVE, STALE, OFFLINE, AI_OFF)
MAX_HOLD_OFF = 6


class StateColor(NamedTuple):
    """RGB of a state: ``plate`` under white letters in a video, ``light`` on a dark page."""

    plate: Color
    light: Color


STATE_COLORS = {
    LIVE: StateColor((40, 160, 70), (61, 220, 132)),
    STALE: StateColor((230, 160, 0), (255, 194, 51)),
    OFFLINE: StateColor((200, 40, 40), (255, 107, 97)),
    AI_OFF: StateColor((120, 90, 200), (183, 155, 255)),
}


@dataclass(frozen=True)
class Settings:
    """What a person may change while the video runs.

    Attributes:
        threshold: Probability in (0, 1) above which a pixel is drawn as polyp.
        opacity: Opacity of the overlay in [0, 1].
        hold_off: Frames [0, 6] for which a new alarm is held back.
        ai: False shows the video without segmenting it.
    """

    threshold: float = 0.5
    opacity: float = 0.4
    hold_off: int = 3
    ai: bool = True

    def __post_init__(self) -> None:
        for name in ("threshold", "opacity"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} is {value!r}; expected a number")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; expected a number between 0 and 1")
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity is {self.opacity}; expected a number from 0 to 1")
        if type(self.hold_off) is not int or not 0 <= self.hold_off <= MAX_HOLD_OFF:
            raise ValueError(
                f"hold_off is {self.hold_off!r}; expected a whole number from 0 to {MAX_HOLD_OFF}"
            )
        if type(self.ai) is not bool:
            raise ValueError(f"ai is {self.ai!r}; expected true or false")


@dataclass(frozen=True)
class StreamStatus:
    """The status of one stream.

    Attributes:
        stream: Number of the stream, from 0.
        source: What was given on the command line (passwords removed).
        state: One of ``STATES``.
        reason: Why, where there is more to say than the state ("timed out", "turned off").
        age_s: Seconds since the newest frame arrived; None before the first.
        frame_id: Id of the newest shown frame; None before the first.
        frames: {"in", "processed", "dropped", "failed", "in_flight"}; always
            in = processed + dropped + failed, and in_flight frames are on their way.
        latency_ms: {"last", "p50", "p99"} from arrival to shown, milliseconds.
        fps: Shown frames a second over the last seconds.
        alarm: Whether at least one polyp is shown.
        tracks: Shown tracks: {"id", "first_seen_s", "area", "box", "confidence"} each.
        quality: "good", or why the frame was not segmented ("blurred", "dark", ...).
        flicker: Instability of the raw masks over the last second, in [0, 1].
        size: (height, width) of the frames in pixels.
        picture: [left, top, width, height] of the endoscopic picture in them, in pixels.
        aspect: Width of a pixel over its height.
        recording: Whether both videos are being written.
        alarms: Lines that a person must see ("recording stopped: no space left").
        backend: Name of the engine.
        settings: The settings that the newest frame saw.
    """

    stream: int
    source: str
    state: str = OFFLINE
    reason: str = ""
    age_s: float | None = None
    frame_id: int | None = None
    frames: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    fps: float = 0.0
    alarm: bool = False
    tracks: tuple[dict[str, Any], ...] = ()
    quality: str = "good"
    flicker: float = 0.0
    size: tuple[int, int] | None = None
    picture: list[int] | None = None
    aspect: float = 1.0
    recording: bool = False
    alarms: tuple[str, ...] = ()
    backend: str = ""
    settings: Settings = field(default_factory=Settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return dataclasses.asdict(self)


def notice(status: StreamStatus) -> str:
    """Return the text to show with the state: age in seconds, reason, quality."""
    words = []
    if status.state in (STALE, OFFLINE) and status.age_s is not None:
        words.append(f"picture is {status.age_s:.1f} s old")
    if status.reason:
        words.append(status.reason)
    if status.quality != "good":
        words.append(f"{status.quality}: not segmented")
    return ", ".join(words)[:60]


def fault_of(status: StreamStatus) -> str:
    """Return why a stream's frames are not segmented; empty where they are, or are not to be."""
    turned_off = status.state == AI_OFF and not status.settings.ai
    if status.state == LIVE or turned_off:
        return ""
    return f"stream {status.stream}: {status.state} {notice(status)}".rstrip()


def accounts(status: StreamStatus) -> str:
    """Return the counters and the latency as one line."""
    frames = status.frames
    counted = "in {in} = {processed} + {dropped} dropped + {failed} failed".format(**frames)
    return f"{counted}   {status.latency_ms.get('last', 0.0):.0f} ms   {status.fps:.1f} fps"
