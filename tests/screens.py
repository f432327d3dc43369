"""Screens as endoscopy processors, capture cards and archive viewers show them, for tests.

A picture is put on a canvas together with text, insets, panels and frames; where it stands is
known to the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, width, height
WORDS = ("NAME: ANNA MUSTER", "ID 4711-08", "17/03/2026", "10:42:31", "SEX: F  AGE: 61", "CVP:A1/4")
WORDS += ("Dr. Example", "Zoom 1.0x", "NBI", "BLI-bright", "STRUCT: A5", "WLI", "D.F: 2", "REC")


@dataclass(frozen=True)
class Layout:
    """Where things stand on a screen; all boxes are (left, top, width, height) in pixels.

    Attributes:
        size: (height, width) of the screen.
        box: The endoscopic picture.
        shape: "rectangle", "octagon", "circle", or "cut" (a circle with flat top and bottom).
        canvas: Colour of the background, RGB; two colours make a vertical gradient.
        text: Top-left corners and heights of blocks of lines.
        insets: Small pictures, shown over everything.
        panels: Flat areas with their colours.
        frame: Width and colour of a line round the picture; 0: none.
        second: A second picture of another kind beside the first.
    """

    size: tuple[int, int]
    box: Box
    shape: str = "rectangle"
    canvas: tuple[tuple[int, int, int], ...] = ((0, 0, 0),)
    text: tuple[tuple[int, int, int], ...] = ()
    insets: tuple[Box, ...] = ()
    panels: tuple[tuple[Box, tuple[int, int, int]], ...] = ()
    frame: tuple[int, tuple[int, int, int]] = (0, (0, 0, 0))
    second: Box | None = None


LAYOUTS: dict[str, Layout] = {
    "full HD, octagon right, text left, inset": Layout(
        (1080, 1920),
        (660, 40, 1200, 1000),
        "octagon",
        text=((60, 80, 30), (60, 560, 24)),
        insets=((60, 760, 380, 280),),
    ),
    "PAL picture in full HD": Layout((1080, 1920), (600, 252, 720, 576), text=((40, 40, 28),)),
    "round in 1280 x 1024": Layout((1024, 1280), (140, 12, 1000, 1000), "circle"),
    "pillar-boxed full HD": Layout((1080, 1920), (240, 0, 1440, 1080)),
    "PAL with text": Layout(
        (576, 720), (200, 20, 510, 536), "octagon", text=((12, 40, 16), (12, 400, 14))
    ),
    "letterboxed": Layout((1080, 1920), (0, 132, 1920, 816), text=((30, 1020, 22),)),
    "blue screen, picture left": Layout(
        (768, 1024), (30, 60, 640, 640), "cut", ((20, 40, 120),), text=((720, 90, 24),)
    ),
    "viewer with panels": Layout(
        (1080, 1920),
        (420, 96, 1180, 944),
        canvas=((60, 60, 64),),
        panels=(
            ((0, 0, 1920, 72), (32, 90, 160)),
            ((0, 72, 400, 1008), (225, 228, 232)),
            ((1640, 72, 280, 1008), (44, 46, 50)),
        ),
        text=((20, 120, 24), (1660, 200, 22)),
    ),
    "panel touching the picture": Layout(
        (1080, 1920),
        (384, 0, 1536, 1080),
        panels=(((0, 0, 384, 1080), (30, 44, 70)),),
        text=((24, 60, 28), (24, 700, 22)),
    ),
    "two pictures": Layout(
        (1080, 1920), (20, 120, 1000, 840), text=((30, 30, 28),), second=(1060, 240, 820, 640)
    ),
    "thin bright frame": Layout(
        (1024, 1280), (300, 100, 900, 820), frame=(3, (240, 240, 240)), text=((20, 120, 20),)
    ),
    "ultra HD, small octagon": Layout(
        (2160, 3840),
        (1500, 500, 1280, 1080),
        "octagon",
        text=((100, 200, 60),),
        insets=((3200, 1500, 560, 420),),
    ),
    "inset over the picture's corner": Layout(
        (1080, 1920), (300, 20, 1300, 1040), "octagon", insets=((180, 760, 360, 300),)
    ),
    "grey gradient": Layout(
        (720, 1280),
        (520, 40, 700, 640),
        "octagon",
        ((24, 24, 30), (70, 70, 84)),
        text=((30, 60, 22),),
    ),
    "white page": Layout(
        (1050, 1680), (60, 160, 900, 800), canvas=((255, 255, 255),), text=((1000, 200, 30),)
    ),
    "touching the right border": Layout(
        (1080, 1920), (720, 0, 1200, 1080), "octagon", text=((40, 60, 30), (40, 800, 26))
    ),
}


def draw(picture: Pixels, layout: Layout, inset: Pixels | None = None) -> Pixels:
    """Return the screen, uint8 RGB, with ``picture`` (any size) where the layout wants it."""
    screen = _canvas(layout)
    for (left, top, width, height), color in layout.panels:
        screen[top : top + height, left : left + width] = color
    for left, top, height in layout.text:
        _write(screen, left, top, height, len(layout.canvas[0]) and screen[top, left])
    other = picture[::-1, ::-1] if inset is None else inset
    if layout.second:
        _put(screen, other, layout.second, "rectangle")
    left, top, width, height = layout.box
    line, color = layout.frame
    if line:
        outside = (left - 8, top - 8), (left + width + 8, top + height + 8)
        cv2.rectangle(screen, *outside, color, line)
    _put(screen, picture, layout.box, layout.shape)
    for box in layout.insets:
        _put(screen, other, box, "rectangle")
    return screen


def shape_mask(shape: str, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Return which pixels of a picture's box show the picture, bool [height, width]."""
    mask = np.zeros((height, width), np.uint8)
    if shape == "rectangle":
        return mask == 0
    if shape == "octagon":
        cut = round(0.17 * min(width, height))
        corners = [(cut, 0), (width - 1 - cut, 0), (width - 1, cut), (width - 1, height - 1 - cut)]
        corners += [(width - 1 - cut, height - 1), (cut, height - 1), (0, height - 1 - cut)]
        cv2.fillConvexPoly(mask, np.int32([*corners, (0, cut)]), 1)
        return mask > 0
    across = (width, height) if shape == "circle" else (width, round(height * 1.18))
    y, x = np.mgrid[:height, :width]
    x, y = (x - (width - 1) / 2) / (across[0] / 2), (y - (height - 1) / 2) / (across[1] / 2)
    return x**2 + y**2 <= 1


