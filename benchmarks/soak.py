"""The runner for a long time: four live streams for an hour, and runs that are killed.

    python -m benchmarks.soak --out FOLDER [--minutes 60] [--kills 10] [--quick]

The runner is a process of its own, with an engine that costs nothing: what grows is the runner's.
A viewer watches its page, its recordings begin a new part every minute, and one source after the
other is lost for some seconds every two minutes. Memory, threads and descriptors are read from
``/proc`` (Linux). Afterwards every frame must have its one line, and what a killed run left behind
must be readable. Writes ``soak.json``, ``.csv`` and ``.png``; returns 1 where a check fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, parser, show, write
from deploy.chaos.loopback import LoopbackSource
from deploy.chaos.videos import decoded, scene
from deploy.replay.recorded import RecordedRun
from medisseg.convention import InputConvention
from medisseg.errors import UserError, command
from medisseg.files import replacing
from medisseg.labels import Label

STREAMS = 4
LOST_EVERY_S, LOST_S = 120.0, 5.0  # one source after the other is gone, and for how long
PART_S = 60
LAST_S = 1.0  # of a killed run's recording may be missing
Sample = dict[str, float]


class SquareEngine:
    """Answers a fixed square at once."""

    backend, name = "square", "an engine that costs nothing"
    threshold, classes, max_batch, device = 0.5, 1, 8, "cpu"
    labels: tuple[Label, ...] = ()
    convention = InputConvention(size=(128, 128))

    def __init__(self) -> None:
        self._logits = np.full((1, 1, 32, 32), -6, np.float32)
        self._logits[..., 10:20, 10:20] = 6

    def infer(self, batch: Any) -> Any:
        """Return logits float32 [N, 1, 32, 32]."""
        return self._logits.repeat(len(batch), axis=0)

    def close(self) -> None:
        """There is nothing to close."""


def runner(words: Sequence[str]) -> int:
    """Run ``medisseg run WORDS`` with the engine above."""
    from deploy.options import parse
    from deploy.runner import run

    return run(parse(words), SquareEngine)


def start(sources: Sequence[LoopbackSource], out: Path, *words: object) -> subprocess.Popen[str]:
    """Start a runner on the sources; its output is ``out``'s neighbour with the suffix .log."""
    given = [source.url for source in sources] + ["--model", "square", "--out", str(out)]
    given += ["--window", "off", "--no-quality", "--part-s", str(PART_S), *map(str, words)]
    run_me = "import sys; from benchmarks.soak import runner; sys.exit(runner(sys.argv[1:]))"
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", run_me, *given], stdout=log, stderr=log, text=True
        )


@contextlib.contextmanager
def live_sources() -> Iterator[list[LoopbackSource]]:
    """Serve the streams until the block ends."""
    sources = [LoopbackSource(scene) for _ in range(STREAMS)]
    for source in sources:
        source.start()
    try:
        yield sources
    finally:
        for source in sources:
            source.kill()


def sample(process: subprocess.Popen[str], began: float) -> Sample:
    """Read a process's memory in MB, threads, descriptors and CPU seconds (proc(5))."""
    proc = Path(f"/proc/{process.pid}")
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return {
        "minute": round((time.monotonic() - began) / 60, 4),
        "mb": round(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 2),
        "threads": int(fields[17]),
        "descriptors": len(os.listdir(proc / "fd")),
        "cpu_s": (int(fields[11]) + int(fields[12])) / ticks,
    }


class Viewer(threading.Thread):
    """Watches the page as a browser does, and comes back when it is cut off."""

    def __init__(self, port: int) -> None:
        super().__init__(name="viewer", daemon=True)
        self.pictures = 0
        self._url, self._done = f"ws://127.0.0.1:{port}/live", threading.Event()

    def run(self) -> None:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        while not self._done.wait(0.5):
            with (
                contextlib.suppress(OSError, WebSocketException, TimeoutError),
                connect(self._url, max_size=None, proxy=None) as socket,
            ):
                while not self._done.is_set():
                    data = socket.recv(timeout=5)
                    assert isinstance(data, bytes)
                    (length,) = struct.unpack(">I", data[:4])
                    drawn = json.loads(data[4 : 4 + length])["number"]
                    socket.send(json.dumps({"drawn": drawn}))
                    self.pictures += len(data) > 4 + length

    def stop(self) -> None:
        """Leave."""
        self._done.set()
        self.join(10)


