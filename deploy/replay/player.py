"""Show a recorded run again, from its own files: ``medisseg run replay RUN``.

Every picture is the raw frame with the mask, tracks and state that its own line in
``results.jsonl`` holds, drawn by the code that drew them then.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.analysis.tracking import Track
from deploy.outputs.drawing import draw_mask, draw_place, draw_status, draw_tag
from deploy.outputs.pixels import rgb_to_yuv
from deploy.outputs.recording import CLOCK
from deploy.pipeline.live import Controls, Live
from deploy.replay.recorded import Entry, Picture, RecordedRun, report_damage
from deploy.status import Settings, StreamStatus
from medisseg.arguments import Parser
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.labels import Label
from medisseg.picture import Picture as Place
from medisseg.video import add_h264

EXAMPLE = """examples:
  medisseg run replay runs/exam
  medisseg run replay runs/exam --serve 127.0.0.1:9000 --speed 0.5
  medisseg run replay runs/exam --out exam.mp4"""
ADDRESS = "127.0.0.1:8080"
TICK_S = 0.02


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page of a recorded run until Ctrl-C, or write its video."""
    parser = Parser(
        prog="medisseg run replay",
        description="Show a recorded run from its own files, frame by frame.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder that a run was written to (--out)")
    parser.add_argument("--serve", help=f"HOST:PORT of the page ({ADDRESS})")
    parser.add_argument("--token", help="token that the page demands")
    parser.add_argument("--out", type=Path, help="write a video here instead of showing a page")
    parser.add_argument("--stream", type=int, default=1, help="stream of --out, from 1 (1)")
    parser.add_argument("--speed", type=float, default=1.0, help="pace of the page (1.0)")
    args = parser.parse_args(argv)
    if not args.speed > 0:
        raise UserError(f"--speed is {args.speed}; expected more than 0")
    with closing(RecordedRun(args.run)) as run:
        shown = [entry for entry in run.entries if run.recorded(entry)]
        if not shown:
            raise UserError(
                f"{args.run} has no raw video (was it run with --record none or overlay?)"
            )
        missing = len(run.entries) - len(shown)
        print(f"{len(shown)} frames; {missing} more were dropped or not recorded", file=sys.stderr)
        if args.out is not None:
            return write(run, args.out, args.stream - 1)
        return show(run, shown, args.serve or ADDRESS, args.token, args.speed)


def show(run: RecordedRun, shown: list[Entry], address: str, token: str | None, pace: float) -> int:
    """Serve the page until Ctrl-C."""
    from deploy.watch.page import serve

    first = run.line(shown[0])["settings"]
    live = Live([run.source(i) for i in range(run.streams)], Controls(Settings(**first)))
    player = Replayer(run, shown, live, pace)
    with serve(live, address, token, player) as page:
        print(f"replay: {page.url}", file=sys.stderr)
        try:
            player.work()
        finally:
            live.close()
    return 0


def write(run: RecordedRun, path: Path, stream: int) -> int:
    """Write one stream as a video; frames of another size stand on the first one's."""
    import av

    entries = [e for e in run.entries if e.stream == stream and run.recorded(e)]
    if not entries:
        raise UserError(f"{run.folder} has no raw video of stream {stream + 1}")
    if path.suffix.lower() not in (".mp4", ".mkv"):
        raise UserError(f"--out is {path}; expected a file that ends in .mp4 or .mkv")
    size, last = None, -1
    with (
        replacing(path) as tmp_path,
        av.open(str(tmp_path), "w", format=_format(path)) as container,
    ):
        video = None
        for entry in entries:
            picture = draw(run, entry)
            size = size or picture.shape[:2]
            frame = rgb_to_yuv(fitted(picture, size))
            if video is None:
                whole = (frame.height, frame.width)
                video = add_h264(container, whole, 25, crf="18", preset="veryfast")
                video.codec_context.time_base = Fraction(1, CLOCK)
            last = max(last + 1, round((entry.time_s - entries[0].time_s) * CLOCK))
            frame.pts, frame.time_base = last, Fraction(1, CLOCK)
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
    print(f"{len(entries)} frames written to {path}")
    return 0


def _format(path: Path) -> str:
    return "mp4" if path.suffix.lower() == ".mp4" else "matroska"


def fitted(picture: Picture, size: tuple[int, int]) -> Picture:
    """Return a picture scaled into ``size`` (height, width), with black bars where it differs."""
    if picture.shape[:2] == size:
        return picture
    import cv2

    scale = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (max(1, int(side * scale)) for side in picture.shape[:2])
    out = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    out[top : top + height, left : left + width] = cv2.resize(picture, (width, height))
    return out


@report_damage
def draw(run: RecordedRun, entry: Entry, opacity: float | None = None) -> Picture:
    """Return a recorded frame, uint8 RGB [H, W, 3], as it was shown, with "REPLAY" on it."""
    picture, line = run.picture(entry), run.line(entry)
    if picture is None:
        raise UserError(f"{run.folder}: frame {entry.id} cannot be read from the raw video")
    mask = shown_mask(line)
    if mask is not None and line["tracks"]:
        strength = line["settings"]["opacity"] if opacity is None else opacity
        draw_mask(picture, mask, strength, labels_of(line))
    tracks = tuple(Track.from_dict(track) for track in line["tracks"])
    draw_place(picture, Place(*line["picture"]) if line.get("picture") else None)
    draw_status(picture, status_of(run, entry, line), tracks)
    draw_tag(picture, "REPLAY")
    return picture


