"""Segment polyps in a video, live or recorded: ``medisseg run SOURCE --model M --out DIR``.

Exit codes: 0 at the end of the source; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP (the
report is written all the same); 2 for something that you can mend.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script, from any folder
    sys.path.insert(0, str(ROOT))
if sys.path[0] == str(ROOT / "deploy"):  # a module of ours must never hide a library
    del sys.path[0]

from deploy import options as options_module  # noqa: E402
from deploy.audit import identity, utc_now  # noqa: E402
from deploy.engine.supervisor import EngineSupervisor  # noqa: E402
from deploy.options import Options  # noqa: E402
from deploy.outputs.recording import VideoRecorder  # noqa: E402
from deploy.outputs.results import Results, Truth, VideoScore  # noqa: E402
from deploy.pipeline.accounting import END  # noqa: E402
from deploy.pipeline.live import Controls, Live  # noqa: E402
from deploy.pipeline.pipeline import Pipeline  # noqa: E402
from deploy.pipeline.stream import Stream  # noqa: E402
from deploy.report import rows, summarize, write  # noqa: E402
from deploy.sources.opening import open_source  # noqa: E402
from deploy.watch.prometheus import prometheus_text  # noqa: E402
from deploy.watch.watchers import Watchers  # noqa: E402
from export.runtime.engine import Engine  # noqa: E402
from medisseg.errors import UserError, command  # noqa: E402
from medisseg.picture import parse_picture  # noqa: E402
from medisseg.text import log_to_stderr, plain, safe  # noqa: E402

log = logging.getLogger("deploy")
OTHER_COMMANDS = {
    "replay": "deploy.replay.player",
    "compare": "deploy.replay.compare",
    "chaos": "deploy.chaos.command",
}
SIGNALS: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGHUP"):  # the end of an SSH session
    SIGNALS[signal.SIGHUP] = "SIGHUP"
GPU_LOST = "GPU lost"
EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129, GPU_LOST: 75}  # 75: start it again


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    log_to_stderr()
    if words and words[0] in OTHER_COMMANDS:
        return _other(words[0], words[1:])
    chosen = options_module.parse(words)
    return run(chosen, lambda: _open_engine(chosen))


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Keep other users from what a run writes: names and dates of patients stand in it."""
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
    patience = options.too_slow_ms / 1e3 if any(source.live for source in sources) else None
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(claimed(options.out)) if options.out else None
        supervisor = stack.enter_context(
            contextlib.closing(
                EngineSupervisor(open_engine, patience, options.hang_s, len(sources))
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
                equip(stream, options, folder, results, truth)
            pipeline = make_pipeline(streams, supervisor, options, live, results)
            ended = follow(pipeline, watchers, options)
    audit = {"started": started, "ended": utc_now(), **identity(options.model, options.to_dict())}
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
    """Make sure of a folder for a run, and leave none behind that nothing was written to."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make --out {folder} ({error.strerror})") from error
    if any((folder / name).exists() for name in ("results.jsonl", "report.json")):
        raise UserError(f"{folder} holds another run; choose another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into --out {folder}; choose another")
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
    truth: Truth | None,
) -> None:
    """Give a stream its recorders and its score."""
    stream.results = results
    stream.score = VideoScore(truth) if truth else None
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
    """Answer SIGINT, SIGTERM and SIGHUP with ``stop``, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(report: dict[str, Any], folder: Path | None) -> None:
    """Print the end of a run."""
    for label, value in rows(report):
        print(f"{label:36s} {safe(value)}")
    for part in report["streams"]:
        for reason in part["stopped"]:
            print(safe(f"{part['source']}: {reason}"))
    if folder is not None:
        print(f"{'written to':36s} {plain(folder)}")


def _open_engine(options: Options) -> Engine:
    from export.runtime import load_engine

    return load_engine(
        options.model,
        options.device,
        options.backend,
        threads=options.threads,
        precision=options.precision,
        trusted_key=options.trusted_key,
    )


def _other(name: str, words: list[str]) -> int:
    from importlib import import_module

    return import_module(OTHER_COMMANDS[name]).main(words) or 0


def entry(
    words: Sequence[str] | None = None,
    run_command: Callable[[Sequence[str] | None], int | None] = main,
) -> NoReturn:
    """Run as a command, and end even where a library holds on to a thread (a hung engine)."""
    try:
        command(lambda _: run_command(words))
    except SystemExit as end:
        if any(thread.daemon for thread in threading.enumerate()):
            # Python would kill such a thread inside its library, which aborts the process.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(end.code or 0))
        raise


if __name__ == "__main__":
    entry()
