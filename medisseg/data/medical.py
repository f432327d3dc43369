"""DICOM images and NIfTI volumes, through pydicom and nibabel.

A header's claims are checked before any pixel is decoded. DICOM: modality and window are applied,
MONOCHROME1 is inverted, YBR and palettes become RGB. RLE, JPEG and JPEG 2000 are decoded by pydicom
and Pillow; JPEG Lossless and JPEG-LS where python-gdcm is installed. NIfTI: slices lie across the
last axis.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medisseg.data.header import BadFile, Header, check_size

if TYPE_CHECKING:
    from pydicom.uid import UID

MOST_VOXELS = 400_000_000  # 512 x 512 x 1500
LONGEST = 16_384
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")


def dicom_header(path: str | Path) -> Header:
    """Return what a DICOM file claims.

    Raises:
        BadFile: Not DICOM, or without an image.
    """
    import pydicom

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        size = int(data.Rows), int(data.Columns)
        deep = int(data.BitsAllocated) > 8
        bands, frames = int(data.SamplesPerPixel), int(data.get("NumberOfFrames") or 1)
    except Exception as error:  # its parser lets any exception of a damaged file out
        raise BadFile(f"{path} is not a readable DICOM image ({error})") from error
    check_size(path, size)
    return Header(size, "DICOM", "" if bands == 3 else "L", bands, 1, frames, deep)


def dicom_pixels(path: str | Path, frame: int | None = None) -> npt.NDArray[np.number]:
    """Return RGB [H, W, 3]: uint8, or float32 of the modality's values where there is no window.

    Raises:
        BadFile: Its pixels cannot be decoded.
    """
    import pydicom
    from pydicom import pixels

    try:
        data = pydicom.dcmread(path, stop_before_pixels=True)
        _check_compression(path, data.file_meta.TransferSyntaxUID)
        values = pixels.pixel_array(path, index=frame or 0)
        kind = str(data.PhotometricInterpretation)
        if kind == "PALETTE COLOR":
            values = pixels.apply_color_lut(values, data)
            return np.asarray(values >> 8 if values.dtype == np.uint16 else values, np.uint8)
        if kind in COLORS:  # pydicom gives RGB
            return _bytes(values, int(data.BitsStored))
        modality = pixels.apply_modality_lut(values, data).astype(np.float32)
        grey = _windowed(modality, data) if "WindowCenter" in data else modality
    except BadFile:
        raise
    except Exception as error:
        raise BadFile(f"{path} cannot be decoded ({str(error).splitlines()[0]})") from error
    if values.dtype == np.uint8 and "WindowCenter" not in data:
        grey = values
    if kind == "MONOCHROME1":
        grey = 255 - grey if grey.dtype == np.uint8 else -grey
    return np.repeat(grey[:, :, None], 3, 2)


def _check_compression(path: str | Path, syntax: UID) -> None:
    from pydicom.pixels import get_decoder

    try:
        readable = not syntax.is_compressed or get_decoder(syntax).is_available
    except NotImplementedError:  # video
        readable = False
    if not readable:
        raise BadFile(
            f"{path} is compressed as {syntax.name}; expected no compression, RLE, JPEG or JPEG "
            "2000 (with python-gdcm installed, JPEG Lossless and JPEG-LS, too)"
        )


def _bytes(values: npt.NDArray[np.number], bits: int) -> npt.NDArray[np.uint8]:
    shifted: npt.NDArray[np.number] = np.right_shift(values, max(0, bits - 8))
    return shifted.astype(np.uint8)


def _windowed(values: npt.NDArray[np.float32], data: object) -> npt.NDArray[np.uint8]:
    """Return values as uint8 by the first window of the file (PS3.3, C.11.2.1.2.1)."""
    centre, width = (
        float(np.atleast_1d(np.asarray(getattr(data, name), np.float64))[0])
        for name in ("WindowCenter", "WindowWidth")
    )
    share = (values - (centre - 0.5)) / max(width - 1, 1) + 0.5
    grey: npt.NDArray[np.uint8] = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return grey


def nifti_spacing(path: Path) -> tuple[float, ...]:
    """Return the millimetres between slices, rows and columns, in the order of the slices' axes.

    Raises:
        BadFile: Not NIfTI.
    """
    import nibabel

    try:
        zooms = nibabel.load(path).header.get_zooms()  # type: ignore[attr-defined]
    except Exception as error:
        raise BadFile(f"{path} is not a readable NIfTI volume ({error})") from error
    return tuple(float(side) for side in zooms[2::-1])


def nifti_volume(path: Path) -> npt.NDArray[np.float32]:
    """Return a volume as slices [D, H, W], rows from the front (the file's second axis).

    Raises:
        BadFile: Not NIfTI, not of three axes, or larger than :data:`MOST_VOXELS`.
    """
    import nibabel

    try:
        image = nibabel.load(path)
        shape = tuple(int(side) for side in image.shape)  # type: ignore[attr-defined]
    except Exception as error:
        raise BadFile(f"{path} is not a readable NIfTI volume ({error})") from error
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise BadFile(f"{path} has the shape {shape}; expected three axes, one channel")
    if max(shape) > LONGEST or int(np.prod(shape, dtype=np.int64)) > MOST_VOXELS:
        raise BadFile(f"{path} claims {shape} voxels; expected at most {MOST_VOXELS:,} in all")
    try:
        values = np.asarray(image.dataobj, np.float32).reshape(shape)  # type: ignore[attr-defined]
    except Exception as error:
        raise BadFile(f"{path} is cut off or damaged ({error})") from error
    return values.transpose(2, 1, 0)