def shown_mask(line: dict[str, Any]) -> Picture | None:
    """Return the mask that was drawn, uint8 [H, W]; None: not segmented.

    Of 0 and 1, or where the network has several classes of the places in :func:`labels_of`.
    """
    from kernels.frames import decode_rle

    if classes := line.get("classes"):
        parts = [np.uint8(k) * decode_rle(one["rle"]) for k, one in enumerate(classes, start=1)]
        joined: npt.NDArray[np.uint8] = np.maximum.reduce(parts)
        return joined
    rle = line["shown_rle"] or line["rle"]
    return None if rle is None else decode_rle(rle)


def labels_of(line: dict[str, Any]) -> tuple[Label, ...]:
    """Return the labels of a recorded frame's classes; empty for one class without a name."""
    return tuple(Label(one["name"], tuple(one["color"])) for one in line.get("classes", ()))


@report_damage
def status_of(run: RecordedRun, entry: Entry, line: dict[str, Any]) -> StreamStatus:
    """Return the status as it was when a frame was shown."""
    counted = dict(zip(("processed", "dropped", "failed"), entry.counts, strict=True))
    parts = run.report.get("streams", [])
    times = parts[entry.stream]["latency_ms"] if entry.stream < len(parts) else {}
    return StreamStatus(
        stream=entry.stream,
        source=run.source(entry.stream),
        state=line["state"],
        reason=line["off"],
        frame_id=entry.id,
        frames={"in": sum(entry.counts), **counted, "in_flight": 0},
        latency_ms={"last": line["latency_ms"], **{k: times.get(k, 0.0) for k in ("p50", "p99")}},
        fps=run.report.get("fps", 0.0),
        alarm=line["alarm"],
        tracks=tuple(line["tracks"]),
        quality=line["quality"],
        flicker=line["flicker"],
        size=tuple(line["size"]),  # type: ignore[arg-type]
        backend=run.report.get("backend", ""),
        settings=Settings(**line["settings"]),
    )


class Replayer:
    """Plays frames into a ``Live`` at their own pace; obeys the page's buttons.

    Positions count the recorded frames of all streams by their time.
    """

    def __init__(self, run: RecordedRun, shown: list[Entry], live: Live, pace: float = 1.0) -> None:
        self._run, self._shown, self._live, self._pace = run, shown, live, pace
        self._lock = threading.Lock()
        self._position, self._playing = 0, True
        self._asked = threading.Event()  # somebody moved the position or pressed a button
        self._marks = list(spans([entry.alarm for entry in shown]))
        self._first = self._opacity = live.controls.get().opacity

    def to_dict(self) -> dict[str, Any]:
        """Return the position and whether it plays, as JSON-ready values for the page."""
        entry = self._shown[self._position]
        return {
            "position": self._position,
            "frames": len(self._shown),
            "playing": self._playing,
            "marks": self._marks,
            "text": f"frame {entry.id} · {entry.time_s:.2f} s",
        }

    def play(self, on: bool) -> None:
        """Play (from the beginning when at the end) or pause."""
        with self._lock:
            if on and self._position == len(self._shown) - 1:
                self._position = 0
            self._playing = on
        self._asked.set()

    def seek(self, frame: int) -> None:
        """Move to a position, in frames."""
        with self._lock:
            self._position = min(max(frame, 0), len(self._shown) - 1)
        self._asked.set()

    def step(self, frames: int) -> None:
        """Pause, and go so many positions further on."""
        with self._lock:
            self._playing = False
        self.seek(self._position + frames)

    def work(self, stop: threading.Event | None = None) -> None:
        """Play until ``stop`` (or Ctrl-C)."""
        self._show_all()
        began, origin = time.monotonic(), self._shown[self._position].time_s
        while stop is None or not stop.is_set():
            if self._asked.is_set() or self._opacity_changed():
                self._asked.clear()
                self._show_all()
                began, origin = time.monotonic(), self._shown[self._position].time_s
            elif self._playing and self._due(began, origin):
                with self._lock:
                    self._position = min(self._position + 1, len(self._shown) - 1)
                    entry = self._shown[self._position]
                self._publish(entry)
            else:
                self._asked.wait(TICK_S)

    def _due(self, began: float, origin: float) -> bool:
        if self._position == len(self._shown) - 1:
            self._playing = False
            return False
        following = self._shown[self._position + 1]
        return (time.monotonic() - began) * self._pace >= following.time_s - origin

    def _opacity_changed(self) -> bool:
        before, self._opacity = self._opacity, self._live.controls.get().opacity
        return self._opacity != before

    def _show_all(self) -> None:
        """Show every stream as it was at the position."""
        newest: dict[int, Entry] = {}
        at = self._position
        for entry in reversed(self._shown[: at + 1]):
            newest.setdefault(entry.stream, entry)
            if len(newest) == self._run.streams:
                break
        for entry in newest.values():
            self._publish(entry)

    def _publish(self, entry: Entry) -> None:
        line = self._run.line(entry)
        # As it was, until somebody moves the slider.
        picture = draw(self._run, entry, None if self._opacity == self._first else self._opacity)
        status = dataclasses.replace(status_of(self._run, entry, line), age_s=0.0)
        self._live.publish(picture, entry.id, status)


def spans(flags: list[bool]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of every run of true flags."""
    begin: int | None = None
    for index, flag in enumerate([*flags, False]):
        if flag and begin is None:
            begin = index
        elif not flag and begin is not None:
            yield begin, index - 1
            begin = None
