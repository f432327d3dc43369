"""The other side of ``benchmarks.pipeline``: the loop that people write, and what both are fed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medisseg.video import add_h264

FPS = 25
CRF, PRESET = 20, "ultrafast"  # of both sides' videos; the runner's defaults


@dataclass
class Usage:
    """What a stretch of work cost: wall and CPU seconds, first and largest resident memory."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    first_mb: float = 0.0
    peak_mb: float = 0.0
    _began: tuple[float, float] = (0.0, 0.0)
    _done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to measure this process."""
        self._done.clear()
        self.first_mb = self.peak_mb = resident_mb()
        threading.Thread(target=self._watch, name="usage", daemon=True).start()
        self._began = (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """End the measurement."""
        self.wall_s = time.perf_counter() - self._began[0]
        self.cpu_s = time.process_time() - self._began[1]
        self._done.set()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak_mb = max(self.peak_mb, resident_mb())


def resident_mb() -> float:
    """Return this process's resident memory in MB (0 where the system does not tell)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def picture(index: int, size: tuple[int, int] = (480, 640)) -> npt.NDArray[np.uint8]:
    """Return frame ``index`` of a camera that pans over red tissue, uint8 RGB [H, W, 3]."""
    height, width = size
    y, x = (index * 2) % 64, (index * 3) % 64
    rgb = _tissue(size)[y : y + height, x : x + width].copy()
    rows, columns = np.ogrid[:height, :width]
    middle, across = height * 0.55, width * (0.45 + 0.1 * np.sin(index / 20))
    bump = ((rows - middle) / (height * 0.18)) ** 2 + ((columns - across) / (width * 0.15)) ** 2
    lift = (np.clip(1 - bump, 0, 1) * 60).astype(np.uint8)
    rgb[..., 0] += np.minimum(lift, 255 - rgb[..., 0])
    rgb[..., 1] += lift // 3
    return rgb


def _tissue(size: tuple[int, int], cache: dict[Any, Any] = {}) -> Any:  # noqa: B006
    import cv2

    if size not in cache:
        random = np.random.default_rng(7)
        height, width = size[0] + 64, size[1] + 64
        texture = np.zeros((height, width), np.float32)
        for step, weight in ((64, 30), (16, 20), (4, 14)):
            grid = random.standard_normal((height // step + 2, width // step + 2))
            texture += weight * cv2.resize(grid.astype(np.float32), (width, height))
        color = np.array((150, 75, 60), np.float32)
        cache[size] = np.clip(color + texture[..., None] * (1.0, 0.7, 0.5), 0, 190).astype(np.uint8)
    return cache[size]


def write_video(path: Path, frames: int, size: tuple[int, int] = (480, 640)) -> Path:
    """Encode ``frames`` pictures as H.264 at 25 frames a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = open_stream(container, size)
        for index in range(frames):
            container.mux(stream.encode(timed(picture(index, size), index, "rgb24")))
        container.mux(stream.encode(None))
    return path


def open_stream(container: Any, size: tuple[int, int]) -> Any:
    """Return an H.264 stream with the runner's own settings."""
    return add_h264(
        container, size, FPS, g="50", preset=PRESET, tune="zerolatency", crf=str(CRF), threads="1"
    )


def timed(pixels: Any, index: int, layout: str) -> Any:
    """Return a picture as a frame with its time."""
    import av

    frame = av.VideoFrame.from_ndarray(pixels, layout)
    frame.pts, frame.time_base = index, Fraction(1, FPS)
    return frame


def loop(
    video: Path,
    infer: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    convention: Any,
    out: Path | None,
    realtime: bool = False,
    most: int | None = None,
) -> list[float]:
    """Read, resize, infer, blend, write, as one finds it; return each frame's latency in ms.

    With ``realtime`` frame k comes k / 25 s after the start and waits for its turn, as it does in
    the buffer of ``cv2.VideoCapture`` on a live source. The writer is PyAV's, because OpenCV's
    wheel cannot encode H.264.
    """
    import av
    import cv2

    size, mean, std = convention.size, np.array(convention.mean), np.array(convention.std)
    capture = cv2.VideoCapture(str(video))
    latencies: list[float] = []
    container = av.open(str(out), "w") if out else None
    stream: Any = None
    start = time.perf_counter()
    while most is None or len(latencies) < most:
        if realtime:
            arrived = start + len(latencies) / FPS
            time.sleep(max(0.0, arrived - time.perf_counter()))
        read, bgr = capture.read()
        if not read:
            break
        if not realtime:
            arrived = time.perf_counter()
        small = cv2.resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), size[::-1])
        values = ((small / 255.0 - mean) / std).transpose(2, 0, 1)
        logits = infer(np.ascontiguousarray(values[None], np.float32))[0, 0]
        probability = cv2.resize(1 / (1 + np.exp(-logits)), bgr.shape[1::-1])
        color = np.zeros_like(bgr)
        color[probability > 0.5] = (170, 220, 0)
        shown = cv2.addWeighted(bgr, 1.0, color, 0.4, 0.0)
        latencies.append((time.perf_counter() - arrived) * 1e3)
        if container is not None:
            stream = stream or open_stream(container, bgr.shape[:2])
            container.mux(stream.encode(timed(shown, len(latencies) - 1, "bgr24")))
    capture.release()
    if container is not None:
        container.mux(stream.encode(None))
        container.close()
    return latencies
