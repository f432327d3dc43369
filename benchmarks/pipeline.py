"""The runner beside the loop that people write, with the same engine in the same run.

    python -m benchmarks.pipeline --out FOLDER [--quick] [--device cpu]

``runs``: a whole file at 640 x 480 through the engine alone, the loop (``cv2.VideoCapture``,
resize, infer, ``addWeighted``, writer) and the runner, in turns, so that a busy machine is busy for
all; ``own_share`` is the part of a frame's time that is not the engine's. ``own``: both with an
engine that costs nothing. ``slow``: a model slower than the video, both at the video's own rate.
``streams``: one stream and four. What stays flat over an hour: ``benchmarks.soak``.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import cores, machine, parser, show, write
from benchmarks.pipeline_loop import FPS, Usage, loop, picture, write_video
from deploy import options, runner
from deploy.pipeline.pipeline import Pipeline
from medisseg.errors import UserError, command

Row = dict[str, Any]
SLOW_MS = 100.0  # one inference of the slow model: 2.5 intervals of the video


class Shared:
    """One engine for all, in a thread of its own: see ``deploy.engine.supervisor``.

    With ``takes_ms`` it answers a fixed square after so many milliseconds instead.
    """

    def __init__(self, engine: Any, thread: Executor, takes_ms: float | None = None) -> None:
        self._engine, self._thread, self._takes_ms = engine, thread, takes_ms
        self._square = np.full((1, engine.classes, 64, 64), -6, np.float32)
        self._square[:, -1, 20:40, 20:40] = 6

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def infer(self, batch: Any) -> Any:
        """Return logits float32 [N, K, h, w]."""
        if self._takes_ms is None:
            return self._thread.submit(self._engine.infer, batch).result()
        if self._takes_ms:
            time.sleep(self._takes_ms / 1e3)
        return self._square.repeat(len(batch), axis=0)

    def costing(self, takes_ms: float) -> Shared:
        """Return one that answers a fixed square after so many milliseconds."""
        return Shared(self._engine, self._thread, takes_ms)

    def close(self) -> None:
        """Leave the engine open: closing it is its owner's."""


class Measured(Pipeline):
    """A pipeline that says what it cost from its first frame to its last file closed."""

    usage: Usage

    def start(self) -> None:
        self.usage = Usage()
        self.usage.start()
        super().start()

    def close(self, timeout: float = 10.0) -> None:
        try:
            super().close(timeout)
        finally:
            self.usage.stop()


def run_runner(engine: Shared, *words: object) -> Measured:
    """Run the runner as its command does, and return its pipeline."""
    kept: list[Measured] = []

    def make(*arguments: Any) -> Measured:
        kept.append(Measured(*arguments))
        return kept[0]

    chosen = options.parse([*map(str, words), "--model", "shared", "--window", "off"])
    with contextlib.redirect_stdout(io.StringIO()):
        code = runner.run(chosen, lambda: engine, make)
    if code:
        raise UserError(f"the runner ended with exit code {code}")
    for stream in kept[0].streams:
        if stream.quality:  # a frame that is not segmented would be a present to the runner
            raise UserError(f"{stream.source.name}: not segmented: {stream.quality}")
    return kept[0]


