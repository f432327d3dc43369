"""What is drawn on a frame: its own mask, its tracks, and where the stream stands, always."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploy.live import AI_OFF, LIVE, OFFLINE, STALE, StreamStatus

if TYPE_CHECKING:
    from deploy.temporal import Track

Picture = npt.NDArray[np.uint8]
MASK = (0, 220, 170)  # RGB; rare in mucosa, and apart from red and green for the colour blind
STATE_COLORS = {
    LIVE: (40, 160, 70),
    STALE: (230, 160, 0),
    OFFLINE: (200, 40, 40),
    AI_OFF: (120, 90, 200),
}
INK, SHADE = (255, 255, 255), (0, 0, 0)


def draw_mask(rgb: Picture, mask: Picture, opacity: float) -> None:
    """Lay a mask uint8 [H, W] of 0 and 1 over its own frame, uint8 RGB [H, W, 3], in place."""
    from kernels import frames

    frames.overlay(rgb, mask, MASK, opacity, True)


def draw_status(rgb: Picture, status: StreamStatus, tracks: tuple[Track, ...] = ()) -> None:
    """Write state, counters, latency, tracks and alarms onto a picture, in place."""
    import cv2

    height, width = rgb.shape[:2]
    scale = max(0.35, min(height / 480, width / 640) * 0.5)
    line = max(10, round(34 * scale))
    for track in tracks:
        x, y, w, h = track.box
        cv2.rectangle(rgb, (x, y), (x + w, y + h), MASK, max(1, round(2 * scale)))
        _text(rgb, f"{track.id}  {track.confidence:.0%}", (x, max(line, y - 4)), scale, MASK)
    if status.alarm:
        cv2.rectangle(rgb, (0, 0), (width - 1, height - 1), MASK, max(2, round(8 * scale)))
    left, top = line // 2, line // 2
    (label_width, _), _ = cv2.getTextSize(status.state, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    box = (left + label_width + line // 2, top + line)
    cv2.rectangle(rgb, (left, top), box, STATE_COLORS[status.state], cv2.FILLED)
    _text(rgb, status.state, (left + line // 4, top + round(line * 0.72)), scale, INK, shade=False)
    _text(rgb, notice(status), (box[0] + line // 3, top + round(line * 0.72)), scale, INK)
    for row, text in enumerate(reversed([*status.alarms, accounts(status)])):
        _text(rgb, text, (left, height - line // 2 - row * line), scale * 0.9, INK)


def draw_tag(rgb: Picture, text: str) -> None:
    """Write a word into the upper right corner, in place."""
    import cv2

    height, width = rgb.shape[:2]
    scale = max(0.35, min(height / 480, width / 640) * 0.5)
    line = max(10, round(34 * scale))
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    left, top = width - text_width - line, line // 2
    cv2.rectangle(rgb, (left, top), (width - line // 2, top + line), SHADE, cv2.FILLED)
    place = (left + line // 4, top + round(line * 0.72))
    _text(rgb, text, place, scale, INK, shade=False)


def notice(status: StreamStatus) -> str:
    """Return the words beside the state."""
    words = []
    if status.state in (STALE, OFFLINE) and status.age_s is not None:
        words.append(f"picture is {status.age_s:.1f} s old")
    if status.reason:
        words.append(status.reason)
    if status.quality != "good":
        words.append(f"{status.quality}: not segmented")
    return ", ".join(words)[:60]


def accounts(status: StreamStatus) -> str:
    """Return the counters and the latency as one line."""
    frames = status.frames
    counted = "in {in} = {processed} + {dropped} dropped + {failed} failed".format(**frames)
    return f"{counted}   {status.latency_ms.get('last', 0.0):.0f} ms   {status.fps:.1f} fps"


def greyed(rgb: Picture, status: StreamStatus) -> Picture:
    """Return the last picture as one that is over: grey, dim, with its age."""
    import cv2

    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dim: Any = (grey // 2).astype(np.uint8)
    draw_status(dim, status)
    return dim


def _text(
    rgb: Picture,
    text: str,
    place: tuple[int, int],
    scale: float,
    color: tuple[int, int, int],
    shade: bool = True,
) -> None:
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    if shade:  # as thin as the text: OpenCV 5 sets thick letters further apart
        cv2.putText(rgb, text, (place[0] + 1, place[1] + 1), font, scale, SHADE, 1)
    cv2.putText(rgb, text, place, font, scale, color, 1)
