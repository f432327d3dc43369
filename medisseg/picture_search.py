"""Search a frame for the endoscopic picture: processors send it with text and insets beside.

A screen is a flat canvas with things on it. The canvas (black, coloured, panels) is found by its
flatness, what is left is cleared of strokes, and the largest part that looks like a photograph is
the picture: a rectangle, an octagon, a circle with cut sides. Edges are refined at full size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medisseg.errors import UserError
from medisseg.picture import AUTO, Picture

if TYPE_CHECKING:
    from medisseg.picture import Image

Mask = npt.NDArray[np.uint8]

WORKING_SIDE = 480  # pixels of the copy that is searched: 18 ms at 1920 x 1080 on a busy core
LEAST_SIDE = 64  # of a frame in which a picture is looked for
LEAST_SHARE = 0.08  # of the screen: smaller things are insets
MOST_ASPECT = 2.5  # of the longer side to the shorter: longer things are bars and lines of text
# A picture that takes more of its screen than this is already cropped: nothing is gained. With
# something beside it (text, an inset), more is; so it is between bars: 4:3 in 16:9 takes 0.75 of a
# side, where the pictures of ClinicDB with their rims take 0.80 at least.
CROPPED_SHARE, CROPPED_SHARE_BESIDE, CROPPED_SIDE = 0.66, 0.85, 0.78
BESIDE_SHARE = 0.001  # of the screen
CANVAS_SHARE = 0.02  # of the screen: smaller flat areas are no canvas
GLARE_SHARE = 0.2  # of the screen: less white is an over-exposed patch
MOST_COLORS = 8
SAMPLED = 3  # every so many pixels of the copy tell the canvas's colours
CORE = 0.3  # of the longest row or column: what is thinner sticks out of the picture


def picture_of(image: Image, choice: str | Picture) -> Picture:
    """Return the picture of one frame, uint8 RGB [H, W, 3], as ``choice`` wants it.

    Raises:
        UserError: A rectangle that does not lie inside the frame.
    """
    if isinstance(choice, Picture):
        if not choice.within(image.shape):
            raise UserError(
                f"picture is {','.join(map(str, choice.to_list()))}, but the frame has "
                f"{image.shape[1]} x {image.shape[0]} pixels; choose one inside it, or auto"
            )
        return choice
    return find_picture(image) if choice == AUTO else Picture.whole(image.shape)


def find_picture(image: Image) -> Picture:
    """Return where the endoscopic picture stands in a frame, uint8 RGB [H, W, 3].

    A frame that is already cropped, or in which nothing is found, is returned whole.

    Example:
        >>> find_picture(screen)
        Picture(left=660, top=40, width=1200, height=1000)
    """
    return look(image) or Picture.whole(image.shape)


def look(image: Image) -> Picture | None:
    """Return the picture's rectangle in a frame uint8 RGB [H, W, 3].

    The whole frame where it is cropped already; None where no rectangle is certain.
    """
    import cv2

    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return Picture.whole(image.shape)
    scale = max(1.0, max(height, width) / WORKING_SIDE)
    size = round(width / scale), round(height / scale)
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    noise = _noise(small)
    if noise > 2:
        small, noise = np.asarray(cv2.GaussianBlur(small, (3, 3), 0), np.uint8), 0.6 * noise
    tolerance = 7 + 2.5 * noise
    canvas = _canvas(small, noise, tolerance)
    if not canvas.any():
        return Picture.whole(image.shape)
    part = _largest_photograph(small, canvas)
    if part is None:
        return None
    box = _extent(part)
    found, sure = _refined(image, box, scale, tolerance)
    side = min(found.width / width, found.height / height)
    between_bars = side < CROPPED_SIDE or _has_beside(small, box)
    most = CROPPED_SHARE_BESIDE if between_bars else CROPPED_SHARE
    if found.area > most * height * width:
        return Picture.whole(image.shape)
    return found if sure else None


def _noise(small: Image) -> float:
    """Return the standard deviation of the grain, in grey levels, from the smoothest third."""
    import cv2

    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = np.abs(grey - cv2.GaussianBlur(grey, (3, 3), 0))[::SAMPLED, ::SAMPLED]
    # 0.385 is the 30th percentile of |N(0, 1)|; of white noise 0.8 are finer than the blur.
    return float(np.percentile(fine, 30)) / (0.385 * 0.8)


def _has_beside(small: Image, box: Picture) -> bool:
    """Whether there are sharp things (text, insets) outside the picture."""
    import cv2

    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    edges = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 50
    edges[max(0, box.top - 3) : box.top + box.height + 3,
          max(0, box.left - 3) : box.left + box.width + 3] = False  # fmt: skip
    return bool(edges.mean() > BESIDE_SHARE)


def _canvas(small: Image, noise: float, tolerance: float) -> Mask:
    """Return what is canvas, uint8 0 or 1 [h, w]: large areas of one colour, or of a gradient."""
    import cv2

    square = np.ones((3, 3), np.uint8)
    spread = cv2.subtract(cv2.dilate(small, square), cv2.erode(small, square))
    limit = 4 + 4 * noise
    smooth = cv2.inRange(spread, (0, 0, 0), (limit, limit, limit)) > 0
    least, steady = CANVAS_SHARE * smooth.size, 1.5 + noise
    canvas = np.zeros(smooth.shape, np.uint8)
    flat = small[::SAMPLED, ::SAMPLED][smooth[::SAMPLED, ::SAMPLED]].astype(np.float32)
    few = least / SAMPLED**2
    for _ in range(MOST_COLORS):
        if len(flat) < few:
            break
        near = _dominant(flat, tolerance)
        one = flat[near]
        # Mucosa fills the whole tolerance with its shades, a canvas does not; glare is no canvas.
        enough = len(one) >= (few if one.min() < 250 else GLARE_SHARE / CANVAS_SHARE * few)
        if enough and one.std(0).max() <= steady:
            low, high = np.clip([one.mean(0) - tolerance, one.mean(0) + tolerance], 0, 255)
            canvas |= _at_border(cv2.inRange(small, low, high).astype(np.uint8), least)
        flat = flat[~near]
    return canvas | _gradients(small, smooth.astype(np.uint8), canvas, steady, tolerance)


def _dominant(colors: npt.NDArray[np.float32], tolerance: float) -> npt.NDArray[np.bool_]:
    """Return which colours [N, 3] lie about the most frequent one."""
    keys = _keys(colors)
    inside = keys == np.bincount(keys).argmax()
    for _ in range(2):
        near = np.abs(colors - colors[inside].mean(0)).max(1) <= tolerance
        inside = near if near.any() else inside
    return np.asarray(inside, np.bool_)


def _keys(colors: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return one number for each colour [N, 3], the same for colours of one cell of 16 levels."""
    cells = colors.astype(np.int32) >> 4
    return cells[:, 0] << 8 | cells[:, 1] << 4 | cells[:, 2]


