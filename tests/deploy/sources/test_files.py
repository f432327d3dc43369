"""Files as they are in the world: whole, broken, odd. What cannot be read is counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.options import Options
from deploy.sources.opening import open_source
from deploy.sources.pipes import RawSource
from deploy.sources.source import natural_order
from medisseg.errors import UserError


def test_every_frame_of_a_whole_file_is_processed(play: Any, numbered: Path) -> None:
    run = play(numbered)
    run.check_accounts()
    assert run.report["frames"] == {"in": 100, "processed": 100, "dropped": 0, "failed": 0}
    assert [line["id"] for line in run.lines] == list(range(100))
    assert len(run.video("overlay")) == len(run.video("raw")) == 100
    assert [change["to"] for change in run.report["state_changes"]] == ["LIVE", "OFFLINE"]


def test_a_truncated_file_gives_its_beginning(play: Any, lab: Any, tmp_path: Path) -> None:
    path = lab.write_video(tmp_path / "whole.ts", map(lab.numbered_frame, range(60)))
    short = tmp_path / "short.ts"
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    run = play(short)
    run.check_accounts()
    assert 20 <= run.report["frames"]["processed"] <= 40


def test_a_truncated_mp4_gives_its_beginning(
    play: Any, lab: Any, numbered: Path, tmp_path: Path
) -> None:
    import av

    front = tmp_path / "front.mp4"
    with (
        av.open(str(numbered)) as source,
        av.open(str(front), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    front.write_bytes(front.read_bytes()[: front.stat().st_size * 2 // 3])
    run = play(front)
    run.check_accounts()
    assert 30 <= run.report["frames"]["processed"] < 100


def test_flipped_bits_cost_frames_but_nothing_else(play: Any, lab: Any, tmp_path: Path) -> None:
    path = lab.write_video(tmp_path / "video.ts", map(lab.numbered_frame, range(80)))
    data = bytearray(path.read_bytes())
    places = np.random.default_rng(3).integers(20_000, len(data), 60)
    for place in places:
        data[place] ^= 0x55
    path.write_bytes(data)
    run = play(path)
    run.check_accounts()
    assert 40 <= run.report["frames"]["in"] <= 85


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_a_file_that_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exam.mp4"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"exam\.mp4.*expected a video file"):
        open_source(str(path), Options(sources=("x",), model="m"))


def test_a_video_file_without_video_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match="no video in it"):
        open_source(str(path), Options(sources=("x",), model="m"))


def test_one_frame(play: Any, lab: Any, tmp_path: Path) -> None:
    run = play(lab.write_video(tmp_path / "one.mp4", [lab.numbered_frame(5)]))
    assert run.report["frames"]["processed"] == len(run.video()) == 1
    assert run.report["latency_ms"]["count"] == 1


def test_odd_sizes_are_kept_in_results_and_padded_in_videos(
    play: Any, lab: Any, tmp_path: Path
) -> None:
    pictures = [lab.numbered_frame(i, (575, 719)) for i in range(5)]
    run = play(lab.write_video(tmp_path / "odd.mkv", pictures, pix_fmt="yuv444p"))
    assert run.lines[0]["size"] == [575, 719]
    for prefix in ("overlay", "raw"):
        video = run.video(prefix)
        assert [picture.shape for picture in video] == [(576, 720, 3)] * 5
        # The last row is there twice, not black.
        assert np.abs(video[0][574].astype(int) - video[0][575]).mean() < 4
    assert [lab.read_number(picture[:575, :719]) for picture in run.video("raw")] == [*range(5)]


def test_a_rotated_video_is_shown_upright(play: Any, lab: Any, tmp_path: Path) -> None:
    import av

    plain = lab.write_video(tmp_path / "plain.mp4", map(lab.numbered_frame, range(3)))
    data = bytearray(plain.read_bytes())
    # The matrix of the track header ("tkhd"): turned by 90 degrees clockwise for display.
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    for index, value in enumerate(matrix):
        data[at + 4 * index : at + 4 * index + 4] = value.to_bytes(4, "big", signed=True)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    with av.open(str(turned)) as container:
        assert next(container.decode(video=0)).rotation == -90
    run = play(turned)
    expected = np.rot90(lab.numbered_frame(1), -1)
    assert run.lines[0]["size"] == [320, 240]
    for prefix in ("raw", "overlay"):
        shown = run.video(prefix)[1]
        assert shown.shape == (320, 240, 3)
        middle = np.abs(shown.astype(int) - expected)[60:260]
        assert np.median(middle) < 12


def test_ten_bits(play: Any, lab: Any, tmp_path: Path) -> None:
    pictures = [lab.numbered_frame(i) for i in range(8)]
    path = lab.write_video(tmp_path / "ten.mkv", pictures, pix_fmt="yuv420p10le")
    run = play(path)
    assert [lab.read_number(picture) for picture in run.video("raw")] == [*range(8)]
    assert [lab.read_number(picture) for picture in run.video("overlay")] == [*range(8)]


def test_a_variable_rate_is_kept(play: Any, lab: Any, tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.30, 0.31, 0.9, 1.0]
    path = lab.write_video(
        tmp_path / "vfr.mkv", map(lab.numbered_frame, range(6)), times=times.__getitem__
    )
    run = play(path)
    assert [line["time_s"] for line in run.lines] == pytest.approx(times, abs=2e-3)
    import av

    with av.open(str(run.folder / "overlay-000.mp4")) as container:
        shown = [float(frame.time) for frame in container.decode(video=0)]
    assert shown == pytest.approx(times, abs=2e-3)


def test_a_change_of_size_begins_a_new_part(play: Any, lab: Any, tmp_path: Path) -> None:
    parts = [
        lab.write_video(
            tmp_path / f"{width}.ts",
            [lab.numbered_frame(i, (height, width)) for i in numbers],
        )
        for height, width, numbers in ((240, 320, range(20)), (480, 640, range(20, 40)))
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    run = play(both)
    run.check_accounts()
    assert [line["size"] for line in run.lines] == [[240, 320]] * 20 + [[480, 640]] * 20
    for prefix in ("overlay", "raw"):
        recorded = run.report["streams"][0][prefix]
        assert [(part["width"], part["first"], part["frames"]) for part in recorded] == [
            (320, 0, 20),
            (640, 20, 20),
        ]
        numbers = [lab.read_number(picture) for picture in run.video(prefix)]
        assert numbers == [*range(40)]


@pytest.mark.parametrize("name", ["two words", "it's; $(touch x) `y`", 'a "b"', "50%:1", "-"])
def test_paths_with_odd_characters(play: Any, lab: Any, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path = lab.write_video(tmp_path / "plain.mp4", map(lab.numbered_frame, range(3)))
    path = path.rename(folder / f"{name}.mp4")
    assert play(path).report["frames"]["processed"] == 3
    assert not (Path.cwd() / "x").exists()


def test_a_folder_of_images_in_natural_order(play: Any, lab: Any, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2, 10, 11):
        Image.fromarray(lab.numbered_frame(number)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"broken")
    (folder / "notes.txt").write_text("no image")
    run = play(folder)
    run.check_accounts()
    assert run.report["frames"] == {"in": 5, "processed": 4, "dropped": 0, "failed": 1}
    assert [lab.read_number(picture) for picture in run.video("raw")] == [1, 2, 10, 11]
    failed = [line for line in run.lines if line["outcome"] == "failed"]
    assert [line["id"] for line in failed] == [2] and "3.png" in failed[0]["error"]
    assert play(f"{folder}/1*.png").report["frames"]["in"] == 3


def test_natural_order() -> None:
    names = ["10.png", "9.png", "a2.png", "a10.png", "1.png"]
    ordered = [path.name for path in natural_order([Path(name) for name in names])]
    assert ordered == ["1.png", "9.png", "10.png", "a2.png", "a10.png"]


def test_raw_frames_from_a_pipe(lab: Any) -> None:
    import threading

    pictures = [lab.numbered_frame(i, (48, 64)) for i in range(3)]
    data = b"".join(picture.tobytes() for picture in pictures) + b"\0" * 100
    options = Options(sources=("-",), model="m", input_size="48x64")
    source = RawSource(options, io.BytesIO(data))
    arrivals = list(source.frames(threading.Event(), lambda connected, reason: None))
    assert [arrival.time for arrival in arrivals] == [0.0, 0.04, 0.08, 0.12]
    for arrival, picture in zip(arrivals, pictures, strict=False):
        np.testing.assert_array_equal(arrival.picture.to_ndarray(), picture)
    assert arrivals[3].picture is None and "100 bytes" in arrivals[3].error


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    options = Options(sources=("x",), model="m")
    for given, message in (
        ("nothing.mp4", "no such file"),
        ("ftp://host/x", "unknown address"),
        (str(tmp_path), "holds no images"),
        ("-", "--input-size"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(given, options)


def test_the_truth_is_compared_frame_by_frame(play: Any, lab: Any, tmp_path: Path) -> None:
    from PIL import Image

    masks = tmp_path / "masks"
    masks.mkdir()
    for number in range(12):
        picture = lab.numbered_frame(number)
        mask = (picture == lab.GREEN).all(axis=2).astype(np.uint8) * 255
        # Half the size: the truth may come at another size than the frames.
        Image.fromarray(mask[::2, ::2]).save(masks / f"{number}.png")
    video = lab.write_video(tmp_path / "v.mp4", map(lab.numbered_frame, range(12)))
    run = play(video, "--truth", masks, "--hold-off", 3)
    report = run.report
    assert report["dice_video"] > 0.93
    # Nothing is shown on the first three frames of twelve: they score 0.
    assert report["dice_video_shown"] == pytest.approx(report["dice_video"] * 9 / 12, abs=0.02)
    assert report["truth"] == {"masks": 12, "compared": 12}
    regions = report["detection"]  # of the raw masks: those of the first three frames count
    assert (regions["images"], regions["lesions"], regions["found"]) == (12, 12, 12)
    assert regions["by_least_area"]["0.0005"]["false_regions_per_frame"] == 0
    assert (run.folder / "froc.png").read_bytes().startswith(b"\x89PNG")
    page = (run.folder / "report.html").read_text()
    assert "12 of 12" in page and "lesions found against false regions a frame" in page
    alarms = report["alarms_against_truth"]
    assert (alarms["appearances"], alarms["alarmed"], alarms["false_alarms"]) == (1, 1, 0)
    assert alarms["median_seconds_to_first_alarm"] == pytest.approx(3 / 25, abs=0.02)
