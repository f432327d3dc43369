"""What the values of a folder's masks mean: decided once for all of its files, then applied.

Grey values, palettes, colours and transparency all become class indices and, where a mask says
that a pixel counts for nothing, void. A value's meaning is never guessed from one file: 255 is
foreground beside 0 alone, and void beside small indices; a palette's order is another in every
quantised file; grey edges and JPEG noise lie between two levels that other files show better.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from medisseg.data.reading import BadFile, frames_of, open_picture, orient, read_header

# Files that decide for a folder, spread evenly over it.
LOOKED_AT = 500
# Values up to this are small: a 255 beside them is void, beside larger ones it is one of them.
SMALL = 64
MOST_COLORS = 32
# Share of a value's pixels that equal their right and lower neighbours: lines two pixels wide have
# 0.3 and more, the grey of smoothed edges and of JPEG noise less than 0.1.
SOLID = 0.2
Plane = npt.NDArray[np.integer] | npt.NDArray[np.floating]


@dataclass(frozen=True)
class Stored:
    """A mask file as it is stored: pixels [H, W] or RGB [H, W, 3], not yet turned.

    ``palette`` holds the colours [n, 3] of indices, ``alpha`` uint8 [H, W] the opacity.
    """

    pixels: npt.NDArray[np.number]
    palette: npt.NDArray[np.uint8] | None = None
    alpha: npt.NDArray[np.uint8] | None = None
    lossy: bool = False
    orientation: int = 1


@dataclass(frozen=True)
class MaskConvention:
    """How pixels become classes.

    Attributes:
        plane: What is looked at: "grey", "index" (of a palette), "colour" (0xRRGGBB) or "alpha".
        levels: The values that stand for regions, background first.
        void: Values of pixels that count for nothing.
        threshold: For grey: foreground is above it, where the values are no levels.
        float_threshold: The same for files of floating-point numbers.
        notes: What was understood, and what is doubtful, in words.
    """

    plane: str = "grey"
    levels: tuple[int, ...] = (0, 1)
    void: tuple[int, ...] = ()
    threshold: float | None = None
    float_threshold: float = 0.5
    notes: tuple[str, ...] = ()


@dataclass
class Tally:
    """How many pixels of one file have a value, and how many of these lie inside of a region."""

    counts: dict[int, int] = field(default_factory=dict)
    solid: dict[int, int] = field(default_factory=dict)
    border: dict[int, int] = field(default_factory=dict)

    def add(self, plane: npt.NDArray[np.integer]) -> Tally:
        """Count the values of a plane [H, W]; return self."""
        inside = np.ones(plane.shape, bool)
        inside[:-1] &= plane[:-1] == plane[1:]
        inside[:, :-1] &= plane[:, :-1] == plane[:, 1:]
        rim = np.concatenate([plane[0], plane[-1], plane[:, 0], plane[:, -1]])
        for part, table in ((plane, self.counts), (plane[inside], self.solid), (rim, self.border)):
            values, numbers = np.unique(part, return_counts=True)
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                table[value] = table.get(value, 0) + number
        return self


def read_stored(path: str | Path, frame: int | None = None) -> Stored:
    """Decode a mask file, or one of its frames.

    Raises:
        BadFile: Not readable as an image, too large, or of several frames.
    """
    found = read_header(path)
    if found.frames > 1 and frame is None:
        raise BadFile(f"{path} holds {found.frames} images; expected one mask")
    if found.kind == "DICOM":
        from medisseg.data.medical import dicom_pixels

        return Stored(_grey_if_grey(dicom_pixels(path, frame), 0))
    try:
        with open_picture(path) as file:
            file.seek(frame or 0)
            lossy = file.format in ("JPEG", "WEBP", "JPEG2000")
            orientation = 1 if file.format == "TIFF" else found.orientation  # Pillow turns TIFF
            palette = None
            mode, scale = None, 1
            if file.mode == "P" and file.info.get("transparency", 0) != 0:
                mode = "RGBA"
            elif file.mode == "P":
                palette = np.array(file.getpalette("RGB"), np.uint8).reshape(-1, 3)
            elif file.mode == "L" and file.format == "PNG":
                scale = _packed_scale(path)
            elif file.mode in ("CMYK", "LAB", "YCbCr", "HSV", "PA", "RGBX", "RGBa"):
                mode = "RGB"
            pixels = np.asarray(file.convert(mode) if mode else file)
            pixels = pixels // scale if scale > 1 else pixels
    except (OSError, ValueError, SyntaxError) as error:
        raise BadFile(f"{path} is not a readable mask (cut off, or of another format?)") from error
    alpha = None
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        alpha = pixels[:, :, -1]
        pixels = pixels[:, :, 0] if pixels.shape[2] == 2 else pixels[:, :, :3]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    if pixels.ndim == 3:
        pixels = _grey_if_grey(pixels, 64 if lossy else 0)
    return Stored(pixels, palette, alpha, lossy, orientation)


def _packed_scale(path: str | Path) -> int:
    """Return by what Pillow multiplies the grey values of a PNG of 2 or 4 bits."""
    with open(path, "rb") as file:
        depth = file.read(25)[24]
    return 255 // (2**depth - 1) if depth < 8 else 1


def _grey_if_grey(pixels: npt.NDArray[np.number], tolerance: int) -> npt.NDArray[np.number]:
    spread = np.ptp(pixels.astype(np.int16), axis=2).max()
    return pixels[:, :, 1] if spread <= tolerance else pixels


def decide(paths: Sequence[str | Path]) -> MaskConvention:
    """Return what the values of these files mean, of all of them together.

    Raises:
        BadFile: A file cannot be read, or the values are no masks' values.
    """
    if len(paths) > LOOKED_AT:
        paths = [paths[i * len(paths) // LOOKED_AT] for i in range(LOOKED_AT)]
    if not paths:
        return MaskConvention()
    looks = _Looks()
    with ThreadPoolExecutor(2) as pool:
        for path, stored in zip(paths, pool.map(_readable, paths), strict=True):
            if stored is not None:
                looks.add(path, stored)
    return looks.convention()


def _readable(path: str | Path) -> Stored | None:
    try:
        return read_stored(path, frames_of(path) // 2)  # the ends of a stack are often empty
    except BadFile:
        return None  # said, with its name, when its turn to be read comes


class _Looks:
    """What the files of a folder look like, by plane."""

    def __init__(self) -> None:
        self.files: list[str | Path] = []
        self.grey: list[Tally] = []
        self.index: list[Tally] = []
        self.color: list[Tally] = []
        self.colors_of: dict[int, set[int]] = {}
        self.opaque: set[int] = set()
        self.alpha_varies = self.colored = self.lossy = self.every_alpha = False
        self.float_top, self.float_fraction = 0.0, False

    def add(self, path: str | Path, stored: Stored) -> None:
        """Look at one file."""
        self.files.append(path)
        self.lossy |= stored.lossy
        if stored.alpha is not None and np.ptp(stored.alpha):
            self.alpha_varies = True
            shown = color_plane(stored)[stored.alpha > 127]
            self.opaque |= set(np.unique(shown)[: MOST_COLORS + 1].tolist())
        if stored.pixels.dtype.kind == "f":
            if not np.isfinite(stored.pixels).all():
                raise BadFile(f"{path} holds NaN or infinity; expected numbers")
            self.float_top = max(self.float_top, float(stored.pixels.max()))
            if np.any(stored.pixels != np.rint(stored.pixels)):
                self.float_fraction = True
                return
            stored = Stored(stored.pixels.astype(np.int64))
        self.colored |= stored.pixels.ndim == 3
        if stored.pixels.ndim == 2 and stored.palette is None:
            self.grey.append(Tally().add(cast(npt.NDArray[np.integer], stored.pixels)))
        if stored.palette is not None:
            self.index.append(Tally().add(cast(npt.NDArray[np.integer], stored.pixels)))
            for value in self.index[-1].counts:
                self.colors_of.setdefault(value, set()).add(_packed(stored.palette, value))
        self.color.append(Tally().add(color_plane(stored, self.lossy)))

    def convention(self) -> MaskConvention:
        """Return the convention that fits all files."""
        if self.alpha_varies and len(self.opaque) == 1:
            return MaskConvention("alpha", notes=("masks are the images' transparency",))
        if self.index and self._indices_hold():
            return _levels("index", self.index, self.files)
        if self.colored or self.alpha_varies or (self.index and not self._all_grey()):
            return _colors(self.color, self.files)
        if self.index:
            grey = [_as_grey(tally) for tally in self.color]
            return _levels("colour", grey, self.files)
        found = _levels("grey", self.grey, self.files, self.lossy) if self.grey else None
        top = 1.0 if self.float_top <= 1 else 255.0 if self.float_top <= 255 else self.float_top
        if found is None:
            note = f"foreground is above {top / 2:g}, of floating-point values"
            return MaskConvention("grey", float_threshold=top / 2, notes=(note,))
        if not self.float_fraction:
            return found
        raise BadFile(
            f"{self.files[0]} and its folder mix masks of probabilities and of whole numbers; "
            "expected one kind"
        )

    def _indices_hold(self) -> bool:
        """Whether a palette's indices mean the same in every file, and 0 the background."""
        if self.colored or self.grey or any(len(c) > 1 for c in self.colors_of.values()):
            return False
        colors = {value: next(iter(c)) for value, c in self.colors_of.items()}
        return colors.get(0, 0) == 0 or len(set(colors.values())) == 1

    def _all_grey(self) -> bool:
        every = {color for found in self.colors_of.values() for color in found}
        return all(color >> 16 == color >> 8 & 255 == color & 255 for color in every)


