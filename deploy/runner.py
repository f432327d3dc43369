"""One run: sources, engine, recorders, page and report put together, started and ended."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from deploy.audit import identity, utc_now
from deploy.engine.supervisor import EngineSupervisor
from deploy.options import Options
from deploy.outputs.recording import VideoRecorder
from deploy.outputs.results import Results, Truth
from deploy.pipeline.accounting import END
from deploy.pipeline.live import Controls, Live
from deploy.pipeline.pipeline import Pipeline
from deploy.pipeline.stream import Stream
from deploy.report import rows, summarize, write
from deploy.sources.opening import open_source
from deploy.watch.prometheus import prometheus_text
from deploy.watch.watchers import Watchers
from export.runtime.engine import Engine
from medisseg.errors import UserError
from medisseg.picture import parse_picture
from medisseg.text import plain, safe

SIGNALS: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # the end of an SSH session
    SIGNALS[signal.SIGHUP] = "SIGHUP"
GPU_LOST = "GPU lost"
RUN_FILES = re.compile(r"results\.jsonl|events\.csv|report\.json|(overlay|raw)(-\d+)+\.mp4")
EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129, GPU_LOST: 75}  # 75: start it again


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Set umask 077 within a block: recordings and results may hold names of patients."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@private_files()
def run(
    options: Options,
    open_engine: Callable[[], Engine],
    make_pipeline: Callable[..., Pipeline] = Pipeline,
) -> int:
    """Run the streams of ``options`` through the engine that ``open_engine`` opens.

    ``make_pipeline`` lets a caller keep hold of the pipeline, to watch and to stop it.

    Raises:
        UserError: Before anything runs: a source, the engine or the folder is not usable.
    """
    began, started = time.monotonic(), utc_now()
    if options.serve is not None:  # a wrong address is said before a model is loaded for it
        from deploy.watch.page.gate import Address, Gate

        Gate(Address.parse(options.serve), options.token, options.host_name)
    sources = [open_source(given, options) for given in options.sources]
    if any(source.live for source in sources):
        # Beside other work two threads have the later tail: p99 of a 1080p frame 12 ms against 1.4
        # (benchmarks/results/cpu/frames_threads.json).
        from kernels.frames import set_threads  # brings PyTorch, which --help does without

        set_threads(1)
    truth = Truth(options.truth) if options.truth else None
    timeout_s = options.too_slow_ms / 1e3 if any(source.live for source in sources) else None
    known = identity(options.model, options.to_dict())  # now: a file may be replaced meanwhile
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(claimed(options.out)) if options.out else None
        supervisor = stack.enter_context(
            contextlib.closing(
                EngineSupervisor(open_engine, timeout_s, options.hang_s, len(sources))
            )
        )
        picture = parse_picture(options.picture)
        streams = [Stream(i, s, options.stale_s, began, picture) for i, s in enumerate(sources)]
        controls = Controls(options.settings(supervisor.threshold))
        live = Live([source.name for source in sources], controls)
        timings = [stream.timing for stream in streams]
        live.metrics = lambda: prometheus_text(
            [live.status(stream.index) for stream in streams], timings
        )
        with Watchers(live, options) as watchers:
            results = None
            if folder is not None:
                results = stack.enter_context(contextlib.closing(Results(folder)))
                controls.on_change = partial(note_change, results, began)
            for stream in streams:
                equip(stream, options, folder, results)
                if truth is not None:
                    from deploy.outputs.score import VideoScore

                    stream.score = VideoScore(truth, supervisor.convention)
            pipeline = make_pipeline(streams, supervisor, options, live, results)
            ended = follow(pipeline, watchers, options)
    audit = {"started": started, "ended": utc_now(), **known}
    report = summarize(streams, supervisor, options, ended, audit)
    try:
        if folder is not None:
            write(folder, report, streams)
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder} ({error.strerror})") from error
    finally:  # a full disk keeps the report from its file, not from the terminal
        show(report, folder)
    if pipeline.threads.error is not None:
        raise pipeline.threads.error
    if all("source" in stream.faults for stream in streams):
        raise UserError(streams[0].ended)
    if ended == END and report["frames"]["in"] == report["frames"]["failed"]:
        raise UserError(f"{sources[0].name}: not one frame could be read and segmented")
    return EXIT_CODES.get(ended, 0)


def note_change(results: Results, began: float, changes: dict[str, object], by: str) -> None:
    """Write a change of settings into ``events.csv``: what, when, and by whom."""
    words = ", ".join(f"{name} = {value}" for name, value in changes.items())
    moment = round(time.monotonic() - began, 3)
    results.event(time_s=moment, event="setting", detail=f"{words} by {by or 'this machine'}")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Make and check the folder of a run; an empty one is removed at the end.

    Raises:
        UserError: It holds another run, or cannot be made or written.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --out {folder} ({error.strerror})") from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"cannot write into --out {folder}; choose another")
    if any(RUN_FILES.fullmatch(name) for name in os.listdir(folder)):
        raise UserError(f"{folder} holds another run; choose another --out")
    try:
        yield folder
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty: then it is a run's folder
                folder.rmdir()


def equip(
    stream: Stream,
    options: Options,
    folder: Path | None,
    results: Results | None,
) -> None:
    """Give a stream its recorders."""
    stream.results = results
    if folder is None:
        return
    number = f"-{stream.index + 1}" if len(options.sources) > 1 else ""
    more = (options.crf, options.preset, options.part_s, options.min_free_mb * 1e6)
    if options.record in ("both", "overlay"):
        stream.overlay = VideoRecorder(folder, f"overlay{number}", *more)
    if options.record in ("both", "raw"):
        stream.raw = VideoRecorder(folder, f"raw{number}", *more)


def follow(pipeline: Pipeline, watchers: Watchers, options: Options) -> str:
    """Run until the sources end, a signal comes or the time is up; return which it was."""
    asked: list[str] = []

    def stop(number: int, _: object) -> None:
        if asked and asked[0] in SIGNALS.values():
            raise KeyboardInterrupt  # the second time a person asks, nothing is waited for
        asked.insert(0, SIGNALS[number])
        pipeline.stop()

    with handling(stop):
        pipeline.start()
        until = time.monotonic() + (options.duration or math.inf)
        while pipeline.threads.alive() and not pipeline.threads.failed.is_set():
            if time.monotonic() > until and not pipeline.stopping.is_set():
                asked.append("--duration")
                pipeline.stop()
            if pipeline.supervisor.lost and not asked:
                asked.append(GPU_LOST)
                pipeline.stop()
            if pipeline.stopping.is_set():
                break
            if not watchers.tick():
                asked.append("window closed")
                pipeline.stop()
        with contextlib.suppress(Exception):  # kept in threads.error: the report comes first
            pipeline.close()
    if pipeline.threads.error is not None:
        return f"error: {pipeline.threads.error!r}"
    return asked[0] if asked else ("stopped" if pipeline.stopping.is_set() else END)


@contextlib.contextmanager
def handling(stop: Callable[[int, object], None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP with ``stop`` within a block, in the main thread only.

    A SIGHUP that ``nohup`` had ignored stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {getattr(signal, "SIGHUP", None)} if ignores_hangup() else set()
    before = {number: signal.signal(number, stop) for number in SIGNALS if number not in kept}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignores_hangup() -> bool:
    """Return whether this process was started to outlive its terminal."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def show(report: dict[str, Any], folder: Path | None) -> None:
    """Print the end of a run."""
    for label, value in rows(report):
        print(f"{label:36s} {safe(value)}")
    for part in report["streams"]:
        for reason in part["stopped"]:
            print(safe(f"{part['source']}: {reason}"))
    if folder is not None:
        print(f"{'written to':36s} {plain(folder)}")
