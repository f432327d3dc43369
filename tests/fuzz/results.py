"""A run's folder read back, as replay and compare do: any text, and edited lines and reports."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from deploy.chaos.videos import scene
from deploy.replay.compare import check_pictures, compared, matched
from deploy.replay.player import draw, status_of
from deploy.replay.recorded import RecordedRun
from kernels.frames import encode_rle
from medisseg.errors import UserError
from medisseg.video import write_video
from tests.fuzz.edits import Choices, dumps, edited

HERE = Path(tempfile.mkdtemp(prefix="medisseg-fuzz-"))
MASK = np.zeros((48, 64), np.uint8)
MASK[10:20, 20:40] = 1
TRACK = {
    "id": 1,
    "first_seen_s": 0.1,
    "first_frame": 0,
    "box": [20, 10, 20, 10],
    "area": 200,
    "confidence": 0.9,
}
LINE: dict[str, Any] = {
    "id": 0,
    "stream": 0,
    "time_s": 0.04,
    "monotonic_s": 12.5,
    "outcome": "processed",
    "error": "",
    "state": "LIVE",
    "off": "",
    "quality": "",
    "size": [48, 64],
    "area": 200,
    "boxes": [[20, 10, 20, 10]],
    "confidence": 0.9,
    "alarm": True,
    "tracks": [TRACK],
    "flicker": 0.0,
    "rle": encode_rle(MASK),
    "shown_rle": None,
    "raw": 0,
    "overlay": 0,
    "settings": {"threshold": 0.5, "opacity": 0.4, "hold_off": 3, "ai": True},
    "latency_ms": 20.0,
    "ms": {"infer": 5.0},
}
CLASSES = [{"name": "polyp", "color": [255, 0, 0], "rle": encode_rle(MASK)}]
REPORT: dict[str, Any] = {
    "fps": 25.0,
    "backend": "onnx",
    "engine": "edge",
    "streams": [{"source": "a camera", "latency_ms": {"p50": 20.0, "p99": 30.0}}],
}


def seeds() -> list[bytes]:
    lines = b"".join(dumps({**LINE, "id": i, "raw": i}) + b"\n" for i in range(3))
    return [b"\0" + lines, b"\0" + lines[:-9], b"\1\1\3\5", b"\2\1\3", b"\3\1\3", b"\4" + lines]


def folder_of(data: bytes) -> Path:
    """Return the run's folder that some bytes stand for."""
    folder = HERE / "run"
    if not folder.exists():
        folder.mkdir(parents=True)
        write_video(folder / "raw-000.mp4", (scene(i, (48, 64)) for i in range(4)))
    kind, rest = data[:1], data[1:]
    report, choices = REPORT, Choices(rest)
    if kind in (b"\1", b"\3"):
        line = {**LINE, "classes": CLASSES} if kind == b"\3" else LINE
        rest = dumps(LINE) + b"\n" + dumps({**line, "id": 1, "raw": 1}) + b"\n"
        rest += dumps(edited(line, choices)) + b"\n"
    elif kind == b"\2":
        report, rest = edited(REPORT, choices), dumps(LINE) + b"\n"
    (folder / "results.jsonl").write_bytes(rest)
    (folder / "report.json").write_bytes(rest if kind == b"\4" else dumps(report))
    return folder


def one(data: bytes) -> None:
    HERE.mkdir(exist_ok=True)
    try:
        with contextlib.closing(RecordedRun(folder_of(data))) as run:
            assert run.streams <= 1024
            for entry in run.entries[:20]:
                for use in (draw, status_of):
                    with contextlib.suppress(UserError):
                        use(run, entry, *([run.line(entry)] if use is status_of else []))
            pairs = matched(run, run)
            check_pictures(run, run, pairs)
            for first, second in pairs[:20]:
                compared(run, run, first, second)
    except UserError:
        pass


def done() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