def row(case: str, frames: int, usage: Usage, latency: dict[str, float]) -> Row:
    """Return one line of the results."""
    return {
        "case": case,
        "frames": frames,
        "fps": round(frames / usage.wall_s, 2),
        "frame_ms": round(1e3 * usage.wall_s / frames, 3),
        "cpu_ms": round(1e3 * usage.cpu_s / frames, 3),
        "cpu_share": round(usage.cpu_s / usage.wall_s / cores(), 3),
        "peak_mb": round(usage.peak_mb, 1),
        "grown_mb": round(usage.peak_mb - usage.first_mb, 1),
        **{f"latency_{key}_ms": round(latency[key], 2) for key in ("p50", "p95", "p99")},
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    return {f"p{p}": float(np.percentile(values, p)) for p in (50, 95, 99)}


def alone(engine: Shared, frames: int) -> Row:
    """Only the engine, one frame after the other."""
    batch = engine.convention.preprocess(picture(0))[None]
    usage, times = Usage(), []
    usage.start()
    for _ in range(frames):
        began = time.perf_counter()
        engine.infer(batch)
        times.append((time.perf_counter() - began) * 1e3)
    usage.stop()
    return row("engine alone", frames, usage, percentiles(times))


def by_loop(engine: Shared, video: Path, frames: int, out: Path | None) -> Row:
    """The loop over a file."""
    usage = Usage()
    usage.start()
    latency = loop(video, engine.infer, engine.convention, out)
    usage.stop()
    return row(
        f"loop, {'overlay' if out else 'nothing'} written", frames, usage, percentiles(latency)
    )


def by_runner(
    engine: Shared, video: Path, frames: int, out: Path | None, record: str = "both"
) -> Row:
    """The runner over a file: videos, results and accounts, or nothing."""
    pipeline = run_runner(engine, video, "--record", record, *(["--out", out] if out else []))
    videos = "overlay, raw" if record == "both" else record
    case = f"runner, {f'{videos} and results' if out else 'nothing'} written"
    stream = pipeline.streams[0]
    return row(case, frames, pipeline.usage, stream.timing.latency_summary())


def measure_runs(engine: Shared, video: Path, frames: int, turns: int, folder: Path) -> list[Row]:
    """Let the ways take turns; medians over the turns, and the runner's cost beside inference."""
    taken: dict[str, list[Row]] = {}
    for turn in range(turns):
        for made in (
            alone(engine, frames),
            by_loop(engine, video, frames, folder / f"loop{turn}.mp4"),
            by_runner(engine, video, frames, folder / f"overlay{turn}", "overlay"),
            by_runner(engine, video, frames, folder / f"run{turn}"),
            by_loop(engine, video, frames, None),
            by_runner(engine, video, frames, None),
        ):
            taken.setdefault(made["case"], []).append(made)
    rows = [middle(many) for many in taken.values()]
    for made in rows:
        made["own_share"] = round(1 - rows[0]["frame_ms"] / made["frame_ms"], 4)
    return rows


def measure_own(engine: Shared, video: Path, frames: int, turns: int, folder: Path) -> list[Row]:
    """What each costs by itself: an engine that answers at once and costs nothing."""
    nothing = engine.costing(0)
    taken: dict[str, list[Row]] = {}
    for turn in range(turns):
        for out in (True, False):
            loop_out = folder / f"own-loop{turn}.mp4" if out else None
            run_out = folder / f"own-run{turn}" if out else None
            for made in (
                by_loop(nothing, video, frames, loop_out),
                by_runner(nothing, video, frames, run_out),
            ):
                taken.setdefault(made["case"], []).append(made)
    return [middle(many) for many in taken.values()]


def middle(rows: list[Row]) -> Row:
    """Return the medians of several turns' rows of one case."""
    return {
        key: value if isinstance(value, (str, int)) else statistics.median(r[key] for r in rows)
        for key, value in rows[0].items()
    }


def measure_slow(engine: Shared, video: Path, folder: Path) -> list[Row]:
    """A model of 100 ms at 25 frames a second: what a person sees grow, and what not."""
    slow, rows = engine.costing(SLOW_MS), []
    most = len_of(video)
    latency = {"loop": loop(video, slow.infer, engine.convention, None, True, most)}
    out = folder / "slow"
    run_runner(slow, video, "--realtime", "--record", "none", "--out", out)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    latency["runner"] = [line["latency_ms"] for line in lines if line["outcome"] == "processed"]
    for case, values in latency.items():
        quarter = max(1, len(values) // 4)
        rows.append(
            {
                "case": f"{case}, {SLOW_MS:.0f} ms model at {FPS} fps",
                "frames": len(values),
                "dropped": sum(line["outcome"] == "dropped" for line in lines)
                if case == "runner"
                else 0,
                "limit_ms": 2e3 / FPS + SLOW_MS,
                "first_quarter_ms": round(statistics.median(values[:quarter]), 1),
                "last_quarter_ms": round(statistics.median(values[-quarter:]), 1),
                **{f"latency_{k}_ms": round(v, 2) for k, v in percentiles(values).items()},
            }
        )
    return rows


def len_of(video: Path) -> int:
    """Return the number of frames of a video."""
    import av

    with av.open(str(video)) as container:
        return container.streams.video[0].frames


def measure_streams(engine: Shared, video: Path, frames: int, turns: int) -> list[Row]:
    """One stream and four, in turns: frames a second over all streams."""
    taken: dict[int, list[Row]] = {1: [], 4: []}
    for _ in range(turns):
        for count, rows in taken.items():
            pipeline = run_runner(engine, *[video] * count)
            latency = pipeline.streams[0].timing.latency_summary()
            rows.append(row(f"{count} streams", frames * count, pipeline.usage, latency))
    return [middle(rows) for rows in taken.values()]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write ``pipeline.json``."""
    given = parser("pipeline", __doc__)
    given.add_argument("--model", default="edge-polyp", help="checkpoint or bundle (edge-polyp)")
    given.add_argument("--backend", default="auto", help="the engine's backend")
    args = given.parse_args(argv)
    from export.runtime import load_engine

    with (
        tempfile.TemporaryDirectory() as temporary,
        ThreadPoolExecutor(1) as thread,
        thread.submit(load_engine, args.model, args.device, args.backend).result() as opened,
    ):
        engine = Shared(opened, thread)
        tables = measure(engine, Path(temporary), args.quick)
    for title, rows in tables.items():
        show(title, rows)
    named = [{"table": title, **row} for title, rows in tables.items() for row in rows]
    write(args.out, "pipeline", machine(args.device), named, engine=engine.name, model=args.model)
    return 0


def measure(engine: Shared, folder: Path, quick: bool) -> dict[str, list[Row]]:
    """Return all tables."""
    frames, turns = (12, 1) if quick else (200, 3)
    video = write_video(folder / "video.mp4", frames)
    slow = write_video(folder / "slow.mp4", 20 if quick else 250)
    return {
        "runs": measure_runs(engine, video, frames, turns, folder),
        "own": measure_own(engine, video, frames, turns, folder),
        "slow": measure_slow(engine, slow, folder),
        "streams": measure_streams(engine, video, frames, turns),
    }


if __name__ == "__main__":
    command(main)
