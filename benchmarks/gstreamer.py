"""Memory of a GStreamer pipeline with the element ``medisseg``, over time.

    python -m benchmarks.gstreamer --out FOLDER [--minutes 60] [--model edge-polyp]

Generated frames at 25 a second, and the pipeline's memory each second. ``grown_mb_an_hour`` is the
slope of a line through the second half: what fills caches once is in the first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import machine, parser, show, write
from medisseg.errors import UserError, command

PLUGIN = Path(__file__).resolve().parents[1] / "deploy/gstreamer"


def resident_mb(pid: int) -> float:
    """Return a process's resident memory in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(model: str, minutes: float) -> list[tuple[float, float]]:
    """Run the pipeline; return (seconds, MB) each second.

    Raises:
        UserError: GStreamer is not there, or the pipeline ended by itself.
    """
    if shutil.which("gst-launch-1.0") is None:
        raise UserError("no gst-launch-1.0; on Debian: apt install gstreamer1.0-tools")
    caps = "video/x-raw,format=RGB,width=640,height=480,framerate=25/1"
    words = ["gst-launch-1.0", "-q", "videotestsrc", "is-live=true", "pattern=ball", "!", caps]
    words += ["!", "queue", "leaky=downstream", "max-size-buffers=1"]
    words += ["!", "medisseg", f"model={model}", "!", "fakesink"]
    environment = {**os.environ, "GST_PLUGIN_PATH": str(PLUGIN)}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    began, seen = time.monotonic(), []
    try:
        while (passed := time.monotonic() - began) < minutes * 60:
            if process.poll() is not None:
                assert process.stderr is not None
                said = process.stderr.read().strip().splitlines() or ["without a word"]
                raise UserError(f"the pipeline ended after {passed:.0f} s: {said[0]}")
            seen.append((passed, resident_mb(process.pid)))
            time.sleep(1)
    finally:
        process.kill()
        process.wait()
    return seen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write ``gstreamer.json``."""
    given = parser("gstreamer", __doc__)
    given.add_argument("--minutes", type=float, default=60.0)
    given.add_argument("--model", default="edge-polyp")
    args = given.parse_args(argv)
    minutes = 0.5 if args.quick else args.minutes
    seconds, memory = np.array(watch(args.model, minutes)).T
    half = len(memory) // 2
    slope = np.polyfit(seconds[half:], memory[half:], 1)[0] * 3600
    rows = [{
        "minutes": round(float(seconds[-1]) / 60, 1),
        "first_mb": round(float(memory[0]), 1),
        "half_mb": round(float(np.median(memory[half - 5 : half + 5])), 1),
        "last_mb": round(float(np.median(memory[-10:])), 1),
        "most_mb": round(float(memory.max()), 1),
        "grown_mb_an_hour": round(float(slope), 1),
    }]  # fmt: skip
    show("gstreamer", rows)
    write(args.out, "gstreamer", machine("cpu"), rows, model=args.model)
    return 0


if __name__ == "__main__":
    command(main)
