"""The picture on a screen: found, held, segmented, written down; the rest is hidden where asked."""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import stat
import struct
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploy.pipeline.live import View
from medisseg.errors import UserError
from medisseg.picture import Picture

PLACE, MOVED = Picture(240, 40, 360, 300), Picture(60, 120, 300, 220)
SIZE = (400, 640)
NAME = (slice(150, 260), slice(8, 200))  # where a name stands: no words of ours are drawn there


def screen(number: int, place: Picture = PLACE) -> np.ndarray:
    """A processor's screen: mucosa with a green polyp, a patient's name beside it."""
    random = np.random.default_rng(number % 3)
    shade = cv2.resize(random.random((5, 5, 1)), place.size[::-1], interpolation=cv2.INTER_CUBIC)
    grain = random.random((*place.size, 1))
    mucosa = np.array([190, 95, 70]) * (0.45 + 0.5 * shade[..., None]) + 30 * (grain - 0.5)
    picture = np.clip(mucosa, 0, 255).astype(np.uint8)
    picture[90:170, 110:210] = (0, 200, 0)
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rows = [30, 55] if place == MOVED else [*range(170, 250, 25)]
    for row in rows:
        cv2.putText(rgb, "ANNA MUSTER", (12, row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (230,) * 3, 2)
    place.crop(rgb)[:] = picture
    return rgb


@pytest.fixture(scope="module")
def video(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("screens") / "screen.mp4"
    return lab.write_video(path, map(screen, range(40)), crf="8")


class Kept:
    """A run whose pipeline is kept, to look at what it shows."""

    def __init__(self, fake: Any, *words: object) -> None:
        from deploy import options, runner

        def keep(*arguments: Any) -> Any:
            self.pipeline = runner.Pipeline(*arguments)
            publish = self.pipeline.live.publish

            def published(rgb: np.ndarray, frame_id: int, status: Any) -> None:
                self.views.append(View(0, rgb.copy(), frame_id, status))
                publish(rgb, frame_id, status)

            self.pipeline.live.publish = published
            self.started()
            return self.pipeline

        self.views: list[View] = []
        self.started = lambda: None
        self.chosen = options.parse(
            [*map(str, words), "--model", "fake", "--window", "off", "--no-quality"]
        )
        self._run = lambda: runner.run(self.chosen, fake.FakeEngine, keep)

    def __call__(self) -> Kept:
        assert self._run() == 0
        return self


def test_what_is_found_is_written_down(play: Any, video: Path) -> None:
    run = play(video, "--hold-off", 0)
    found = {tuple(line["picture"]) for line in run.lines}
    assert len(found) == 1  # steady
    place = Picture(*found.pop())
    assert place.overlap(PLACE) > 0.97
    assert Picture(*run.report["streams"][0]["picture"]) == place
    assert f"{place.width} x {place.height} pixels" in (run.folder / "report.html").read_text()
    with open(run.folder / "events.csv") as file:
        events = [row for row in csv.DictReader(file) if row["event"] == "picture"]
    assert [(row["frame"], row["detail"]) for row in events] == [
        ("0", ",".join(map(str, place.to_list())))
    ]
    # The polyp, on the whole frame: 110 to 210, 90 to 170 within the picture.
    (left, top, width, height) = run.lines[-1]["boxes"][0]
    wanted = Picture(PLACE.left + 110, PLACE.top + 90, 100, 80)
    assert Picture(left, top, width, height).overlap(wanted) > 0.85
    from kernels.frames import decode_rle

    mask = decode_rle(run.lines[-1]["rle"])
    assert mask.sum() == run.lines[-1]["area"] == place.crop(mask).sum()
    # A thin line round it in the overlay, nothing in the raw video.
    overlay, raw = run.video("overlay")[5].astype(int), run.video("raw")[5].astype(int)
    edge = np.s_[place.top + 60 : place.top + 200, place.left - 1 : place.left + 2]
    assert np.abs(overlay[edge].max(1) - 120).mean() < 60
    assert np.abs(overlay[NAME] - raw[NAME]).mean() < 2


def test_least_area_and_quality_are_the_pictures_own(play: Any, fake: Any, video: Path) -> None:
    share = 100 * 80 / PLACE.area  # 0.074 of the picture, 0.031 of the frame
    shown = play(video, "--frames", 9, "--hold-off", 0, "--min-area", 0.8 * share)
    assert shown.lines[-1]["alarm"]
    assert not play(
        video, "--frames", 9, "--hold-off", 0, "--min-area", 0.8 * share, "--picture", "full"
    ).lines[-1]["alarm"]


def test_a_dark_screen_with_a_lit_picture_is_segmented(fake: Any, lab: Any, tmp_path: Path) -> None:
    small = Picture(480, 20, 120, 120)
    path = lab.write_video(tmp_path / "small.mp4", (screen_of(small) for _ in range(8)), crf="8")
    judged = {}
    for choice in ("full", "480,20,120,120"):
        from deploy import options, runner

        out = tmp_path / choice
        words = [str(path), "--model", "fake", "--window", "off", "--out", str(out)]
        words += ["--picture", choice]
        assert runner.run(options.parse(words), fake.FakeEngine) == 0
        judged[choice] = lab.Run(out).lines[-1]["quality"]
    assert judged["full"] == "dark" and judged["480,20,120,120"] == "good"


def screen_of(place: Picture) -> np.ndarray:
    rgb = np.zeros((600, 1200, 3), np.uint8)
    place.crop(rgb)[:] = cv2.resize(PLACE.crop(screen(1)), place.size[::-1])
    return rgb


def test_a_new_layout_is_found_and_written_down(play: Any, lab: Any, tmp_path: Path) -> None:
    frames = [screen(i) for i in range(30)] + [screen(i, MOVED) for i in range(60)]
    run = play(lab.write_video(tmp_path / "moved.mp4", frames, crf="8"), "--hold-off", 0)
    places = [Picture(*line["picture"]) for line in run.lines]
    assert places[0].overlap(PLACE) > 0.97 and places[-1].overlap(MOVED) > 0.97
    changes = sum(a != b for a, b in zip(places, places[1:], strict=False))
    first = next(i for i, place in enumerate(places) if place.overlap(MOVED) > 0.97)
    assert changes == 1 and first <= 30 + 2 * 25
    with open(run.folder / "events.csv") as file:
        events = [row for row in csv.DictReader(file) if row["event"] == "picture"]
    assert [row["frame"] for row in events] == ["0", str(first)]


def outside(picture: np.ndarray, place: Picture) -> np.ndarray:
    """What lies more than 2 pixels outside, int [N, 3]."""
    near = np.zeros(picture.shape[:2], bool)
    near[place.top - 2 : place.top + place.height + 2, place.left - 2 :][:, : place.width + 4] = (
        True
    )
    return picture[~near].astype(int)


def test_what_lies_outside_is_black_everywhere(
    fake: Any, lab: Any, video: Path, tmp_path: Path
) -> None:
    from deploy.watch.page import serve

    shown = lab.read_video(video)[0]
    assert shown[NAME].max() > 180  # the name can be read
    out = tmp_path / "run"
    kept = Kept(fake, video, "--hide-outside", "--out", out)()
    run = lab.Run(out)
    place = Picture(*run.lines[0]["picture"])
    raw = run.video("raw")
    assert len(raw) == 40
    for index, picture in enumerate(raw):
        assert outside(picture, place).max() <= 8, index  # H.264 rings a little
    inside = np.abs(place.crop(raw[0]).astype(int) - place.crop(shown).astype(int))
    assert inside.mean() < 6
    for index, picture in enumerate(run.video("overlay")):
        assert picture[NAME].max() <= 8, index
    assert len(kept.views) == 40 and not any(view.rgb[NAME].any() for view in kept.views)
    live = kept.pipeline.live
    with serve(live, "127.0.0.1:0") as page:
        assert not picture_of_snapshot(page.port)[NAME].any()
        assert picture_of_socket(page.port)[NAME].max() <= 8


def picture_of_snapshot(port: int) -> np.ndarray:
    from PIL import Image

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/snapshot/0.png")
    return np.asarray(Image.open(io.BytesIO(connection.getresponse().read())))


def picture_of_socket(port: int) -> np.ndarray:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/live", max_size=None, proxy=None) as browser:
        data = browser.recv(20)
    (length,) = struct.unpack(">I", data[:4])
    json.loads(data[4 : 4 + length])
    shown = cv2.imdecode(np.frombuffer(data[4 + length :], np.uint8), cv2.IMREAD_COLOR)
    assert shown is not None
    return shown


def test_a_lost_source_shows_no_name_either(fake: Any) -> None:
    from deploy.chaos.loopback import LoopbackSource

    source = LoopbackSource(screen)
    source.start()
    kept = Kept(fake, source.url, "--hide-outside", "--stale-s", "0.3")

    def watch() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until and not any(
            view.status.state in ("STALE", "OFFLINE") for view in list(kept.views)
        ):
            if len(kept.views) > 5:
                source.kill()
            time.sleep(0.05)
        kept.pipeline.stop()

    import threading

    kept.started = threading.Thread(target=watch).start
    kept()
    greyed = [view for view in kept.views if view.status.state in ("STALE", "OFFLINE")]
    assert greyed
    assert not any(view.rgb[NAME].any() for view in kept.views)
    assert PLACE.crop(greyed[-1].rgb).mean() > 10  # the picture itself is there, dim


def test_nothing_is_shown_before_the_place_is_known(play: Any, lab: Any, tmp_path: Path) -> None:
    dark = np.zeros((*SIZE, 3), np.uint8)
    cv2.putText(dark, "ANNA MUSTER", (12, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (230,) * 3, 2)
    frames = [dark] * 10 + [screen(i) for i in range(20)]
    run = play(lab.write_video(tmp_path / "dark.mp4", frames, crf="8"), "--hide-outside")
    assert all(picture[NAME].max() <= 8 for picture in run.video("raw"))
    assert PLACE.crop(run.video("raw")[-1]).mean() > 40


def test_hiding_what_is_not_outside_is_refused() -> None:
    from deploy import options

    with pytest.raises(UserError, match="nothing lies outside"):
        options.parse(["a.mp4", "--model", "m", "--hide-outside", "--picture", "full"])


def test_a_runs_folder_is_private(fake: Any, video: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        out, metrics = tmp_path / "case" / "run", tmp_path / "metrics.prom"
        Kept(fake, video, "--frames", 5, "--out", out, "--metrics", metrics)()
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}
    assert len(modes) == 6 and set(modes.values()) == {0o600}, modes
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (out, out.parent)] == [0o700] * 2
    assert stat.S_IMODE(metrics.stat().st_mode) == 0o644  # another user's collector reads it