def _packed(palette: npt.NDArray[np.uint8], value: int) -> int:
    red, green, blue = palette[value].tolist() if value < len(palette) else (0, 0, 0)
    return red << 16 | green << 8 | blue


def color_plane(stored: Stored, lossy: bool = False) -> npt.NDArray[np.int64]:
    """Return 0xRRGGBB of every pixel, int64 [H, W], 0 where it is transparent.

    Colours of a lossy file are rounded to 0 or 255 in each channel.
    """
    pixels = stored.pixels
    if stored.palette is not None:
        wide = np.zeros((256, 3), np.int64)
        wide[: len(stored.palette)] = stored.palette
        rgb = wide[pixels]
    else:
        values = np.clip(pixels, 0, 255).astype(np.int64)
        rgb = np.repeat(values[:, :, None], 3, 2) if values.ndim == 2 else values
    if lossy:
        rgb = 255 * (rgb > max(int(rgb.max()), 64) / 2)
    packed: npt.NDArray[np.int64] = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    if stored.alpha is not None and np.ptp(stored.alpha):
        packed = np.where(stored.alpha > 127, packed, 0)
    return packed


def _as_grey(tally: Tally) -> Tally:
    return Tally(*({v & 255: n for v, n in t.items()} for t in (tally.counts, tally.solid)))


