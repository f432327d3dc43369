"""Recordings survive: a killed process, a full disk, a folder that cannot be written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.outputs.pixels import rgb_to_yuv
from deploy.outputs.recording import VideoRecorder


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(scope="session")
def long(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return lab.write_video(path, (lab.numbered_frame(i % 1000) for i in range(500)))


def test_what_was_recorded_before_sigkill_plays(
    spawn: Any, lab: Any, long: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = spawn(long, "--out", out, "--realtime", "--no-quality")
    wait_for(lambda: lines_in(out / "results.jsonl") > 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = lab.Run(out)
    # A busy machine drops frames: the overlay holds the processed ones, the raw video all.
    came = {"overlay": [line["id"] for line in run.processed()], "raw": [*range(len(run.lines))]}
    for prefix, ids in came.items():
        numbers = [lab.read_number(picture) for picture in run.video(prefix)]
        both = min(len(numbers), len(ids))  # a picture is written before its line
        assert numbers[:both] == ids[:both]
        # 25 frames a second: no more than the last second is missing.
        assert len(numbers) >= len(ids) - 25


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_report(
    spawn: Any, lab: Any, long: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "run"
    process = spawn(long, "--out", out, "--realtime", "--no-quality")
    wait_for(lambda: lines_in(out / "results.jsonl") > 10)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == code, errors.decode()
    assert b"Traceback" not in errors
    run = lab.Run(out)
    run.check_accounts()
    assert run.report["ended"] == {130: "Ctrl-C", 143: "SIGTERM"}[code]
    assert len(run.video("overlay")) == run.report["frames"]["processed"]
    assert (out / "report.html").is_file()


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 3 MB; where it cannot be mounted, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_recording_and_nothing_else(
    play: Any, lab: Any, fake: Any, small_disk: Path, long: Path, capsys: Any
) -> None:
    from deploy import options, runner

    words = [str(long), "--model", "fake", "--out", str(small_disk / "run"), "--min-free-mb", "0"]
    chosen = options.parse([*words, "--no-quality", "--crf", "0", "--window", "off"])
    (small_disk / "filling").write_bytes(bytes(2_300_000))
    ended: dict[str, int] = {}
    original = runner.summarize

    def freed(*arguments: Any) -> Any:
        # The person makes room before the end, so that the report can be written.
        (small_disk / "filling").unlink()
        report = original(*arguments)
        ended.update(report["frames"])
        return report

    runner.summarize, before = freed, runner.summarize
    try:
        assert runner.run(chosen, fake.FakeEngine) == 0
    finally:
        runner.summarize = before
    assert ended == {"in": 500, "processed": 500, "dropped": 0, "failed": 0}
    shown = capsys.readouterr().out
    assert "recording stopped: No space left on device" in shown
    report = lab.Run(small_disk / "run").report
    assert any("stopped" in reason for reason in report["streams"][0]["stopped"])
    recorded = lab.Run(small_disk / "run").video("overlay")
    numbers = [lab.read_number(picture) for picture in recorded]
    assert 0 < len(numbers) < 500 and numbers == [*range(len(numbers))]


def test_recording_stops_before_the_disk_is_full(play: Any, numbered: Path) -> None:
    run = play(numbered, "--min-free-mb", 1e9)
    assert run.report["frames"]["processed"] == 100
    assert "MB left on the disk" in run.report["streams"][0]["stopped"][0]
    assert not list(run.folder.glob("*.mp4"))


def test_files_of_limited_size(spawn: Any, lab: Any, long: Path, tmp_path: Path) -> None:
    """A quota without a mount: the kernel refuses to let any file grow."""
    out = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    process = spawn(
        long, "--out", out, "--no-quality", "--crf", 0, "--frames", 200, preexec_fn=limit
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    report = lab.Run(out).report
    assert report["frames"]["processed"] == 200
    assert any("recording stopped" in reason for reason in report["streams"][0]["stopped"])
    assert any("results stopped" in reason for reason in report["streams"][0]["stopped"])


@pytest.fixture
def locked(tmp_path: Path) -> Any:
    """A folder that this user cannot write to; root's must be on a disk mounted read-only."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        return
    command = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("root can write everywhere, and cannot mount here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_written_is_refused(
    fake: Any, numbered: Path, locked: Path
) -> None:
    from deploy import options, runner
    from medisseg.errors import UserError

    for out in (locked, locked / "run"):
        chosen = options.parse([str(numbered), "--model", "fake", "--out", str(out)])
        with pytest.raises(UserError, match="cannot (make|write into) --out"):
            runner.run(chosen, fake.FakeEngine)


@pytest.mark.parametrize("record", ["both", "overlay", "raw", "none"])
def test_only_the_videos_asked_for_are_written(play: Any, numbered: Path, record: str) -> None:
    run = play(numbered, "--frames", 5, "--record", record)
    names = {"both": ["overlay", "raw"], "none": []}.get(record, [record])
    assert sorted(path.stem for path in run.folder.glob("*.mp4")) == [f"{n}-000" for n in names]
    for kind in ("overlay", "raw"):
        expected = list(range(5)) if kind in names else [None] * 5
        assert [line[kind] for line in run.lines] == expected


def test_an_old_run_is_never_written_over(play: Any, numbered: Path, fake: Any) -> None:
    from deploy import options, runner
    from medisseg.errors import UserError

    folder = play(numbered, "--frames", 3).folder
    before = (folder / "results.jsonl").read_bytes()
    chosen = options.parse([str(numbered), "--model", "fake", "--out", str(folder)])
    with pytest.raises(UserError, match="holds another run"):
        runner.run(chosen, fake.FakeEngine)
    assert (folder / "results.jsonl").read_bytes() == before


def test_parts_follow_time_and_connections(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path, "overlay", part_s=1.0)
    grey = np.full((48, 64, 3), 90, np.uint8)
    for index in range(50):
        moment, connection = index / 25, int(index >= 40)
        assert recorder.write(rgb_to_yuv(grey), moment, connection) == index
    recorder.close()
    assert [(part.first, part.frames) for part in recorder.parts] == [(0, 25), (25, 15), (40, 10)]
    assert recorder.frames == 50


@pytest.mark.parametrize("size", [(64, 64), (62, 66), (61, 63)])
def test_colours_come_back(tmp_path: Path, lab: Any, size: tuple[int, int]) -> None:
    recorder = VideoRecorder(tmp_path, "overlay", crf=4)
    colors = [(200, 30, 30), (30, 180, 40), (20, 40, 220), (250, 250, 250), (3, 3, 3)]
    for index, color in enumerate(colors):
        recorder.write(rgb_to_yuv(np.full((*size, 3), color, np.uint8)), index / 25)
    recorder.close()
    for picture, color in zip(lab.read_video(tmp_path / "overlay-000.mp4"), colors, strict=True):
        assert picture.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert np.abs(picture.reshape(-1, 3).mean(axis=0) - color).max() < 5
