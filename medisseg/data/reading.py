"""Read one image file of any common format, orientation and depth, or say what is wrong with it.

What a file claims about its size is checked before anything is decoded. Pixels are turned as the
EXIF orientation says, so that every part sees an image as a viewer shows it.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from medisseg.data.header import BadFile, Header, check_size, most

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

Value = TypeVar("Value", bound=np.generic)

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k", ".dcm",
    ".dicom",
)  # fmt: skip
ORIENTATION, BITS = 274, 258  # tags of EXIF and TIFF
STACKS = (".dcm", ".dicom", ".tif", ".tiff", ".gif", "")  # of one image or several
PILLOW_ONLY = (".gif", ".jp2", ".j2k")  # read by Pillow, the others by OpenCV
# Largest values of the depths that cameras store in 16 bits.
DEPTHS = (255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True)
class Range:
    """The values that become 0 and 255, for images of more than 8 bits; one for a whole folder."""

    low: float
    high: float


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, or DICOM without a suffix."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix == "" and is_dicom(path))


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM, by its suffix or its magic number."""
    suffix = Path(path).suffix.lower()
    if suffix in (".dcm", ".dicom"):
        return True
    try:
        with open(path, "rb") as file:
            return suffix == "" and file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def frames_of(path: str | Path) -> int:
    """Return how many images a file holds; 1 for one that cannot be read."""
    if Path(path).suffix.lower() not in STACKS:
        return 1
    try:
        return read_header(path).frames
    except BadFile:
        return 1


