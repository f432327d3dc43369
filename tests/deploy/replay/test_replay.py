"""A recorded run shown again, frame-exact; two runs compared."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.pipeline.live import Controls, Live
from deploy.replay import compare
from deploy.replay import player as replay
from deploy.replay.player import Replayer, draw
from deploy.replay.recorded import RecordedRun
from deploy.status import Settings
from medisseg.errors import UserError


@pytest.fixture
def run(play: Any, lab: Any, numbered: Path) -> Any:
    return play(numbered)


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def test_every_frame_in_any_order_with_its_own_mask(run: Any, lab: Any) -> None:
    overlay, lines = run.video("overlay"), {line["id"]: line for line in run.lines}
    recorded = RecordedRun(run.folder)
    assert [entry.id for entry in recorded.entries] == list(range(100))
    order = [*range(100), *np.random.default_rng(5).permutation(100)[:40], 99, 98, 97, 0, 0, 51]
    for index in order:
        entry = recorded.entries[index]
        plain = recorded.picture(entry)
        assert plain is not None and lab.read_number(plain) == index
        shown = draw(recorded, entry)
        assert lab.read_number(shown) == index
        # What was shown then, but for compression (REPLAY stands above, counts below).
        difference = np.abs(shown[30:215].astype(int) - overlay[index][30:215]).mean()
        assert difference < 3.0, index
        drawn = np.abs(shown[30:210, 10:-10].astype(int) - plain[30:210, 10:-10]).sum(axis=2) > 0
        assert drawn.any() == bool(lines[index]["tracks"])
    recorded.close()


def test_dropped_frames_leave_a_gap_and_nothing_else(
    play: Any, lab: Any, fake: Any, numbered: Path
) -> None:
    engine = lambda: fake.FakeEngine(fake.slow(90))  # noqa: E731
    run = play(numbered, "--realtime", "--frames", 50, engine=engine)
    recorded = RecordedRun(run.folder)
    shown = [entry for entry in recorded.entries if recorded.recorded(entry)]
    assert len(shown) == run.report["frames"]["processed"] < 40
    for entry in shown:
        assert lab.read_number(recorded.picture(entry)) == entry.id
    assert sum(recorded.entries[-1].counts) <= 50
    recorded.close()


def test_odd_sizes(play: Any, lab: Any, tmp_path: Path) -> None:
    pictures = [lab.numbered_frame(i, (241, 321)) for i in range(6)]
    run = play(lab.write_video(tmp_path / "odd.mkv", pictures, pix_fmt="yuv444p"))
    recorded = RecordedRun(run.folder)
    assert draw(recorded, recorded.entries[5]).shape == (241, 321, 3)
    recorded.close()
    assert replay.main([str(run.folder), "--out", str(tmp_path / "again.mp4")]) == 0
    again = lab.read_video(tmp_path / "again.mp4")
    assert [lab.read_number(picture[:241, :321]) for picture in again] == [*range(6)]


def test_what_sigkill_left_is_replayed(
    spawn: Any, lab: Any, numbered: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = spawn(numbered, "--out", out, "--realtime", "--no-quality")
    results = out / "results.jsonl"
    wait_for(lambda: results.exists() and results.read_bytes().count(b"\n") > 40, 30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with results.open("ab") as file:
        file.write(b'{"id":99,"stre')  # a line cut off
    recorded = RecordedRun(out)
    shown = [entry for entry in recorded.entries if recorded.recorded(entry)]
    assert len(shown) > 15 and not recorded.report
    assert all(lab.read_number(recorded.picture(entry)) == entry.id for entry in shown)
    recorded.close()
    assert replay.main([str(out), "--out", str(tmp_path / "again.mp4")]) == 0
    assert len(lab.read_video(tmp_path / "again.mp4")) == len(shown)


def test_the_player_obeys(run: Any, lab: Any) -> None:
    recorded = RecordedRun(run.folder)
    live = Live(["a"], Controls(Settings()))
    player = Replayer(recorded, recorded.entries, live, pace=1.0)
    stop = threading.Event()
    thread = threading.Thread(target=player.work, args=(stop,), daemon=True)
    began = time.monotonic()
    thread.start()

    def number() -> int:
        view = live.latest(0)
        return -1 if view is None else lab.read_number(view.rgb)

    wait_for(lambda: number() >= 20)
    assert 0.6 < time.monotonic() - began < 2.5  # at its own pace: 20 frames at 25 a second
    player.play(False)
    time.sleep(0.1)
    at = number()
    time.sleep(0.2)
    assert number() == at == player.to_dict()["position"]
    player.step(-1)
    wait_for(lambda: number() == at - 1)
    player.seek(60)
    wait_for(lambda: number() == 60)
    before = live.latest(0)
    assert before is not None
    live.controls.set(opacity=1.0)
    wait_for(lambda: live.latest(0).sequence > before.sequence)  # type: ignore[union-attr]
    changed = np.abs(live.latest(0).rgb.astype(int) - before.rgb).sum()  # type: ignore[union-attr]
    assert changed > 0 and number() == 60
    player.seek(97)
    player.play(True)
    wait_for(lambda: number() == 99 and not player.to_dict()["playing"])
    player.play(True)  # at the end: from the beginning
    wait_for(lambda: 0 <= number() < 20)
    stop.set()
    thread.join(5)
    marks = player.to_dict()["marks"]
    alarms = {line["id"] for line in run.lines if line["alarm"]}
    assert alarms and {i for first, last in marks for i in range(first, last + 1)} == alarms
    recorded.close()


def test_two_streams_on_one_timeline(play: Any, lab: Any, numbered: Path) -> None:
    recorded = RecordedRun(play(numbered, numbered, "--frames", 10).folder)
    assert [(entry.stream, entry.id) for entry in recorded.entries[:4]] == [
        *[(0, 0), (1, 0), (0, 1), (1, 1)]
    ]
    live = Live(["a", "b"])
    player = Replayer(recorded, recorded.entries, live)
    player.seek(13)
    player._show_all()
    for stream in (0, 1):
        view = live.latest(stream)
        assert view is not None and lab.read_number(view.rgb) == 6
    recorded.close()


def test_a_replay_in_the_page(run: Any, tmp_path: Path, spawn_main: Any) -> None:
    """The whole command: the page's socket carries the player, Ctrl-C ends it."""
    from websockets.sync.client import connect

    process, url = spawn_main("replay", run.folder, "--serve", "127.0.0.1:0")
    port = re.search(r":(\d+)/", url)
    assert port is not None
    with connect(f"ws://127.0.0.1:{port[1]}/live", max_size=None, proxy=None) as socket:
        seen = [0]
        while seen[-1] < 5:
            data = socket.recv(10)
            header = json.loads(data[4 : 4 + int.from_bytes(data[:4], "big")])
            seen.append(header["player"]["position"])
            socket.send(json.dumps({"drawn": header["number"]}))
        assert header["player"]["frames"] == 100 and seen == sorted(seen)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


