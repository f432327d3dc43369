"""The faults of ``medisseg run chaos`` that need a process of their own: killed, or on a full disk.

They are started first and run in parallel with the others: each loads Python and the model.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from deploy.chaos.bench import Bench, Failed, StallTimeout, check_accounts, counted, expect
from deploy.chaos.faults import LONG
from deploy.chaos.videos import decoded, noise


def full_disk(bench: Bench, process: subprocess.Popen[str], out: Path) -> str:
    """recording stops with an alarm, every frame is still counted"""
    errors = end_of(process, out)
    expect(process.returncode == 0, f"exit code {process.returncode}: {last_line(errors)}")
    report = json.loads((out / "report.json").read_text())
    stopped = report["streams"][0]["stopped"]
    expect(any("recording stopped" in reason for reason in stopped), "the recording went on")
    frames = report["frames"]
    added = frames["processed"] + frames["dropped"] + frames["failed"]
    expect(frames["in"] == added and frames["processed"] > 0, counted(frames))
    return f"{stopped[0]}; {counted(frames)}"


def killed(bench: Bench, process: subprocess.Popen[str], out: Path) -> str:
    """what was recorded plays, but for the last second"""
    await_lines(process, out, 75)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    whole = (out / "results.jsonl").read_text().splitlines()[:-1]
    lines = [line for line in map(json.loads, whole) if line["outcome"] == "processed"]
    found = []
    for name in ("overlay", "raw"):
        plays = decoded(sorted(out.glob(f"{name}-*.mp4")))
        written = [line for line in lines if line[name] is not None]
        due = [line[name] for line in written if line["time_s"] < lines[-1]["time_s"] - 1]
        last = max(due, default=-1)  # a slow machine may have written nothing that is a second old
        expect(plays > last, f"{name}: {plays} frames play, frame {last} was written")
        found.append(f"{name}: {plays} frames play")
    return f"{', '.join(found)}; the last result is of {lines[-1]['time_s']:.1f} s"


def interrupted(bench: Bench, process: subprocess.Popen[str], out: Path) -> str:
    """report written, exit code 130, everything plays"""
    await_lines(process, out, 20)
    process.send_signal(signal.SIGINT)
    errors = end_of(process, out)
    expect(process.returncode == 130, f"exit code {process.returncode}: {last_line(errors)}")
    frames = check_accounts(out)
    played = decoded(sorted(out.glob("overlay-*.mp4")))
    shown = json.loads((out / "report.json").read_text())["streams"][0]["overlay"]
    expect(played == sum(part["frames"] for part in shown), f"{played} frames play")
    return f"exit code 130, {counted(frames)}"


def await_lines(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until a process has written so many results."""
    path, timeout = (
        out / "results.jsonl",
        StallTimeout(lambda: work_of(process, out), "it wrote nothing"),
    )
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        if process.poll() is not None:
            assert process.stderr is not None
            raise Failed(f"it ended by itself: {last_line(process.stderr.read())}")
        timeout.check()
        time.sleep(0.05)


def end_of(process: subprocess.Popen[str], out: Path) -> str:
    """Wait for a process as long as it works; return what it wrote to standard error."""
    timeout = StallTimeout(lambda: work_of(process, out), "it did not end")
    while True:
        try:
            return process.communicate(timeout=0.2)[1]
        except subprocess.TimeoutExpired:
            timeout.check()


def work_of(process: subprocess.Popen[str], out: Path) -> list[object]:
    """Return the processor time of a process, and the bytes in its folder."""
    work: list[object] = [path.stat().st_size for path in out.glob("*.*")]
    with contextlib.suppress(OSError):  # Linux only, and while it lives
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        work += fields[11:13]  # utime and stime, in ticks: proc(5)
    return work


def last_line(text: str) -> str:
    """Return the last line of an error output."""
    return (text.strip().splitlines() or ["nothing was said"])[-1][:100]


Apart = Callable[[Bench, "subprocess.Popen[str]", Path], str]
SMALL_FILES = ("sh", "-c", 'ulimit -f 500 && exec "$@"', "sh")  # 250 or 500 kB, by the shell


def start(bench: Bench, name: str) -> tuple[Apart, Bench, subprocess.Popen[str], Path]:
    """Start the process of a fault of ``APART``; return its function and the arguments."""
    out = bench.folder / name.replace(" ", "-")
    if APART[name] is full_disk:
        video = bench.video("noise.mp4", 50, picture=noise)
        return full_disk, bench, bench.spawn(video, "--out", out, prefix=SMALL_FILES), out
    return APART[name], bench, bench.spawn(bench.video("long.mp4", LONG), "--out", out), out


APART: dict[str, Apart] = {
    "disk quota reached": full_disk,
    "SIGKILL while recording": killed,
    "Ctrl-C while recording": interrupted,
}