def _merged(tallies: Sequence[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        for name in ("counts", "solid", "border"):
            table = getattr(total, name)
            for value, number in getattr(tally, name).items():
                table[value] = table.get(value, 0) + number
    return total


def _levels(
    plane: str, tallies: Sequence[Tally], files: Sequence[str | Path], lossy: bool = False
) -> MaskConvention:
    """Return the convention of grey values or indices."""
    total = _merged(tallies)
    values = sorted(total.counts)
    top = values[-1]
    if lossy:
        return _lossy(plane, total, top, files)
    if len(values) > 2 and (smoothed := _smoothed(total, values, files)) is not None:
        return MaskConvention(plane, (0, top), threshold=smoothed, notes=(
            f"foreground is above {smoothed:g}; values between are smoothed edges or noise",
        ))  # fmt: skip
    void = [value for value in values if value < 0]
    notes = [f"the value {void[0]} counts for nothing"] if void else []
    levels = [value for value in values if value >= 0]
    others = [value for value in levels if value not in (0, 255, 65535)]
    if top in (255, 65535) and others and others[-1] < SMALL:
        if any(top in t.counts and set(t.counts) & set(others) for t in tallies):
            void.append(top)
            levels.remove(top)
            notes.append(f"{top} beside {_shown(others)} is void: these pixels count for nothing")
        else:
            notes.append(
                f"some masks hold {_shown(others)}, others {top}; all are taken as foreground"
            )
    if 0 not in levels:
        levels.insert(0, 0)
    if len(levels) > 2:
        notes.append(f"the values {_shown(levels)} are indices")
    return MaskConvention(plane, tuple(levels), tuple(void), notes=tuple(notes))


def _lossy(plane: str, total: Tally, top: int, files: Sequence[str | Path]) -> MaskConvention:
    """Grey JPEG: foreground above the middle, unless there is a region of middle grey."""
    pixels = sum(total.counts.values())
    top = max((v for v, n in total.counts.items() if n > 1e-4 * pixels), default=top)
    middle = 127 if top > 200 or top < 32 else top // 2
    grey = [v for v in total.counts if top / 4 < v < 3 * top / 4]
    share = sum(total.counts[v] for v in grey) / max(pixels, 1)
    solid = sum(total.solid.get(v, 0) for v in grey) / max(sum(total.counts[v] for v in grey), 1)
    if top >= 32 and share > 0.002 and solid > SOLID:
        raise BadFile(
            f"{files[0]} and its folder: JPEG masks with regions of grey {min(grey)} to "
            f"{max(grey)}; JPEG changes indices, expected PNG, or 0 and 255 alone"
        )
    note = f"foreground is above {middle}, as JPEG changes values"
    return MaskConvention(plane, (0, top), threshold=middle, notes=(note,))


def _smoothed(total: Tally, values: list[int], files: Sequence[str | Path]) -> float | None:
    """Return the threshold where values between two levels are smoothed edges or JPEG noise.

    Raises:
        BadFile: They are grey tones of another kind.
    """
    top, pixels = values[-1], sum(total.counts.values())
    if top < 128 and (len(values) <= SMALL or _solid(total, values[1:]) >= SOLID):
        return None
    middle = [v for v in values if 15 < v < top - 15 and v > 0]
    share = sum(total.counts[v] for v in middle) / pixels
    if middle and _solid(total, middle) >= SOLID:
        return None
    near_top = [v for v in values if top - 15 <= v < top]
    if not middle and not near_top:
        near_zero = [v for v in values if 0 < v <= 15]
        return None if _solid(total, near_zero) >= SOLID else top / 2
    if share < 0.05:
        return 127 if top <= 255 else top / 2
    raise BadFile(
        f"{files[0]} and its folder hold {len(values)} grey values from {values[0]} to {top}; "
        "expected a binary mask (0 and 255) or instance or class indices"
    )


def _solid(total: Tally, values: Sequence[int]) -> float:
    number = sum(total.counts[value] for value in values)
    return sum(total.solid.get(value, 0) for value in values) / number if number else 1.0


def _colors(tallies: Sequence[Tally], files: Sequence[str | Path]) -> MaskConvention:
    """Return the convention of colours: black, or what fills the borders, is the background."""
    total = _merged(tallies)
    kept = [c for c in total.counts if total.solid.get(c, 0) >= SOLID * total.counts[c]]
    share = sum(total.counts[c] for c in kept) / sum(total.counts.values())
    if len(kept) > MOST_COLORS or share < 0.9:
        raise BadFile(
            f"{files[0]} is a colour picture; expected a mask of one grey channel, a palette, or "
            f"at most {MOST_COLORS} colours"
        )
    back = 0 if 0 in kept else max(kept, key=lambda color: total.border.get(color, 0))
    # Red before green before blue, so that the order is the same whatever a file holds.
    order = [back, *sorted((color for color in kept if color != back), reverse=True)]
    notes = [f"the colours {', '.join(f'#{color:06x}' for color in order[1:])} are foreground"]
    if back:
        notes.append(f"no mask holds black; #{back:06x}, on the borders, is the background")
    return MaskConvention("colour", tuple(order), notes=tuple(notes))


def _shown(values: Sequence[int]) -> str:
    more = f", ... ({len(values)})" if len(values) > 8 else ""
    return ", ".join(map(str, values[:8])) + more


def apply(
    stored: Stored,
    convention: MaskConvention,
    classes: int = 1,
    indices: bool = False,
    path: str | Path = "mask",
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_] | None]:
    """Return class indices uint8 [H, W], turned by the file's own orientation, and void pixels.

    For one class every foreground value is 1. For more, or with ``indices``, values are the class
    indices, or the folder's values in their order where they are as many as the classes.

    Raises:
        BadFile: The values are not the folder's, or no class indices.
    """
    plane = _plane(stored, convention, path)
    void = np.isin(plane, convention.void) if convention.void else None
    if classes > 1 or indices:
        mask = _class_indices(stored, plane, convention, max(classes, 2), void, path)
    else:
        mask = _foreground(plane, convention, stored).astype(np.uint8)
    if void is not None:
        mask[void] = 0
        void = np.ascontiguousarray(orient(void, stored.orientation))
    return np.ascontiguousarray(orient(mask, stored.orientation)), void


def _plane(stored: Stored, convention: MaskConvention, path: str | Path) -> Plane:
    if convention.plane == "alpha":
        if stored.alpha is None:
            raise BadFile(f"{path} has no transparency; its folder's masks are transparency")
        return (stored.alpha > 127).astype(np.uint8)
    if convention.plane == "colour":
        plane = color_plane(stored, stored.lossy)
        # Grey levels of a palette are compared as grey.
        return plane & 255 if max(convention.levels, default=0) < 256 else plane
    if stored.pixels.ndim == 3:
        raise BadFile(f"{path} is a colour picture; its folder's masks are grey")
    return cast(Plane, stored.pixels)


def _foreground(plane: Plane, convention: MaskConvention, stored: Stored) -> npt.NDArray[np.bool_]:
    if plane.dtype.kind == "f" and np.any(plane != np.rint(plane)):
        return np.greater(plane, convention.float_threshold)
    if convention.threshold is not None:
        return np.greater(plane, convention.threshold)
    if stored.lossy and convention.plane == "grey":
        return np.greater(plane, 127)
    if convention.plane != "colour":
        return np.not_equal(plane, 0)
    return np.greater(nearest_level(plane, convention.levels), 0)


def nearest_level(plane: Plane, levels: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Return the position in ``levels`` of the nearest one to each pixel of [H, W] 0xRRGGBB."""
    values, inverse = np.unique(plane, return_inverse=True)
    parts = np.array([[v >> 16, v >> 8 & 255, v & 255] for v in values.tolist()])
    known = np.array([[v >> 16, v >> 8 & 255, v & 255] for v in levels])
    nearest = ((parts[:, None] - known[None]) ** 2).sum(2).argmin(1)
    found: npt.NDArray[np.uint8] = nearest.astype(np.uint8)[inverse.reshape(plane.shape)]
    return found


def _class_indices(
    stored: Stored,
    plane: Plane,
    convention: MaskConvention,
    classes: int,
    void: npt.NDArray[np.bool_] | None,
    path: str | Path,
) -> npt.NDArray[np.uint8]:
    if stored.lossy and convention.plane == "grey":
        raise BadFile(f"{path}: JPEG changes class indices; store the masks as PNG")
    levels = convention.levels
    if convention.plane == "colour" and max(levels) > 255:
        if len(levels) > classes:
            raise BadFile(
                f"{path} and its folder hold {len(levels)} colours with the background; "
                f"expected at most {classes}, one a class"
            )
        return nearest_level(plane, levels)
    if convention.threshold is not None and classes == 2:
        return (plane > convention.threshold).astype(np.uint8)
    found = np.unique(plane[~void] if void is not None else plane)
    if levels[-1] < classes and found.size and found.min() >= 0 and found.max() < classes:
        return (
            np.where(void, 0, plane).astype(np.uint8)
            if void is not None
            else plane.astype(np.uint8)
        )
    if len(levels) == classes and set(found.tolist()) <= set(levels):
        return np.searchsorted(levels, plane).astype(np.uint8)
    shown = _shown([int(value) for value in found])
    raise BadFile(f"{path} holds the values {shown}; expected class indices 0 to {classes - 1}")


def read_mask(path: str | Path, classes: int = 1, indices: bool = False) -> npt.NDArray[np.uint8]:
    """Return one mask by itself as class indices uint8 [H, W]; void pixels are 0.

    Raises:
        BadFile: Not readable, or its values are neither binary nor indices.
    """
    stored = read_stored(path)
    looks = _Looks()
    looks.add(path, stored)
    return apply(stored, looks.convention(), classes, indices, path)[0]