@pytest.fixture
def spawn_main() -> Any:
    import subprocess
    import sys

    started: list[Any] = []

    def start(*words: object) -> tuple[Any, str]:
        command = [
            sys.executable,
            str(Path(replay.__file__).parents[1] / "run.py"),
            *map(str, words),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "http://" in line:
                return process, line
        raise AssertionError(f"no page; exit code {process.wait()}")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "nothing holds no run: there is no results.jsonl in it"),
        (["{run}", "--speed", "0"], "--speed is 0.0; expected more than 0"),
        (["{run}", "--out", "x.avi"], "expected a file that ends in .mp4 or .mkv"),
        (["{run}", "--out", "x.mp4", "--stream", "2"], "no raw video of stream 2"),
        (["{run}", "--serve", "nowhere"], "expected HOST:PORT"),
    ],
)
def test_a_wrong_word_is_one_line(run: Any, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        replay.main([word.format(run=run.folder) for word in words])
    assert "\n" not in str(error.value)


def test_without_a_raw_video_there_is_nothing_to_show(play: Any, numbered: Path) -> None:
    folder = play(numbered, "--frames", 5, "--record", "none").folder
    with pytest.raises(UserError, match="has no raw video"):
        replay.main([str(folder)])


def shifted(fake: Any, worst: int) -> Any:
    """An engine that answers like the fake one, but ``worst`` batches in with half the polyp."""
    count = iter(range(10_000))

    def before(batch: np.ndarray) -> np.ndarray | None:
        number = next(count) - 1  # the first batch warms up
        if number not in (worst, worst + 10):
            return None
        excess = batch[:, 1:2] - np.maximum(batch[:, 0:1], batch[:, 2:3])
        logits = np.where(excess > 0.25, 6, -6).astype(np.float32)
        columns = np.flatnonzero((logits > 0).any(axis=(0, 1, 2)))
        middle = int(columns.mean()) if number == worst else columns[-3]
        logits[..., middle:] = -6
        return logits

    return fake.FakeEngine(before)


def test_two_runs_compared(
    play: Any, fake: Any, numbered: Path, tmp_path: Path, capsys: Any
) -> None:
    first = play(numbered, "--frames", 60).folder
    second = play(numbered, "--frames", 50, engine=lambda: shifted(fake, 30)).folder
    out = tmp_path / "compared"
    assert compare.main([str(first), str(second), "--out", str(out), "--worst", "3"]) == 0
    result = json.loads((out / "compare.json").read_text())
    assert result["frames"] == {
        "compared": 50,
        "not_segmented_in_one": 0,
        "only_in_a": 10,
        "only_in_b": 0,
    }
    assert [row["frame"] for row in result["worst"]] == [30, 40, 0]
    worst = result["worst"][0]
    # Half of a region against the whole: 2 * 1/2 / (1 + 1/2).
    assert worst["dice"] == pytest.approx(2 / 3, abs=0.06)
    exact = 2 * worst["area_b"] / (worst["area_a"] + worst["area_b"])  # B's lies inside A's
    assert worst["dice"] == pytest.approx(exact, abs=0.02)
    assert result["dice"]["identical_masks"] == 48 and result["dice"]["min"] == worst["dice"]
    assert result["dice"]["mean"] < 1 == result["dice"]["p50"]
    page = (out / "index.html").read_text()
    assert page.count("<img") == 6 and "frame 30, 1.20 s" in page
    assert len((out / "frames.csv").read_text().splitlines()) == 51
    assert "30" in capsys.readouterr().out


def test_runs_of_different_sources_are_not_compared(
    play: Any, lab: Any, numbered: Path, tmp_path: Path
) -> None:
    whole = play(numbered, "--frames", 20).folder
    frames = [255 - lab.numbered_frame(i) for i in range(20)]
    other = play(lab.write_video(tmp_path / "other.mp4", frames)).folder
    slower = play(lab.write_video(tmp_path / "slow.mp4", frames, fps=20)).folder
    two = play(numbered, numbered, "--frames", 5).folder
    bare = play(numbered, "--frames", 5, "--record", "none").folder
    unlike = play(tmp_path / "other.mp4", "--frames", 5, "--record", "none").folder
    for a, b, message in (
        (whole, other, "different sources: frame 0 shows another picture in"),
        (whole, slower, "different sources: frame 1 came at 0.040 s in"),
        (whole, two, r"has 1 stream\(s\), .* has 2"),
        (bare, unlike, "different sources: numbered.mp4 and other.mp4"),
        (whole, tmp_path, "holds no run"),
    ):
        with pytest.raises(UserError, match=message) as error:
            compare.main([str(a), str(b), "--out", str(tmp_path / "never")])
        assert "\n" not in str(error.value)
    assert not (tmp_path / "never").exists()
    assert compare.main([str(whole), str(bare), "--out", str(tmp_path / "same")]) == 0