def read_header(path: str | Path) -> Header:
    """Return what a file claims, checked; nothing is decoded.

    Raises:
        BadFile: Not an image, or larger than :data:`LONGEST_SIDE` or :data:`MOST_PIXELS`.
    """
    from PIL import Image

    if is_dicom(path):
        from medisseg.data.medical import dicom_header

        return dicom_header(path)
    # Our own limit is the lower one; Pillow's warning would be a second line about the same.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with Image.open(path) as file:
            check_size(path, (file.height, file.width))  # what follows may decode
            orientation = _orientation(file)
            found = Header(
                (file.height, file.width),
                file.format or "",
                file.mode,
                len(file.getbands()),
                orientation if orientation in range(1, 9) else 1,
                getattr(file, "n_frames", 1),
                _is_deep(path, file),
            )
    except Image.DecompressionBombError as error:
        raise BadFile(f"{path} claims more than {most()}; make it smaller") from error
    except (
        OSError, ValueError, SyntaxError, struct.error, OverflowError, TypeError, KeyError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
        found = _tiff_header(path)
    check_size(path, found.size)
    return found


def _orientation(picture: Any) -> int:
    """Return the EXIF orientation, without decoding the pixels as Pillow does for PNG."""
    from PIL import Image

    if picture.format != "PNG":
        return int(picture.getexif().get(ORIENTATION, 1))
    exif = Image.Exif()
    exif.load(picture.info.get("exif") or b"")
    return int(exif.get(ORIENTATION, 1))


def _is_deep(path: str | Path, picture: Any) -> bool:
    """Whether a channel has more than 8 bits; Pillow's mode is RGB for 16 bits, too."""
    if picture.format == "PNG":
        with open(path, "rb") as file:
            return bool(file.read(25)[24:] == b"\x10")
    if picture.format == "TIFF":
        return bool(max(picture.tag_v2.get(BITS, (1,))) > 8)
    return str(picture.mode).startswith(("I", "F"))


def _tiff_header(path: str | Path) -> Header:
    """Return the header of a TIFF that Pillow has no mode for, such as RGB in float."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it says, we say in one line
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            tag = page.tags.get(ORIENTATION)
            return Header(
                (page.imagelength, page.imagewidth),
                "TIFF",
                "",
                page.samplesperpixel,
                int(tag.value) if tag else 1,
                len(file.pages),
                page.bitspersample > 8,
            )
    except Exception as error:  # its parser lets any exception of a damaged file out
        raise BadFile(f"{path} is not a readable image (cut off, or of another format?)") from error


def read_image(
    path: str | Path, scale: Range | None = None, frame: int | None = None
) -> npt.NDArray[np.uint8]:
    """Return an image as uint8 RGB [H, W, 3], turned as its EXIF orientation says.

    One channel is repeated three times, transparency is left out.

    Args:
        path: File of one of :data:`IMAGE_SUFFIXES`.
        scale: What 0 and 255 are, for more than 8 bits; None: found in this file alone.
        frame: Which image of a file that holds several.

    Raises:
        BadFile: Not readable as an image, too large, of several frames or other channels.

    Example:
        >>> read_image("polyp.jpg").shape
        (288, 384, 3)
    """
    found = read_header(path)
    if found.frames > 1 and frame is None:
        raise BadFile(f"{path} holds {found.frames} images; expected one, store them as files")
    if found.bands not in ((1, 2, 3, 4) if found.mode else (1, 3)):
        raise BadFile(f"{path} has {found.bands} channels; expected 1 (grey) or 3 (RGB)")
    return to_uint8(_pixels(path, found, frame), scale or value_range([path]), path)


def _pixels(path: str | Path, found: Header, frame: int | None = None) -> npt.NDArray[np.number]:
    """Return RGB [H, W, 3] of the file's own depth, turned."""
    import cv2

    if found.kind == "DICOM":
        from medisseg.data.medical import dicom_pixels

        return dicom_pixels(path, frame)
    if Path(path).suffix.lower() in PILLOW_ONLY or found.frames > 1:
        return _by_pillow(path, frame or 0)
    try:
        data = np.fromfile(path, np.uint8)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    except OSError as error:
        raise BadFile(f"cannot read {path}: {error.strerror or error}") from error
    if image is None:
        raise BadFile(f"{path} is not a readable image (cut off, or of another format?)")
    # OpenCV turns a TIFF whatever the flag says.
    turn = 1 if found.kind == "TIFF" else found.orientation
    return np.ascontiguousarray(orient(image[:, :, ::-1], turn))


@contextlib.contextmanager
def open_picture(path: str | Path) -> Iterator[ImageFile]:
    """Open a file with Pillow, as a stream.

    Pillow 13 maps an uncompressed TIFF that it opens by its path, and mixes up the rows of one that
    is stored on its side (orientation 5 to 8).
    """
    from PIL import Image

    with open(path, "rb") as stream, Image.open(stream) as file:
        yield file


def _by_pillow(path: str | Path, frame: int = 0) -> npt.NDArray[np.number]:
    from PIL import ImageOps

    try:
        with open_picture(path) as file:
            file.seek(frame)
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith(("I", "F")):
                return np.repeat(np.asarray(picture)[:, :, None], 3, 2)
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise BadFile(f"{path} is not a readable image (cut off, or of another format?)") from error


def orient(pixels: npt.NDArray[Value], orientation: int) -> npt.NDArray[Value]:
    """Turn stored pixels [H, W, ...] as EXIF orientation 1 to 8 says (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def value_range(paths: list[str | Path] | list[Path]) -> Range | None:
    """Return one range for all files of more than 8 bits; None where there is none of them.

    Files that cannot be read are passed over.

    16-bit images have the least of 8, 10, 12, 14 and 16 bits that holds all of them; float images
    span [0, 1], [-1, 1] or the largest value of such a depth. Values of DICOM without a window span
    what they span. Of a file with several images the first is looked at.

    Raises:
        BadFile: Float images of different ranges.
    """
    spans: dict[str | Path, tuple[float, float, bool]] = {}
    modality = False
    for path in paths:
        if Path(path).suffix.lower() in (".jpg", ".jpeg", ".bmp", ".webp", ".gif"):
            continue
        modality |= is_dicom(path)
        try:
            found = read_header(path)
            values = _pixels(path, found) if found.deep else None
        except BadFile:
            continue  # said when its turn to be read comes
        if values is not None and values.dtype != np.uint8:
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                spans[path] = float(finite.min()), float(finite.max()), values.dtype.kind == "f"
    if not spans:
        return None
    if modality:  # values of a device, such as Hounsfield units: as they span in the folder
        low, high = min(s[0] for s in spans.values()), max(s[1] for s in spans.values())
        return Range(low, max(high, low + 1))
    floats = {path: _float_range(low, high) for path, (low, high, real) in spans.items() if real}
    if floats:
        return _one_float_range(spans, floats)
    top = max(high for _, high, _ in spans.values())
    return Range(0, next(depth for depth in DEPTHS if top <= depth))


def _float_range(low: float, high: float) -> Range:
    if low < 0:
        return Range(-1, 1) if low >= -1 and high <= 1 else Range(low, high)
    return Range(0, next((depth for depth in (1, *DEPTHS) if high <= depth), high))


def _one_float_range(
    spans: dict[str | Path, tuple[float, float, bool]], floats: dict[str | Path, Range]
) -> Range:
    lit = {path: span for path, span in floats.items() if spans[path][1] > spans[path][0]}
    if not lit:
        return Range(0, 1)
    first, other = min(lit, key=lambda p: lit[p].high), max(lit, key=lambda p: lit[p].high)
    low, high = min(span.low for span in lit.values()), max(span.high for span in lit.values())
    if low < 0 and (low, high) != (-1, 1) or (high > 1 and lit[first].high <= 1):
        ranges = " and ".join(
            f"{path} spans {spans[path][0]:.4g} to {spans[path][1]:.4g}" for path in (other, first)
        )
        raise BadFile(
            f"{ranges}; expected one range for all: [0, 1], [-1, 1] or [0, 255] to [0, 65535]"
        )
    return Range(low, high)


def to_uint8(
    image: npt.NDArray[np.number], scale: Range | None = None, path: str | Path = "image"
) -> npt.NDArray[np.uint8]:
    """Return pixels as uint8: ``scale`` says which values become 0 and 255.

    Raises:
        BadFile: Values outside of the range.
    """
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image).astype(np.uint8, copy=False)
    if image.dtype == np.uint16 and scale is not None and scale.low == 0:
        if image.max() > scale.high:
            raise BadFile(f"{path} holds {image.max()}; its folder's images end at {scale.high:g}")
        bits = max(0, int(scale.high + 1).bit_length() - 9)
        return np.ascontiguousarray(np.right_shift(image, bits)).astype(np.uint8)
    scale = scale or Range(0, 1)
    share = (np.nan_to_num(image.astype(np.float32)) - scale.low) / (scale.high - scale.low)
    if share.min() < -0.01 or share.max() > 1.01:
        raise BadFile(
            f"{path} spans {image.min():.4g} to {image.max():.4g}; its folder's images "
            f"{scale.low:g} to {scale.high:g}"
        )
    scaled: npt.NDArray[np.float32] = np.clip(share, 0, 1) * 255
    return np.rint(scaled).astype(np.uint8)