def _gradients(small: Image, smooth: Mask, known: Mask, steady: float, tolerance: float) -> Mask:
    """Return areas whose colours follow a plane that fits a smooth area at the frame's border."""
    import cv2

    least = CANVAS_SHARE * smooth.size
    found = np.zeros(smooth.shape, np.uint8)
    rows, columns = np.mgrid[: len(smooth), : smooth.shape[1]].astype(np.float32)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=4)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    for label in np.unique(border[border > 0]):
        area = labels == label
        if stats[label, cv2.CC_STAT_AREA] < least or (known | found)[area].mean() > 0.9:
            continue
        y, x = (SAMPLED * place for place in np.nonzero(area[::SAMPLED, ::SAMPLED]))
        colors = small[y, x].astype(np.float64)
        plane = np.linalg.lstsq(np.stack([np.ones(len(x)), x, y], 1), colors, rcond=None)[0]
        if (colors - plane[0] - np.outer(x, plane[1]) - np.outer(y, plane[2])).std(
            0
        ).max() > steady:
            continue
        near = np.ones(smooth.shape, np.uint8)
        for channel in range(3):
            level = plane[:, channel].astype(np.float32)
            expected = level[0] + level[1] * columns + level[2] * rows
            near &= np.abs(small[..., channel] - expected) <= tolerance
        found |= _at_border(near, least)
    return found


