"""Image files as a video: stacks with all their frames at their rate, folders, and what is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy import options
from deploy.sources.dicom import frame_seconds
from deploy.sources.opening import open_source
from deploy.sources.source import Arrival
from medisseg.errors import UserError

TIMES_MS = [40, 120, 200, 80]


def arrivals_of(*words: object) -> list[Arrival]:
    given = [str(word) for word in words]
    source = open_source(given[0], options.parse([*given, "--model", "m"]))
    return list(source.frames(threading.Event(), lambda connected, reason: None))


def check(arrivals: list[Arrival], lab: Any, times: list[float]) -> None:
    assert not [arrival.error for arrival in arrivals if arrival.error]
    pictures = [a.picture.to_ndarray(format="rgb24") for a in arrivals if a.picture]
    assert [lab.read_number(picture) for picture in pictures] == [*range(len(times))]
    assert [arrival.time for arrival in arrivals] == pytest.approx(times, abs=1e-3)


def write_animated(path: Path, lab: Any) -> Path:
    first, *rest = (Image.fromarray(lab.numbered_frame(i)) for i in range(len(TIMES_MS)))
    more = {"lossless": True} if path.suffix == ".webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=TIMES_MS, **more)
    return path


def write_pages(path: Path, lab: Any) -> Path:
    first, *rest = (Image.fromarray(lab.numbered_frame(i)) for i in range(4))
    first.save(path, save_all=True, append_images=rest)
    return path


def write_dicom(path: Path, frames: np.ndarray, **tags: Any) -> Path:
    """A DICOM cine of uint8 RGB frames [N, H, W, 3], not compressed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName = "Secret^Person"
    data.NumberOfFrames, data.Rows, data.Columns = frames.shape[:3]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = tags.pop("pixels", frames.tobytes())
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        data["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def stacked(lab: Any, count: int = 4) -> np.ndarray:
    return np.stack([lab.numbered_frame(i) for i in range(count)])


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_animations_give_every_frame_at_its_time(tmp_path: Path, lab: Any, suffix: str) -> None:
    path = write_animated(tmp_path / f"exam{suffix}", lab)
    check(arrivals_of(path), lab, [0, 0.04, 0.16, 0.36])


def test_pages_of_a_tiff_and_times_of_a_gif_without(tmp_path: Path, lab: Any) -> None:
    path = write_pages(tmp_path / "exam.tif", lab)
    check(arrivals_of(path, "--input-fps", 10), lab, [0, 0.1, 0.2, 0.3])
    gif = write_pages(tmp_path / "exam.gif", lab)  # without times: a tenth of a second each
    check(arrivals_of(gif, "--input-fps", 50), lab, [0, 0.1, 0.2, 0.3])


def test_smaller_copies_in_a_tiff_are_no_frames(tmp_path: Path, lab: Any) -> None:
    import tifffile

    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(lab.numbered_frame(0), photometric="rgb")
        file.write(lab.numbered_frame(0)[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(lab.numbered_frame(1), photometric="rgb")
    check(arrivals_of(tmp_path / "pyramid.tif"), lab, [0, 0.04])


@pytest.mark.parametrize(
    ("tags", "times"),
    [
        ({"FrameTime": 100.0}, [0, 0.1, 0.2, 0.3]),
        ({"CineRate": 5}, [0, 0.2, 0.4, 0.6]),
        ({"RecommendedDisplayFrameRate": 50}, [0, 0.02, 0.04, 0.06]),
        ({"FrameTimeVector": [0, 50, 100, 200]}, [0, 0.05, 0.15, 0.35]),
        ({}, [0, 0.04, 0.08, 0.12]),
        ({"FrameTime": 1e12}, [0, 0.04, 0.08, 0.12]),  # 30 years is not believed
    ],
)
def test_dicom_cine_at_its_rate(
    tmp_path: Path, lab: Any, tags: dict[str, Any], times: list[float]
) -> None:
    check(arrivals_of(write_dicom(tmp_path / "cine.dcm", stacked(lab), **tags)), lab, times)
    plain = write_dicom(tmp_path / "IM000001", stacked(lab), **tags)  # as on a hospital's disc
    check(arrivals_of(plain), lab, times)


def test_a_video_in_dicom(tmp_path: Path, lab: Any, play: Any) -> None:
    from pydicom.encaps import encapsulate

    video = lab.write_video(tmp_path / "v.mp4", map(lab.numbered_frame, range(12))).read_bytes()
    half = len(video) // 4 * 2  # pieces have even lengths
    pieces = [video[:half], video[half:] + b"\0" * (len(video) % 2)]
    path = write_dicom(
        tmp_path / "exam.dcm",
        stacked(lab, 12),
        syntax="1.2.840.10008.1.2.4.102.1",
        pixels=encapsulate(pieces, has_bot=True),
        FrameTime=50.0,
    )
    check(arrivals_of(path), lab, [0.05 * i for i in range(12)])
    run = play(path)
    run.check_accounts()
    assert run.report["frames"]["processed"] == 12
    written = b"".join(file.read_bytes() for file in run.folder.iterdir())
    assert b"Secret" not in written


def test_a_damaged_video_in_dicom_is_one_failed_frame(tmp_path: Path, lab: Any) -> None:
    from pydicom.encaps import encapsulate

    path = write_dicom(
        tmp_path / "exam.dcm",
        stacked(lab, 3),
        syntax="1.2.840.10008.1.2.4.102",
        pixels=encapsulate([b"no video at all!"], has_bot=False),
    )
    (arrival,) = arrivals_of(path)
    assert arrival.picture is None and "cannot be read" in arrival.error


def test_frames_that_a_file_only_claims_end(tmp_path: Path, lab: Any) -> None:
    claimed = write_dicom(tmp_path / "more.dcm", stacked(lab, 2), NumberOfFrames=1_000_000)
    arrivals = arrivals_of(claimed)
    assert sum(arrival.picture is not None for arrival in arrivals) <= 2
    assert 25 <= sum(arrival.picture is None for arrival in arrivals) <= 27


def test_times_are_never_zero_nor_endless() -> None:
    for tags in ({"FrameTime": 0}, {"FrameTime": -5}, {"CineRate": -1}, {"FrameTime": 1e9}):
        assert next(frame_seconds(tags, 0.04)) == 0.04
    steps = frame_seconds({"FrameTimeVector": [0, 0, -3, 1e9, 50]}, 0.04)
    assert [next(steps) for _ in range(5)] == [0.04, 0.04, 0.04, 0.05, 0.04]


def test_hidden_files_and_litter_are_no_frames(play: Any, lab: Any, tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
        for index in range(2):
            (folder / f"._{index}.png").write_bytes(b"Mac OS X")
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / "folder.png").mkdir()
    for index in range(2):
        picture = lab.numbered_frame(index)
        Image.fromarray(picture).save(images / f"{index}.jfif", format="jpeg", quality=95)
        mask = (picture == lab.GREEN).all(axis=2)
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{index}.png")
    run = play(images, "--truth", masks, "--hold-off", 0)
    run.check_accounts()
    assert run.report["frames"] == {"in": 2, "processed": 2, "dropped": 0, "failed": 0}
    assert run.report["dice_video"] > 0.95  # "._0.png" would shift every mask by two


def test_the_real_litter_case(play: Any, shared: Path) -> None:
    run = play(shared / "cases" / "video" / "folder-litter" / "images")
    assert run.report["frames"] == {"in": 2, "processed": 2, "dropped": 0, "failed": 0}


@pytest.mark.parametrize("given", ["{0}", "{0}/*.mp4", "{0}/part?.mp4"])
def test_videos_of_a_folder_are_one_stream(play: Any, lab: Any, tmp_path: Path, given: str) -> None:
    folder = tmp_path / "exam"
    folder.mkdir()
    for part, numbers in ((2, range(30)), (10, range(30, 60))):
        lab.write_video(folder / f"part{part}.mp4", map(lab.numbered_frame, numbers))
    (folder / "part10.mp4").rename(folder / "part9.mp4")
    (folder / "._part2.mp4").write_bytes(b"Mac OS X")
    (folder / "exam.xml").write_text("<x/>")
    run = play(given.format(folder))
    run.check_accounts()
    assert run.report["frames"]["processed"] == 60
    assert [lab.read_number(picture) for picture in run.video("raw")] == [*range(60)]
    assert [part["frames"] for part in run.report["streams"][0]["raw"]] == [30, 30]
    assert np.diff([line["time_s"] for line in run.lines]) == pytest.approx([0.04] * 59, abs=2e-3)


def test_a_broken_video_among_others_is_one_failed_frame(
    play: Any, lab: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "1.mp4").write_bytes(b"broken")
    lab.write_video(folder / "2.mp4", map(lab.numbered_frame, range(3)))
    run = play(folder)
    run.check_accounts()
    assert run.report["frames"] == {"in": 4, "processed": 3, "dropped": 0, "failed": 1}


def test_images_and_videos_together_are_refused(lab: Any, tmp_path: Path) -> None:
    lab.write_video(tmp_path / "a.mp4", map(lab.numbered_frame, range(2)))
    Image.fromarray(lab.numbered_frame(0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"1 images and 1 videos.*\*\.mp4"):
        arrivals_of(tmp_path)
    assert len(arrivals_of(f"{tmp_path}/*.mp4")) == 2


@pytest.mark.parametrize("write", [write_animated, write_pages])
def test_a_cut_off_stack_gives_what_is_whole(
    tmp_path: Path, lab: Any, write: Callable[[Path, Any], Path]
) -> None:
    path = write(tmp_path / ("x.png" if write is write_animated else "x.tif"), lab)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    arrivals = arrivals_of(path)
    assert arrivals and all((a.picture is None) == bool(a.error) for a in arrivals)


def test_sixteen_bits_are_not_white(tmp_path: Path) -> None:
    import tifffile

    ramp = np.linspace(0, 65535, 256 * 64).astype(np.uint16).reshape(64, 256)
    tifffile.imwrite(tmp_path / "deep.tif", np.stack([ramp] * 3), photometric="minisblack")
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    for name, count in (("deep.tif", 3), ("deep.png", 1)):
        arrivals = arrivals_of(tmp_path / name)
        assert len(arrivals) == count
        shown = arrivals[0].picture.to_ndarray(format="rgb24")[..., 0]
        assert np.abs(shown.astype(int) - (ramp >> 8)).max() <= 1
