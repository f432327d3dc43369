"""Pipes, standard input, files that grow; and every source ends when the run is told to."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from deploy import options
from deploy.sources.opening import open_source
from medisseg.errors import UserError


def opened(*words: object) -> Any:
    given = [str(word) for word in words]
    return open_source(given[0], options.parse([*given, "--model", "m"]))


def copy(source: Path, target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", f"cat '{source}' > '{target}'"])


@pytest.mark.parametrize("real", [False, True])
def test_a_pipe_is_opened_once(
    play: Any, lab: Any, tmp_path: Path, real: bool, request: pytest.FixtureRequest
) -> None:
    if real:
        video = request.getfixturevalue("shared") / "cases" / "video" / "pipe" / "exam.ts"
    else:
        video = lab.write_video(tmp_path / "v.ts", map(lab.numbered_frame, range(20)))
    pipe = tmp_path / "p.ts"
    os.mkfifo(pipe)
    writer = copy(video, pipe)
    run = play(pipe)
    run.check_accounts()
    assert writer.wait(20) == 0  # its data was read to the end: no broken pipe
    assert run.report["frames"]["processed"] == play(video).report["frames"]["processed"] >= 10


def test_a_pipe_of_the_shell(lab: Any, tmp_path: Path) -> None:
    video = lab.write_video(tmp_path / "v.ts", map(lab.numbered_frame, range(8)))
    fake = Path(__file__).parents[1] / "fake.py"
    words = [f"'{sys.executable}' '{fake}'", f"<(cat '{video}')", "--out", f"'{tmp_path / 'run'}'"]
    done = subprocess.run(
        ["bash", "-c", " ".join([*words, "--window", "off", "--no-quality"])],
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert lab.Run(tmp_path / "run").report["frames"]["processed"] == 8


def test_a_pipe_that_brings_no_video_is_one_line(play: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no video at all" * 1000)
    pipe = tmp_path / "p.ts"
    os.mkfifo(pipe)
    writer = copy(tmp_path / "text", pipe)
    with pytest.raises(UserError, match=r"p\.ts cannot be read as a video"):
        play(pipe)
    writer.wait(20)


@pytest.fixture
def black_hole() -> Any:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        yield f"rtsp://127.0.0.1:{hole.getsockname()[1]}/video"


@pytest.mark.parametrize("source", ["pipe", "stdin", "black hole", "growing"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_whatever_its_source_does(
    spawn: Any, lab: Any, tmp_path: Path, black_hole: str, source: str, number: signal.Signals
) -> None:
    """Each of these waits for ever: a pipe without a writer, a server that never answers."""
    pipe = tmp_path / "p.ts"
    os.mkfifo(pipe)
    growing = lab.write_video(tmp_path / "v.ts", map(lab.numbered_frame, range(5)))
    words: list[object] = {
        "pipe": [pipe],
        "stdin": ["-", "--input-size", "48x64"],
        "black hole": [black_hole, "--timeout-s", 600],
        "growing": [growing, "--follow"],
    }[source]
    out = tmp_path / "run"
    alive = tmp_path / "metrics.prom"  # is first written when the run answers to signals
    more = ["--out", out, "--window", "off", "--metrics", alive]
    process = spawn(*words, *more, stdin=subprocess.PIPE)
    until = time.monotonic() + 120
    while not alive.exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.0)  # its threads wait by now
    process.send_signal(number)
    process.wait(60)  # the longest wait above is ten minutes, the others are for ever
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGHUP: 129}[number]
    assert (out / "report.json").exists()


def test_nohup_outlives_its_terminal(spawn: Any, lab: Any, tmp_path: Path) -> None:
    growing = lab.write_video(tmp_path / "v.ts", map(lab.numbered_frame, range(5)))
    out, alive = tmp_path / "run", tmp_path / "metrics.prom"
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    words = [growing, "--follow", "--out", out, "--window", "off", "--metrics", alive]
    process = spawn(*words, **ignore)
    until = time.monotonic() + 120
    while not alive.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    written = alive.stat().st_mtime_ns
    while alive.stat().st_mtime_ns == written and time.monotonic() < until:
        time.sleep(0.05)
    assert process.poll() is None  # it went on and wrote its metrics again
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    assert process.returncode == 143 and (out / "report.json").exists()


def test_a_file_that_grows_is_followed(lab: Any, tmp_path: Path) -> None:
    whole = lab.write_video(tmp_path / "whole.ts", map(lab.numbered_frame, range(90)), 10, g="5")
    data = whole.read_bytes()
    path, third = tmp_path / "exam.ts", len(data) // 3
    path.write_bytes(data[:third])
    source = opened(path, "--follow", "--timeout-s", 0.3)
    stop, links, found = threading.Event(), [], []

    def read() -> None:
        arrivals: Any = source.frames(stop, lambda *link: links.append(link))
        found.extend(arrival for arrival in arrivals if arrival.picture)

    def wait_for(condition: Any) -> None:
        until = time.monotonic() + 60
        while not condition() and time.monotonic() < until:
            time.sleep(0.02)
        assert condition(), (len(found), links)

    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: links[-1:] == [(False, "the file has not grown for 0.3 s")])
    before = len(found)
    assert 15 < before < 40
    with path.open("ab") as file:
        file.write(data[third:])
    wait_for(lambda: len(found) > 80)
    assert (True, "") in links[1:]
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    numbers = [lab.read_number(a.picture.to_ndarray(format="rgb24")) for a in found]
    assert numbers == [*range(len(numbers))]


def test_what_cannot_be_followed_is_refused(lab: Any, tmp_path: Path) -> None:
    video = lab.write_video(tmp_path / "v.mp4", map(lab.numbered_frame, range(3)))
    with pytest.raises(UserError, match="index at the end.*MPEG-TS"):
        opened(video, "--follow")
    for given in (tmp_path, "rtsp://host/live", 0, "-"):
        with pytest.raises(UserError, match="--follow goes with a file"):
            opened(given, "--follow", "--input-size", "4x4")


def test_devices_are_refused() -> None:
    with pytest.raises(UserError, match="/dev/zero is a device"):
        opened("/dev/zero")