def _at_border(mask: Mask, least: float) -> Mask:
    """Return the large parts of a mask that reach the frame's border; others lie in the picture."""
    import cv2

    # Closing joins the canvas on both sides of a thin line, and across small letters.
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    kept = np.zeros(len(stats), bool)
    kept[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    kept &= stats[:, cv2.CC_STAT_AREA] >= least
    kept[0] = False
    return np.asarray(kept[labels], np.uint8)


def _largest_photograph(small: Image, canvas: Mask) -> Mask | None:
    """Return the largest connected part beside the canvas whose colours are many."""
    import cv2

    side = max(3, round(0.025 * min(canvas.shape))) | 1
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    things = cv2.morphologyEx(1 - canvas, cv2.MORPH_OPEN, brush)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(things, connectivity=4)
    best, most = None, 0.0
    for label in range(1, count):
        left, top, width, height, area = stats[label]
        if width * height < LEAST_SHARE * canvas.size:
            continue
        if max(width, height) > MOST_ASPECT * min(width, height):
            continue
        part = (labels[top : top + height, left : left + width] == label).astype(np.uint8)
        keys = _keys(small[top : top + height, left : left + width][part > 0])
        score = area * (1.05 - np.bincount(keys).max() / area)
        if score > most:
            best, most = label, score
    return None if best is None else (labels == best).astype(np.uint8)


def _extent(part: Mask) -> Picture:
    """Return the rectangle of a part without what sticks out at its sides."""
    left, right = _core(_spans(part))
    top, bottom = _core(_spans(part[:, left:right].T))
    # The ends of a circle are thinner than its core, and stand over its middle.
    middle = part[:, left + (right - left) * 2 // 5 : right - (right - left) * 2 // 5].any(axis=1)
    across = part[top + (bottom - top) * 2 // 5 : bottom - (bottom - top) * 2 // 5].any(0)
    top, bottom = _grown(np.asarray(middle), top, bottom)
    left, right = _grown(np.asarray(across), left, right)
    return Picture(left, top, right - left, bottom - top)


def _spans(part: Mask) -> npt.NDArray[np.int64]:
    """Return for every column the distance from its first pixel to its last."""
    first = part.argmax(0)
    last = len(part) - part[::-1].argmax(0)
    return np.where(part.any(0), last - first, 0)


def _core(spans: npt.NDArray[np.int64]) -> tuple[int, int]:
    long = spans >= CORE * spans.max()
    middle = int(np.median(np.flatnonzero(spans >= 0.9 * spans.max())))
    before, after = np.flatnonzero(~long[:middle]), np.flatnonzero(~long[middle:])
    return (
        int(before[-1]) + 1 if before.size else 0,
        middle + int(after[0]) if after.size else len(spans),
    )


def _grown(there: npt.NDArray[np.bool_], first: int, last: int) -> tuple[int, int]:
    while first > 0 and there[first - 1]:
        first -= 1
    while last < len(there) and there[last]:
        last += 1
    return first, last


def _refined(image: Image, box: Picture, scale: float, tolerance: float) -> tuple[Picture, bool]:
    """Find the four edges in the full frame; say whether all are edges, not shadows."""
    height, width = image.shape[:2]
    left, right = round(box.left * scale), round((box.left + box.width) * scale)
    top, bottom = round(box.top * scale), round((box.top + box.height) * scale)
    rows = slice(top + (bottom - top) * 2 // 5, max(bottom - (bottom - top) * 2 // 5, top + 1))
    columns = slice(left + (right - left) * 2 // 5, max(right - (right - left) * 2 // 5, left + 1))
    across, down = image[rows], image[:, columns].swapaxes(0, 1)
    left, sure_left = _edge(across, left, scale, tolerance)
    right, sure_right = _edge(across[:, ::-1], width - right, scale, tolerance)
    top, sure_top = _edge(down, top, scale, tolerance)
    bottom, sure_bottom = _edge(down[:, ::-1], height - bottom, scale, tolerance)
    found = Picture(left, top, width - right - left, height - bottom - top)
    sure = [sure_left, sure_right, sure_top, sure_bottom]
    return found, sum(sure) >= 2


def _edge(band: Image, near: int, scale: float, tolerance: float) -> tuple[int, bool]:
    """Return the first column of the picture in a band of rows, and whether it is sharp."""
    import cv2

    reach = round(3 * scale) + 1
    if near <= reach // 2:
        return 0, True
    start = max(0, near - reach)
    strip = cv2.blur(band[:, start : near + reach], (1, 9)).astype(np.int16)
    differs = np.abs(strip - strip[:, :1]).max(2) > tolerance
    inside = float(differs[:, -max(2, reach // 3) :].mean())
    reached = differs.mean(0) >= max(0.25, 0.4 * inside)
    return (start + int(reached.argmax()) if reached.any() else near), inside >= 0.5
