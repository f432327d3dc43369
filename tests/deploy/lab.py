"""What the runner's tests share: videos made to order, and a run's files read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medisseg import video

ID_BITS = 10
GREEN = (0, 200, 0)  # what the fake engine takes for a polyp


class Run:
    """What a run wrote, read back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "report.json").read_text())

    @property
    def lines(self) -> list[dict[str, Any]]:
        text = (self.folder / "results.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def processed(self, stream: int = 0) -> list[dict[str, Any]]:
        return [
            line
            for line in self.lines
            if line["outcome"] == "processed" and line["stream"] == stream
        ]

    def video(self, prefix: str = "overlay") -> list[np.ndarray]:
        return [
            picture
            for path in sorted(self.folder.glob(f"{prefix}-*.mp4"))
            for picture in read_video(path)
        ]

    def check_accounts(self) -> None:
        """in = processed + dropped + failed, each frame has one line, and every id is there."""
        report, lines = self.report, self.lines
        for part in [report, *report["streams"]]:
            frames = part["frames"]
            assert frames["in"] == frames["processed"] + frames["dropped"] + frames["failed"]
            assert frames.get("in_flight", 0) == 0
        assert len(lines) == report["frames"]["in"]
        for stream, part in enumerate(report["streams"]):
            ids = sorted(line["id"] for line in lines if line["stream"] == stream)
            assert ids == list(range(part["frames"]["in"]))
        for outcome in ("processed", "dropped", "failed"):
            counted = sum(line["outcome"] == outcome for line in lines)
            assert counted == report["frames"][outcome]


def read_video(path: Path) -> list[np.ndarray]:
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def numbered_frame(number: int, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A picture that says its number in black and white blocks, and in where its polyp is."""
    height, width = size
    picture = np.full((height, width, 3), (150, 60, 50), np.uint8)
    block = width // ID_BITS
    for bit in range(ID_BITS):
        value = 235 if number >> bit & 1 else 20
        picture[height // 4 : height // 4 + block, bit * block : (bit + 1) * block] = value
    x, y = polyp_corner(number, size)
    picture[y : y + height // 5, x : x + width // 5] = GREEN
    return picture


def polyp_corner(number: int, size: tuple[int, int] = (240, 320)) -> tuple[int, int]:
    return (number * 7) % (size[1] - size[1] // 5), size[0] // 2 + number % 20


def read_number(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    block = width // ID_BITS
    middle = picture[height // 4 + block // 4 : height // 4 + block - block // 4]
    bits = [middle[:, int((bit + 0.25) * block) : int((bit + 0.75) * block)] for bit in range(10)]
    return sum(int(bits[bit].mean() > 128) << bit for bit in range(ID_BITS))


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    fps: int = 25,
    pix_fmt: str = "yuv420p",
    times: Callable[[int], float] | None = None,
    **options: str,
) -> Path:
    """Encode pictures; ``times`` gives each frame's time in seconds where the rate varies."""
    fine = {"crf": "16", "preset": "ultrafast", **options}
    return video.write_video(path, pictures, fps, times, pixels=pix_fmt, **fine)