def soak(minutes: float, folder: Path, every_s: float) -> tuple[dict[str, Any], list[Sample]]:
    """Run the streams for so long; return what came of it, and the samples."""
    samples: list[Sample] = []
    lost: list[dict[str, float]] = []
    with live_sources() as sources:
        port = free_port()
        words = ("--duration", 60 * minutes, "--serve", f"127.0.0.1:{port}")
        process, began = start(sources, folder / "soak", *words), time.monotonic()
        viewer = Viewer(port)
        viewer.start()
        outages = threading.Thread(target=lose, args=(sources, process, began, lost), daemon=True)
        outages.start()
        try:
            while process.poll() is None:
                with contextlib.suppress(OSError):  # it has just ended
                    samples.append(sample(process, began))
                time.sleep(every_s)
        finally:
            process.kill()
            viewer.stop()
            outages.join()
    row: dict[str, Any] = {"case": "soak", "minutes": minutes, "exit_code": process.returncode}
    row |= {"pictures_watched": viewer.pictures, "sources_lost": len(lost)}
    return row | flatness(samples) | accounts(folder / "soak"), samples


def lose(
    sources: Sequence[LoopbackSource],
    process: subprocess.Popen[str],
    began: float,
    lost: list[dict[str, float]],
) -> None:
    """Take one source after the other away, as long as the process lives."""
    due = began + LOST_EVERY_S
    while process.poll() is None:
        time.sleep(0.2)
        if time.monotonic() < due:
            continue
        due += LOST_EVERY_S
        number = len(lost) % len(sources)
        lost.append({"minute": (time.monotonic() - began) / 60, "stream": number})
        sources[number].kill()
        time.sleep(LOST_S)
        sources[number].start()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def flatness(samples: Sequence[Sample]) -> dict[str, float]:
    """Compare the second fifth of a run with its last, and fit memory's slope after the first."""
    begin, end = samples[0]["minute"], samples[-1]["minute"]

    def between(low: float, high: float) -> list[Sample]:
        span = end - begin
        return [s for s in samples if low <= (s["minute"] - begin) / (span or 1) <= high]

    found: dict[str, float] = {}
    for name in ("mb", "threads", "descriptors"):
        for when, part in (("early", between(0.2, 0.4)), ("late", between(0.75, 0.97))):
            found[f"{name}_{when}"] = round(float(np.median([s[name] for s in part])), 1)
        found[f"{name}_most"] = max(s[name] for s in samples)
    rest = between(0.2, 0.97)
    slope = np.polyfit([s["minute"] for s in rest], [s["mb"] for s in rest], 1)[0]
    found["mb_per_hour"] = round(60 * float(slope), 2)
    used = samples[-1]["cpu_s"] - samples[0]["cpu_s"]
    return found | {"cores_used": round(used / max(60 * (end - begin), 1e-9), 3)}


def accounts(out: Path) -> dict[str, Any]:
    """Check a finished run: every frame of every stream has one line, and the sums agree.

    ``accounts`` is "exact", or what does not add up.
    """
    report = json.loads((out / "report.json").read_text())
    run = RecordedRun(out)
    wrong = []
    for number, part in enumerate(report["streams"]):
        frames, entries = part["frames"], [e for e in run.entries if e.stream == number]
        if frames["in"] != frames["processed"] + frames["dropped"] + frames["failed"]:
            wrong.append(f"stream {number}: {frames}")
        if sorted(entry.id for entry in entries) != list(range(frames["in"])):
            wrong.append(f"stream {number}: not every frame has its line")
        for outcome in ("processed", "dropped", "failed"):
            if sum(entry.outcome == outcome for entry in entries) != frames[outcome]:
                wrong.append(f"stream {number}: {outcome} differs between results and report")
        for video in ("overlay", "raw"):
            noted = sum(piece["frames"] for piece in part[video])
            plays = decoded(sorted(out.glob(f"{video}-{number + 1}-*.mp4")))
            if plays != noted:
                wrong.append(f"stream {number}: {video} plays {plays} of {noted} frames")
    run.close()
    names = ("in", "processed", "dropped", "failed")
    parts = len(list(out.glob("*.mp4")))
    counts = {name: report["frames"][name] for name in names}
    return {**counts, "parts": parts, "accounts": "; ".join(wrong) or "exact"}


