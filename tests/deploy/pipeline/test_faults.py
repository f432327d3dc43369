"""A fault of one frame stays in that frame, of one stream in that stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from deploy.outputs.pixels import rgb_to_yuv
from deploy.outputs.recording import FEWEST, MOST_SHORT, VideoRecorder
from deploy.pipeline import accounting, stages
from deploy.sources.files import FileSource
from deploy.sources.source import Arrival, Notes
from deploy.status import STALE
from medisseg.errors import UserError


def external() -> Exception:
    """What libx264 raises through FFmpeg: no OSError, no ValueError, no RuntimeError."""
    error = av.error.ExternalError(-542398533, "Generic error")
    assert not isinstance(error, (OSError, ValueError, RuntimeError))
    return error


def breaking(
    function: Callable[..., Any], error: Exception, at: Callable[[int], bool]
) -> Callable[..., Any]:
    """Return a function that raises at some of its calls, counted from 0."""
    calls = iter(range(10**6))

    def broken(*arguments: Any, **more: Any) -> Any:
        if at(next(calls)):
            raise error
        return function(*arguments, **more)

    return broken


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("to_rgb", external()),
        ("regions", cv2.error("bad size")),
        ("shown_part", IndexError("out of bounds")),
        ("draw_status", RuntimeError("no font")),
    ],
)
def test_a_stage_that_raises_costs_one_frame(
    play: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    monkeypatch.setattr(stages, part, breaking(getattr(stages, part), error, lambda n: n == 20))
    run = play(numbered, numbered)
    run.check_accounts()
    assert run.report["frames"] == {"in": 200, "processed": 199, "dropped": 0, "failed": 1}
    (lost,) = [line for line in run.lines if line["outcome"] == "failed"]
    stage = {"to_rgb": "preprocess", "draw_status": "draw"}.get(part, "temporal")
    assert lost["error"].startswith(f"{stage}: ")
    hurt = run.report["streams"][lost["stream"]]
    assert hurt["warnings"] == {f"frames that failed in {stage}": 1}
    assert not hurt["stopped"]  # the next frame was shown: it is over
    pictures = len(list(run.video("overlay-1"))), len(list(run.video("overlay-2")))
    assert sorted(pictures) == [99, 100] and len(run.video("raw")) == 200


@pytest.mark.parametrize(("part", "video"), [("to_yuv", "raw"), ("rgb_to_yuv", "overlay")])
def test_a_frame_that_cannot_be_recorded_is_missing_alone(
    play: Any, lab: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch, part: str, video: str
) -> None:
    broken = breaking(getattr(stages, part), cv2.error("bad size"), lambda n: n == 20)
    monkeypatch.setattr(stages, part, broken)
    run = play(numbered, "--frames", 40)
    run.check_accounts()
    assert run.report["frames"]["processed"] == 40
    part_of = run.report["streams"][0]
    assert part_of["warnings"] == {f"frames missing from the {video} video": 1}
    assert not part_of["stopped"]
    recorded = {name: run.video(name) for name in ("raw", "overlay")}
    for line in run.lines:  # every number is that of its own frame
        for name, pictures in recorded.items():
            if line[name] is not None and (name, line["id"]) != ("raw", 20):
                assert lab.read_number(pictures[line[name]]) == line["id"]
    if video == "raw":
        assert len(recorded["raw"]) == 40 and recorded["raw"][20].max() < 8
    else:
        assert run.lines[20]["overlay"] is None and len(recorded["overlay"]) == 39


def test_a_stage_that_always_raises_says_so(
    play: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    from deploy import options, runner
    from medisseg.errors import UserError

    monkeypatch.setattr(stages, "to_rgb", breaking(stages.to_rgb, external(), lambda n: True))
    words = [str(numbered), "--model", "fake", "--window", "off", "--frames", "9"]
    kept: list[Any] = []

    def keep(*arguments: Any) -> Any:
        kept.append(runner.Pipeline(*arguments))
        return kept[0]

    with pytest.raises(UserError, match="not one frame could be read and segmented"):
        runner.run(options.parse(words), fake.FakeEngine, keep)
    status = kept[0].live.status(0)
    assert status.frames["failed"] == 9 and "a frame failed in preprocess" in status.alarms[0]


def test_a_recorder_that_raises_stops_alone(
    play: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = VideoRecorder._begin

    def refused(self: VideoRecorder, *arguments: Any) -> None:
        begin(self, *arguments)
        if self._prefix == "overlay-1":
            self.parts[-1].frames = 0
            raise external()

    monkeypatch.setattr(VideoRecorder, "_begin", refused)
    run = play(numbered, numbered, "--frames", 30)
    run.check_accounts()
    assert run.report["frames"]["processed"] == 60
    first, second = run.report["streams"]
    assert first["stopped"] == ["recording stopped: Generic error"] and not second["stopped"]
    assert not list(run.folder.glob("overlay-1*")) and first["overlay"] == []
    assert [len(run.video(name)) for name in ("overlay-2", "raw-1", "raw-2")] == [30, 30, 30]


def test_a_source_that_raises_ends_alone(
    play: Any, lab: Any, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = lab.write_video(tmp_path / "other.mp4", map(lab.numbered_frame, range(30)))
    frames = FileSource.frames

    def broken(self: FileSource, *arguments: Any) -> Iterator[Arrival]:
        for number, arrival in enumerate(frames(self, *arguments)):
            if "other" in self.name and number == 7:
                raise KeyError("no such track")
            yield arrival

    monkeypatch.setattr(FileSource, "frames", broken)
    run = play(other, numbered)
    run.check_accounts()
    hurt, whole = run.report["streams"]
    assert (hurt["frames"]["processed"], whole["frames"]["processed"]) == (7, 100)
    assert hurt["stopped"] == ["source stopped: 'no such track'"] and not whole["stopped"]
    assert (len(run.video("overlay-1")), len(run.video("overlay-2"))) == (7, 100)


class Growing:
    """A source whose frames are as wide as no H.264 encoder takes them, for a while."""

    name, live, notes = "growing", False, Notes("growing")

    def frames(self, stop: object, link: Callable[[bool, str], None]) -> Iterator[Arrival]:
        link(True, "")
        for number in range(30):
            size = (64, 17_000) if 10 <= number < 15 else (240, 320)
            rgb = np.full((*size, 3), (150, 60, 50), np.uint8)
            yield Arrival(av.VideoFrame.from_ndarray(rgb, "rgb24"), number / 25)


def test_a_stream_of_huge_frames_costs_its_own_recordings(
    play: Any, numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy import runner

    opened = runner.open_source
    monkeypatch.setattr(
        runner, "open_source", lambda given, o: Growing() if given == "g" else opened(given, o)
    )
    run = play("g", numbered)
    run.check_accounts()
    hurt, whole = run.report["streams"]
    assert whole["frames"]["processed"] == 100 and not whole["stopped"]
    assert (len(run.video("overlay-2")), len(run.video("raw-2"))) == (100, 100)
    assert hurt["frames"]["in"] == 30 and hurt["frames"]["processed"] == 25
    assert [reason[:18] for reason in hurt["stopped"]] == ["recording stopped:"]
    assert (len(run.video("overlay-1")), len(run.video("raw-1"))) == (25, 10)


def test_a_clock_that_breaks_at_every_frame_makes_few_files(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, "raw")
    grey = np.full((48, 64, 3), 90, np.uint8)
    for number in range(3 * FEWEST):
        assert recorder.write(rgb_to_yuv(grey), 601.0 * number, number) == number
    recorder.close()
    assert [part.frames for part in recorder.parts] == [FEWEST] * 3


def test_a_size_that_changes_at_every_frame_stops_the_recording(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, "raw")
    for number in range(2 * MOST_SHORT):
        grey = np.full((48, 64 + 16 * (number % 2), 3), 90, np.uint8)
        recorder.write(rgb_to_yuv(grey), number / 25, 0, Fraction(1))
    recorder.close()
    assert recorder.stopped == ("recording stopped: the source changes its size again and again")
    assert len(recorder.parts) == len(list(tmp_path.iterdir())) == MOST_SHORT


def test_a_link_in_the_place_of_a_recording_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    out = tmp_path / "run"
    out.mkdir()
    (out / "raw-000.mp4").symlink_to(victim)
    recorder = VideoRecorder(out, "raw")
    assert recorder.write(rgb_to_yuv(np.full((48, 64, 3), 90, np.uint8)), 0.0) is None
    recorder.close()
    assert recorder.stopped == "recording stopped: File exists"
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["overlay-000.mp4", "raw-2-000.mp4", "events.csv"])
def test_a_folder_with_a_runs_files_is_refused(tmp_path: Path, name: str) -> None:
    from deploy.runner import claimed

    (tmp_path / name).symlink_to(tmp_path / "nothing")
    refused = pytest.raises(UserError, match="holds another run; choose another --out")
    with refused, claimed(tmp_path):
        pass


def test_a_watch_over_one_stream_that_fails_goes_on_over_the_others(
    monkeypatch: pytest.MonkeyPatch, fake: Any, caplog: Any
) -> None:
    import time

    from deploy import options, runner
    from deploy.chaos.loopback import LoopbackSource

    monkeypatch.setattr(
        accounting, "greyed", breaking(accounting.greyed, MemoryError("no room"), lambda n: n < 2)
    )
    source = LoopbackSource(lambda number: np.full((96, 128, 3), 120, np.uint8))
    source.start()
    words = [source.url, "--model", "fake", "--window", "off", "--no-quality"]
    kept: list[Any] = []

    def keep(*arguments: Any) -> Any:
        kept.append(runner.Pipeline(*arguments))
        return kept[0]

    def kill() -> None:
        while not kept or kept[0].live.latest() is None:
            time.sleep(0.02)
        source.kill()
        until = time.monotonic() + 20
        while time.monotonic() < until and not (
            (view := kept[0].live.latest()) and view.status.state != "LIVE"
        ):
            time.sleep(0.02)
        seen.append(kept[0].live.latest().status.state)
        kept[0].stop()

    import threading

    seen: list[str] = []
    threading.Thread(target=kill).start()
    runner.run(options.parse(words), fake.FakeEngine, keep)
    assert seen[0] in (STALE, "OFFLINE")
