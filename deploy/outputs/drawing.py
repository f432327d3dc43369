"""Drawing on a frame: its mask, its tracks, and the state of the stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploy.status import STATE_COLORS, StreamStatus, accounts, notice
from medisseg.colors import LESION, RIM, WHITE, Color
from medisseg.text import plain

if TYPE_CHECKING:
    from deploy.analysis.tracking import Track
    from medisseg.labels import Label
    from medisseg.picture import Picture

Pixels = npt.NDArray[np.uint8]


def draw_mask(rgb: Pixels, mask: Pixels, opacity: float, labels: tuple[Label, ...] = ()) -> None:
    """Lay a mask uint8 [H, W] of class indices over its own frame, uint8 RGB [H, W, 3], in place.

    Classes have their labels' colours; without labels all that is not 0 has one.
    """
    from kernels import frames

    if len(labels) < 2:
        frames.overlay(rgb, mask, labels[0].color if labels else LESION, opacity, True)
        return
    for index in np.unique(mask[mask > 0]).tolist():
        part = (mask == index).astype(np.uint8)
        frames.overlay(rgb, part, labels[index - 1].color, opacity, True)


def draw_place(rgb: Pixels, place: Picture | None) -> None:
    """Outline the endoscopic picture on a frame uint8 RGB [H, W, 3], in place, if it is a part."""
    import cv2

    if place is None or place.fills(rgb.shape):
        return
    corners = (place.left, place.top), (place.left + place.width - 1, place.top + place.height - 1)
    cv2.rectangle(rgb, *corners, RIM, 1)


def draw_status(rgb: Pixels, status: StreamStatus, tracks: tuple[Track, ...] = ()) -> None:
    """Write state, counters, latency, tracks and alarms onto uint8 RGB [H, W, 3], in place."""
    import cv2

    height, width = rgb.shape[:2]
    scale = text_scale(rgb)
    line = round(34 * scale)
    for track in tracks:
        x, y, w, h = track.box
        color = track.label.color if track.label else LESION
        cv2.rectangle(rgb, (x, y), (x + w, y + h), color, max(1, round(2 * scale)))
        above = y - line - 2
        place = (x, above if above >= 0 else min(y + h + 2, height - line))
        name = f"{track.label.name}  " if track.label else ""
        _label(rgb, f"{track.id}  {name}{track.confidence:.0%}", place, scale, color)
    if status.alarm:
        cv2.rectangle(rgb, (0, 0), (width - 1, height - 1), LESION, max(2, round(8 * scale)))
    margin = line // 2
    right = _label(
        rgb, status.state, (margin, margin), scale, plate=STATE_COLORS[status.state].plate
    )
    _label(rgb, notice(status), (right + margin // 2, margin), scale)
    lines = [*status.alarms, accounts(status)]
    for row, text in enumerate(reversed(lines), start=1):
        _label(rgb, text, (margin, height - margin - row * line), scale)


def draw_tag(rgb: Pixels, text: str) -> None:
    """Write a word into the upper right corner of uint8 RGB [H, W, 3], in place."""
    scale, text = text_scale(rgb), plain(text)
    margin = round(34 * scale) // 2
    _label(rgb, text, (rgb.shape[1] - margin - _text_width(text, scale), margin), scale)


def text_scale(rgb: Pixels) -> float:
    """Return OpenCV's font scale for a picture [H, W, 3]: 0.5 at 640 x 480, 0.42 at least."""
    height, width = rgb.shape[:2]
    return float(max(0.42, min(height / 480, width / 640) * 0.5))


def greyed(rgb: Pixels, status: StreamStatus) -> Pixels:
    """Return a dimmed grey copy of the last picture uint8 RGB [H, W, 3], with the status on it."""
    import cv2

    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    dim: Pixels = (grey // 2).astype(np.uint8)
    draw_status(dim, status)
    return dim


def _label(
    rgb: Pixels,
    text: str,
    place: tuple[int, int],
    scale: float,
    color: Color = WHITE,
    plate: Color | None = None,
) -> int:
    """Write a line at its upper left corner, on a plate (default: what is there, darkened).

    Without a plate a shadow would have to carry the letters: at 384 x 288 it blurs them. Text that
    is too long for the picture becomes smaller, and what is not printable is written out: OpenCV
    ends the process at half a surrogate pair. Returns the column right of it.
    """
    import cv2

    if not text:
        return place[0]
    text = plain(text)
    height, width = rgb.shape[:2]
    line, available = round(34 * scale), width - place[0] - 2
    needed = _text_width(text, scale)
    if needed > available:
        scale, needed = scale * max(available, 1) / needed, available
    left, top = max(0, place[0]), min(max(0, place[1]), max(0, height - line))
    under = rgb[top : top + line, left : left + needed]
    if plate is None:
        np.right_shift(under, 2, out=under)
    else:
        under[:] = plate
    at = (left + _padding(scale), top + round(line * 0.72))
    cv2.putText(rgb, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
    return left + needed


def _padding(scale: float) -> int:
    return max(2, round(8 * scale))


def _text_width(text: str, scale: float) -> int:
    import cv2

    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    return width + 2 * _padding(scale)