def kill_once(number: int, sources: Sequence[LoopbackSource], folder: Path) -> dict[str, Any]:
    """Kill a run at a random moment and read what it left behind."""
    out, chance = folder / f"killed-{number}", random.Random(number)
    process = start(sources, out)
    wait_for_results(process, out)
    after_s = chance.uniform(2, 12)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    row: dict[str, Any] = {"case": f"kill {number + 1}", "after_s": round(after_s, 2)}
    return row | left_behind(out)


def wait_for_results(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until a run has written its first result."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if (out / "results.jsonl").stat().st_size:
                return
        time.sleep(0.1)
    raise UserError(f"the runner ended: {out.with_suffix('.log').read_text().strip()[-300:]}")


def left_behind(out: Path) -> dict[str, Any]:
    """Check a killed run: whole lines, no frame twice, videos that play but for the last second."""
    run = RecordedRun(out)
    wrong, missing = [], 0
    for number in range(run.streams):
        entries = [entry for entry in run.entries if entry.stream == number]
        ids = sorted(entry.id for entry in entries)
        if len(set(ids)) != len(ids):
            wrong.append(f"stream {number}: a frame has two lines")
        lines = [run.line(entry) for entry in entries]
        now = max(line["monotonic_s"] for line in lines)
        finished = sum(line["monotonic_s"] < now - LAST_S for line in lines)
        if ids[:finished] != list(range(finished)):
            wrong.append(f"stream {number}: a frame older than {LAST_S:g} s has no line")
        for video in ("overlay", "raw"):
            written = [line for line in lines if line.get(video) is not None]
            due = [line[video] for line in written if line["monotonic_s"] < now - LAST_S]
            plays = decoded(sorted(out.glob(f"{video}-{number + 1}-*.mp4")))
            missing = max(missing, len(written) - plays)
            if due and plays <= max(due):
                wrong.append(f"stream {number}: {video} plays {plays}, {max(due)} was written")
    frames = len(run.entries)
    run.close()
    return {"in": frames, "missing_at_end": missing, "accounts": "; ".join(wrong) or "exact"}


def plot(path: Path, row: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Draw memory, threads and descriptors over the minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    minutes = [s["minute"] for s in samples]
    for panel, name in zip(panels, ("mb", "threads", "descriptors"), strict=True):
        values = [s[name] for s in samples]
        panel.plot(minutes, values, linewidth=1)
        panel.set_ylim(0, 1.25 * max(values))
        panel.set_ylabel({"mb": "memory, MB"}.get(name, name))
    panels[-1].set_xlabel("minutes")
    title = "{in} frames = {processed} processed + {dropped} dropped + {failed} failed"
    figure.suptitle(f"{title.format(**row)}; {row['sources_lost']} sources lost", size=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(argv: Sequence[str] | None = None) -> int:
    """Soak, kill, write; 1 where something did not add up."""
    given = parser("soak", __doc__)
    given.add_argument("--minutes", type=float, default=60.0, help="of the long run (60)")
    given.add_argument("--kills", type=int, default=10, help="runs that are killed (10)")
    args = given.parse_args(argv)
    minutes, kills = (0.3, 1) if args.quick else (args.minutes, args.kills)
    if not sys.platform.startswith("linux"):
        raise UserError("the soak reads /proc; it runs on Linux")
    with tempfile.TemporaryDirectory(prefix="medisseg-soak-") as name:
        row, samples = soak(minutes, Path(name), max(0.5, minutes / 6))
        rows = [row]
        with live_sources() as sources:
            for number in range(kills):
                rows.append(kill_once(number, sources, Path(name)))
    write(args.out, "soak", machine("cpu"), rows, samples=samples)
    plot(Path(args.out) / "soak.png", row, samples)
    show("Soak", rows)
    whole = all(row["accounts"] == "exact" for row in rows) and row["exit_code"] == 0
    return 0 if whole else 1


if __name__ == "__main__":
    command(main)
