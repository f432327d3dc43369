"""DICOM, stacks of images and NIfTI volumes, and what is refused before it is decoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from made_files import png
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    MPEG4HP41,
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from medisseg.data.folder import SegmentationFolder
from medisseg.data.reading import BadFile, read_header, read_image
from medisseg.errors import UserError
from medisseg.evaluation.predict import find_jobs

RANDOM = np.random.default_rng(0)
DISC = ((np.mgrid[:24, :32] - [[[12]], [[16]]]) ** 2).sum(0) < 50


def dicom(path: Path, pixels: np.ndarray, kind: str, **values: Any) -> Path:
    """Write pixels [H, W], [H, W, 3] or [F, H, W, 3] as an uncompressed DICOM file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    color = pixels.shape[-1] == 3 and pixels.ndim > 2
    data.Rows, data.Columns = pixels.shape[-3:-1] if color else pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = (3 if color else 1), kind
    if color:
        data.PlanarConfiguration = 0
    if pixels.ndim == (4 if color else 3):
        data.NumberOfFrames = len(pixels)
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in values.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def compressed(path: Path, pixels: np.ndarray, kind: str, syntax: UID, *streams: bytes) -> Path:
    """Write pixels as DICOM whose frames are encoded as ``streams``; with none of them as RLE."""
    data = pydicom.dcmread(dicom(path, pixels, kind))
    if streams:
        data.PixelData = encapsulate(list(streams))
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
    else:
        data.compress(syntax)
    data.save_as(path)
    return path


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> tuple[bytes, np.ndarray]:
    """Return an image's stream of JPEG or JPEG 2000, and the pixels that come back."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue(), np.asarray(Image.open(stream).convert("RGB"))


def mask(path: Path, pixels: np.ndarray = DISC) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * pixels).astype(np.uint8)).save(path)


def photo() -> np.ndarray:
    return RANDOM.integers(0, 256, (24, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.dcm", "a"])
def test_an_image_of_dicom_with_a_mask(tmp_path: Path, name: str) -> None:
    pixels = photo()
    dicom(tmp_path / "images" / name, pixels, "RGB")
    mask(tmp_path / "masks" / "a.png")
    (sample,) = SegmentationFolder(tmp_path)
    assert np.array_equal(sample.image, pixels) and np.array_equal(sample.mask, DISC)


def test_grey_of_dicom_by_window_and_inverted(tmp_path: Path) -> None:
    values = np.linspace(-1000, 1000, 24 * 32).reshape(24, 32).astype(np.int16)
    window = {"WindowCenter": "0", "WindowWidth": "401", "RescaleSlope": "1"}
    path = dicom(tmp_path / "a.dcm", values, "MONOCHROME2", RescaleIntercept="0", **window)
    share = np.clip((values.astype(np.float32) + 0.5) / 400 + 0.5, 0, 1)
    assert np.abs(read_image(path)[:, :, 0] - 255 * share).max() <= 0.5
    dark = dicom(tmp_path / "b.dcm", values, "MONOCHROME1", RescaleIntercept="0", **window)
    assert np.array_equal(read_image(dark), 255 - read_image(path))


def test_dicom_without_a_window_has_one_range_a_folder(tmp_path: Path) -> None:
    for k, top in enumerate((1000, 4000)):
        values = np.full((24, 32), top, np.uint16)
        values[0] = 0
        dicom(tmp_path / "images" / f"{k}.dcm", values, "MONOCHROME2")
        mask(tmp_path / "masks" / f"{k}.png")
    folder = SegmentationFolder(tmp_path)
    assert [int(sample.image.max()) for sample in folder] == [64, 255]


def test_frames_of_dicom_are_images_and_stay_together(tmp_path: Path) -> None:
    frames = np.stack([photo() for _ in range(3)])
    dicom(tmp_path / "images" / "run.dcm", frames, "RGB")
    for k in range(3):
        mask(tmp_path / "masks" / f"run_slice{k:03}.png", np.roll(DISC, k, 1))
    folder = SegmentationFolder(tmp_path)
    assert folder.names == tuple(f"run_slice{k:03}" for k in range(3))
    for k, sample in enumerate(folder):
        assert np.array_equal(sample.image, frames[k])
        assert np.array_equal(sample.mask, np.roll(DISC, k, 1))
    jobs = find_jobs([str(tmp_path)], tmp_path / "out")
    assert [(job.name.as_posix(), job.frame) for job in jobs] == [
        (f"run_slice{k:03}", k) for k in range(3)
    ]


def test_a_stack_with_a_stack_of_masks(tmp_path: Path) -> None:
    images = [Image.fromarray(photo()) for _ in range(3)]
    masks = [Image.fromarray((255 * np.roll(DISC, k, 0)).astype(np.uint8)) for k in range(3)]
    for folder, pages in (("images", images), ("masks", masks)):
        (tmp_path / folder).mkdir()
        pages[0].save(tmp_path / folder / "a.tif", save_all=True, append_images=pages[1:])
    for k, sample in enumerate(SegmentationFolder(tmp_path)):
        assert np.array_equal(sample.image, images[k])
        assert np.array_equal(sample.mask, np.roll(DISC, k, 0))
    masks[0].save(tmp_path / "masks" / "a.tif", save_all=True, append_images=masks[1:2])
    with pytest.raises(BadFile, match=r"holds 2 masks, but .*a\.tif 3 images"):
        SegmentationFolder(tmp_path)[0]


@pytest.mark.parametrize(
    ("image", "label"),
    [("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"), ("images/a.nii", "masks/a.nii"),
     ("a.nii.gz", "a_seg.nii.gz"), ("a/image.nii.gz", "a/label.nii.gz")],
)  # fmt: skip
def test_slices_of_nifti(tmp_path: Path, image: str, label: str) -> None:
    volume = RANDOM.random((6, 5, 4)).astype(np.float32)
    truth = RANDOM.integers(0, 3, (6, 5, 4)).astype(np.float32)
    for name, values in ((image, volume), (label, truth)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / name)
    folder = SegmentationFolder(tmp_path, classes=3)
    assert folder.names == tuple(f"a_slice{k:03}" for k in range(4))
    low, high = np.percentile(volume, [0.5, 99.5])
    for k, sample in enumerate(folder):
        assert np.array_equal(sample.mask, truth[:, :, k].T)
        share = np.clip((volume[:, :, k].T - low) / (high - low), 0, 1)
        assert np.abs(sample.image[:, :, 1] - 255 * share).max() <= 0.51


def test_run_lengths_of_dicom(tmp_path: Path) -> None:
    color, deep = photo(), RANDOM.integers(0, 65536, (24, 32)).astype(np.uint16)
    path = compressed(tmp_path / "a.dcm", color, "RGB", RLELossless)
    assert np.array_equal(read_image(path), color)
    path = compressed(tmp_path / "b.dcm", deep, "MONOCHROME2", RLELossless)
    plain = dicom(tmp_path / "c.dcm", deep, "MONOCHROME2")
    assert np.array_equal(read_image(path), read_image(plain))


@pytest.mark.parametrize(
    ("kind", "syntax", "form", "options"),
    [("YBR_FULL_422", JPEGBaseline8Bit, "JPEG", {}),
     ("YBR_FULL", JPEGBaseline8Bit, "JPEG", {"subsampling": 0}),
     ("RGB", JPEGBaseline8Bit, "JPEG", {"keep_rgb": True}),
     ("YBR_RCT", JPEG2000Lossless, "JPEG2000", {"no_jp2": True}),
     ("YBR_ICT", JPEG2000, "JPEG2000", {"no_jp2": True, "irreversible": True})],
)  # fmt: skip
def test_compressed_dicom(
    tmp_path: Path, kind: str, syntax: UID, form: str, options: dict[str, Any]
) -> None:
    frames = np.stack([photo(), photo()])
    pairs = [encoded(frame, form, **options) for frame in frames]
    path = compressed(tmp_path / "a.dcm", frames[0], kind, syntax, pairs[0][0])
    assert np.abs(read_image(path).astype(int) - pairs[0][1]).max() <= 1
    path = compressed(tmp_path / "b.dcm", frames, kind, syntax, *(stream for stream, _ in pairs))
    for k, (_, shown) in enumerate(pairs):
        assert np.abs(read_image(path, frame=k).astype(int) - shown).max() <= 1


@pytest.mark.parametrize("syntax", [HTJ2KLossless, MPEG4HP41])
def test_other_compression_is_refused_with_what_is_read(tmp_path: Path, syntax: UID) -> None:
    path = compressed(tmp_path / "a.dcm", photo(), "RGB", syntax, b"\0" * 100)
    with pytest.raises(
        BadFile, match="is compressed as .*; expected no compression, RLE"
    ) as caught:
        read_image(path)
    assert syntax.name in str(caught.value) and "\n" not in str(caught.value)


def test_a_compressed_dicom_that_is_cut_off(tmp_path: Path) -> None:
    stream, _ = encoded(photo(), "JPEG")
    path = compressed(tmp_path / "a.dcm", photo(), "YBR_FULL_422", JPEGBaseline8Bit, stream)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadFile, match=r"a\.dcm cannot be decoded") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x" * 128 + b"DICM")
    with pytest.raises(BadFile, match=r"a\.dcm is not a readable DICOM image") as caught:
        read_image(tmp_path / "a.dcm")
    assert "\n" not in str(caught.value)
    (tmp_path / "labels").mkdir()
    for name in ("b.nii.gz", "labels/b.nii.gz"):
        (tmp_path / name).write_bytes(b"x" * 132)
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(UserError, match=r"b\.nii\.gz is not a readable NIfTI volume") as caught:
        SegmentationFolder(tmp_path)
    assert "\n" not in str(caught.value)


def claiming(path: Path, width: int, height: int) -> Path:
    """Write a PNG of a few bytes that claims to be ``width`` x ``height``."""
    path.write_bytes(png(width, height, b"\0" * 1000))
    return path


@pytest.mark.parametrize("size", [(13000, 13000), (20000, 20000), (17000, 40), (40, 17000)])
def test_claimed_sizes_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(BadFile, match="16384 pixels a side and 80 million") as caught:
        read_image(claiming(tmp_path / "a.png", *size))
    assert "\n" not in str(caught.value)
    assert read_header(claiming(tmp_path / "b.png", 8000, 6000)).size == (6000, 8000)


def test_a_dicom_that_claims_too_much(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", photo(), "RGB")
    data = pydicom.dcmread(path)
    data.Rows = data.Columns = 60000
    data.save_as(path)
    with pytest.raises(BadFile, match="60000x60000; expected at most"):
        read_image(path)
