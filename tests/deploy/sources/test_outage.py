"""A server that is gone for a second or for ten, and comes back at another size."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.chaos.loopback import LoopbackSource
from deploy.sources import live as connections
from deploy.status import LIVE, OFFLINE, STALE


@contextlib.contextmanager
def running(source: LoopbackSource, engine: Any, out: Path) -> Iterator[Any]:
    """The runner in a thread; yields its pipeline once it is there."""
    from deploy import options, runner

    words = [source.url, "--model", "fake", "--out", str(out), "--no-quality", "--window", "off"]
    made, codes = [], []

    def make(*arguments: Any) -> Any:
        made.append(runner.Pipeline(*arguments))
        return made[0]

    chosen = options.parse([*words, "--timeout-s", "1"])
    thread = threading.Thread(
        target=lambda: codes.append(runner.run(chosen, lambda: engine, make)), daemon=True
    )
    thread.start()
    wait_for(lambda: made)
    try:
        yield made[0]
    finally:
        made[0].stop()
        thread.join(20)
    assert codes == [0]


def wait_for(condition: Any, seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited for {seconds} s")


@pytest.mark.parametrize("seconds", [1, 10])
def test_an_outage(
    fake: Any,
    lab: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seconds: int,
) -> None:
    monkeypatch.setattr(connections, "LONGEST_DELAY_S", 1.0)  # a test does not wait eight seconds
    size = [(240, 320)]
    source = LoopbackSource(lambda number: lab.numbered_frame(number % 1000, size[0]))
    source.start()
    engine = fake.FakeEngine()
    with running(source, engine, tmp_path / "run") as pipeline:
        status = pipeline.live.status
        wait_for(lambda: status(0).state == LIVE and status(0).frames["processed"] > 10)
        source.kill()
        wait_for(lambda: status(0).state == OFFLINE)
        time.sleep(0.3)  # what was on its way has arrived
        asked, frames = len(engine.batches), status(0).frames
        time.sleep(seconds)
        assert status(0).state == OFFLINE and status(0).age_s > seconds
        assert (len(engine.batches), status(0).frames) == (asked, frames)  # nothing was invented
        size[0] = (480, 640)
        source.start()
        wait_for(lambda: status(0).state == LIVE and status(0).size == (480, 640))
        wait_for(lambda: status(0).frames["processed"] > frames["processed"] + 10)
    source.kill()
    lost = [record.message for record in caplog.records if "lost: " in record.message]
    assert 1 <= len(lost) <= 4  # said once a reason, not at every try
    run = lab.Run(tmp_path / "run")
    run.check_accounts()
    states = [change["to"] for change in run.report["state_changes"]]
    assert [state for state in states if state != STALE] == [LIVE, OFFLINE, LIVE, OFFLINE]
    assert {(part["height"], part["width"]) for part in run.report["streams"][0]["overlay"]} == {
        (240, 320),
        (480, 640),
    }
    times = [line["time_s"] for line in run.processed()]
    assert np.diff(times).max() > seconds  # the outage is in the source's time as well
    numbers = [lab.read_number(picture) for picture in run.video()]
    assert sorted(set(numbers)) == numbers  # each frame once, in order, over both connections


def test_a_camera_that_is_unplugged(
    fake: Any, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV's camera is a stand-in: it gives 8 frames, is gone twice, and gives 8 more."""
    import cv2

    from deploy import options, runner

    opened: list[Any] = []

    class Camera:
        def __init__(self, index: int) -> None:
            self.number, self.open, self.left = index, len(opened) % 3 == 0, 8
            opened.append(self)

        def isOpened(self) -> bool:
            return self.open

        def set(self, name: int, value: float) -> None:
            pass

        def read(self) -> tuple[bool, Any]:
            time.sleep(0.03)
            self.left -= 1
            picture = lab.numbered_frame(8 * (len(opened) // 3) + 7 - self.left)
            return self.left >= 0, picture[..., ::-1].copy()

        def release(self) -> None:
            self.open = False

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(connections, "FIRST_DELAY_S", 0.05)
    words = ["7", "--model", "fake", "--no-quality", "--window", "off", "--frames", "16"]
    chosen = options.parse([*words, "--out", str(tmp_path / "run")])
    assert runner.run(chosen, fake.FakeEngine) == 0
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    assert [camera.number for camera in opened] == [7] * 4 and not any(c.open for c in opened)
    assert [lab.read_number(picture) for picture in result.video("raw")] == [*range(16)]
    assert len(list((tmp_path / "run").glob("raw-*.mp4"))) == 2  # a part a connection
    reasons = {change["reason"] for change in result.report["state_changes"]}
    assert "the camera gives no frames" in reasons


@pytest.mark.parametrize("given", ["3", "/dev/video3"])
def test_a_camera_is_asked_for_size_rate_and_pixels(
    fake: Any, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    import cv2

    from deploy import options, runner

    asked: list[tuple[int, float]] = []

    class Camera:
        def __init__(self, device: int | str) -> None:
            self.device, self.number = device, 0
            assert device == (3 if given == "3" else given)

        def isOpened(self) -> bool:
            return True

        def set(self, name: int, value: float) -> None:
            asked.append((name, value))

        def get(self, name: int) -> float:
            return {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480}.get(name, 30)

        def read(self) -> tuple[bool, Any]:
            time.sleep(0.03)
            self.number += 1
            return True, lab.numbered_frame(self.number, (480, 640))[..., ::-1].copy()

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    words = [given, "--model", "fake", "--no-quality", "--window", "off", "--frames", "5"]
    more = ["--camera-size", "1080x1920", "--camera-fps", "30", "--camera-format", "MJPG"]
    chosen = options.parse([*words, *more, "--out", str(tmp_path / "run")])
    assert runner.run(chosen, fake.FakeEngine) == 0
    assert asked[1:] == [
        (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")),
        (cv2.CAP_PROP_FRAME_HEIGHT, 1080),
        (cv2.CAP_PROP_FRAME_WIDTH, 1920),
        (cv2.CAP_PROP_FPS, 30),
    ]
    notes = lab.Run(tmp_path / "run").report["streams"][0]["notes"]
    assert notes == ["asked for 1080x1920, the camera gives 480x640"]


def test_what_no_camera_can_be_asked_for() -> None:
    from deploy import options
    from medisseg.errors import UserError

    for words in (["--camera-size", "1080p"], ["--camera-fps", "0"], ["--camera-format", "JPEGS"]):
        with pytest.raises(UserError, match=words[0]):
            options.parse(["0", "--model", "m", *words])
