"""The runner on a live source for minutes: what of memory, threads and descriptors stays flat."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pipeline_loop import picture, resident_mb


def measure_soak(
    run_runner: Callable[..., Any], engine: Any, minutes: float, folder: Path
) -> dict[str, Any]:
    """A live source over the network for minutes; memory, threads, descriptors every second."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    samples: list[tuple[float, float, int, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(min(1.0, minutes)):
            descriptors = len(os.listdir("/proc/self/fd"))
            samples.append((time.monotonic(), resident_mb(), threading.active_count(), descriptors))

    watcher = threading.Thread(target=watch, name="soak")
    try:
        url = ours.recv()
        watcher.start()
        words = ["--duration", 60 * minutes, "--out", folder / "soak", "--part-s", 60]
        pipeline = run_runner(engine, url, *words)
    finally:
        done.set()
        server.terminate()
        server.join()
    watcher.join()
    return soak_row(pipeline, samples)


def soak_row(pipeline: Any, samples: list[tuple[float, float, int, int]]) -> dict[str, Any]:
    """Compare the second fifth of a soak with its end, and fit memory's slope after it."""
    columns = [np.array(column) for column in zip(*samples, strict=True)]
    early, late, flat = (
        slice(int(begin * len(samples)), int(end * len(samples)))
        for begin, end in ((0.2, 0.4), (0.75, 0.95), (0.4, 0.95))
    )
    row: dict[str, Any] = {"case": "soak", **pipeline.streams[0].counter.snapshot()}
    row["minutes"] = round(float(columns[0][-1] - columns[0][0]) / 60, 2)
    for name, values in zip(("mb", "threads", "descriptors"), columns[1:], strict=True):
        row[f"{name}_early"] = round(float(np.median(values[early])), 1)
        row[f"{name}_late"] = round(float(np.median(values[late])), 1)
    slope = np.polyfit(columns[0][flat] / 60, columns[1][flat], 1)[0]
    row["mb_per_minute"] = round(float(slope), 3)
    return row


def serve(pipe: Any) -> None:
    """Serve pictures from a process of its own, whose memory is not the runner's."""
    from deploy.chaos.loopback import LoopbackSource

    source = LoopbackSource(picture)
    source.start()
    pipe.send(source.url)
    threading.Event().wait()