def degrade(screen: Pixels, noise: float = 0, jpeg: int = 0, seed: int = 0) -> Pixels:
    """Return the screen with Gaussian noise (sigma in grey levels) and as JPEG of a quality."""
    if noise:
        grain = np.random.default_rng(seed).normal(0, noise, screen.shape)
        screen = np.clip(screen + grain, 0, 255).astype(np.uint8)
    if jpeg:
        data = cv2.imencode(".jpg", screen[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, jpeg])[1]
        screen = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()
    return screen


def overlap(one: Box, two: Box) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one[0] + one[2], two[0] + two[2]) - max(one[0], two[0])
    height = min(one[1] + one[3], two[1] + two[3]) - max(one[1], two[1])
    shared = max(0, width) * max(0, height)
    return shared / (one[2] * one[3] + two[2] * two[3] - shared)


def random_layout(seed: int) -> Layout:
    """Draw a layout: screen, place, shape, canvas, text and insets that do not hide the picture."""
    draw_ = np.random.default_rng(seed)
    sizes = ((1080, 1920), (1024, 1280), (720, 1280), (576, 720), (480, 720), (1200, 1600))
    height, width = sizes[draw_.integers(len(sizes))]
    tall = int(height * draw_.uniform(0.5, 1.0))
    wide = min(width, int(tall * draw_.uniform(0.95, 1.45)))
    left, top = int(draw_.integers(0, width - wide + 1)), int(draw_.integers(0, height - tall + 1))
    shape = ("rectangle", "octagon", "circle", "cut")[draw_.integers(4)]
    canvases = ((0, 0, 0), (0, 0, 0), (16, 16, 16), (12, 14, 22), (40, 44, 52), (18, 40, 110))
    canvas = canvases[draw_.integers(len(canvases))]
    free = [(left, 0), (width - left - wide, left + wide)]
    text, insets = [], []
    for space, start in free:
        if space > 0.18 * width:
            text.append((start + 12, int(height * draw_.uniform(0.03, 0.4)), max(12, height // 40)))
            size = int(space * 0.7), int(space * 0.5)
            if size[1] < 0.4 * height and size[0] * size[1] < 0.2 * wide * tall:
                insets.append((start + space // 8, height - size[1] - 10, *size))
    return Layout((height, width), (left, top, wide, tall), shape, (canvas,), tuple(text),
                  tuple(insets))  # fmt: skip


def _canvas(layout: Layout) -> Pixels:
    height, width = layout.size
    first, last = np.float32(layout.canvas[0]), np.float32(layout.canvas[-1])
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    column = np.rint(first + share * (last - first)).astype(np.uint8)
    return np.repeat(column[:, None], width, 1)


def _put(screen: Pixels, picture: Pixels, box: Box, shape: str) -> None:
    left, top, width, height = box
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = shape_mask(shape, width, height)
    screen[top : top + height, left : left + width][mask] = resized[mask]


def _write(screen: Pixels, left: int, top: int, height: int, under: Pixels) -> None:
    color = (20, 20, 20) if int(np.mean(under)) > 128 else (225, 225, 215)
    scale = height / 30
    for row, word in enumerate(WORDS[: 4 + height % 5]):
        place = (left, top + int(row * height * 1.9))
        cv2.putText(screen, word, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color,
                    max(1, round(scale * 2)), cv2.LINE_AA)  # fmt: skip
