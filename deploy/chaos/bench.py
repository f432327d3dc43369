"""The test bench of ``medisseg run chaos``: a model, generated videos, and runs under watch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploy import options as options_module
from deploy.chaos.loopback import Picture
from deploy.chaos.videos import scene
from export.runtime.engine import Array, Batch, Engine
from medisseg.video import write_video

STILL_S = 30.0  # without progress for so long, a run is stuck
RUNNER = Path(__file__).parents[1] / "run.py"
Hook = Callable[[int, Array], Array | None]  # (number of the batch, batch) -> an answer, or None


class Failed(Exception):
    """A fault was not met as expected; the message says what happened instead."""


class Unable(Exception):
    """A fault cannot be made here; the message says why."""


def expect(condition: object, what: str) -> None:
    """Raise :class:`Failed` unless a condition holds."""
    if not condition:
        raise Failed(what)


class StallTimeout:
    """A timeout that starts anew with every sign of progress: a busy machine is slow, not stuck.

    Args:
        moving: Returns what changes while there is progress.
        what: What is waited for, for the message.
        still_s: Seconds without a change after which :meth:`check` fails.
    """

    def __init__(
        self, moving: Callable[[], object], what: str, still_s: float | None = None
    ) -> None:
        self._moving, self._what = moving, what
        self._still_s = STILL_S if still_s is None else still_s
        self._seen, self._since = moving(), time.monotonic()

    def check(self) -> None:
        """Raise :class:`Failed` when nothing has moved for too long."""
        now, seen = time.monotonic(), self._moving()
        if seen != self._seen:
            self._seen, self._since = seen, now
        elif now - self._since > self._still_s:
            raise Failed(f"{self._what}: nothing moved for {self._still_s:g} s")


class FaultyEngine:
    """The model's own engine, with a hook before every answer; closing it closes nothing."""

    device = "cpu"  # frames stay where a hook can see them

    def __init__(self, engine: Engine, hook: Hook | None) -> None:
        self._engine, self._hook, self._batches = engine, hook, 0
        self.backend, self.name = engine.backend, engine.name
        self.convention, self.threshold = engine.convention, engine.threshold
        self.classes, self.max_batch = engine.classes, engine.max_batch
        self.labels = engine.labels

    def infer(self, batch: Batch) -> Batch:
        """Return logits float32 [N, K, h, w], or what the hook returns in their place."""
        self._batches += 1
        if isinstance(batch, np.ndarray) and self._hook is not None:
            answer = self._hook(self._batches - 1, batch)
            if answer is not None:
                return answer
        return self._engine.infer(batch)

    def close(self) -> None:
        """Leave the shared engine open."""


class Bench:
    """Makes inputs and runs in a folder of its own.

    Args:
        folder: Where everything is written.
        engine: The model's engine, shared by all runs in this process.
        model: What ``--model`` names, for runs in a process of their own.
        runner: How such a process is started.
    """

    def __init__(
        self, folder: Path, engine: Engine, model: str, runner: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.engine, self.model = folder, engine, model
        self.runner = runner or (sys.executable, str(RUNNER))
        self.runs: list[Running] = []
        load_libraries()
        self.processes: list[subprocess.Popen[str]] = []

    def video(
        self,
        name: str,
        frames: int,
        size: tuple[int, int] = (240, 320),
        picture: Callable[[int, tuple[int, int]], Picture] | None = None,
    ) -> Path:
        """Write a generated video (once) and return its path."""
        path = self.folder / name
        if not path.exists():
            pictures = ((picture or scene)(i, size) for i in range(frames))
            write_video(path, pictures, preset="ultrafast", g="10")
        return path

    def start(self, *words: object, hook: Hook | None = None) -> Running:
        """Start a run in this process, at the video's own rate."""
        out = self.folder / f"run-{len(self.runs)}"
        self.runs.append(Running([*map(str, words)], lambda: FaultyEngine(self.engine, hook), out))
        return self.runs[-1]

    def play(self, *words: object, hook: Hook | None = None) -> Running:
        """Run a source to its end and check the accounts."""
        run = self.start(*words, hook=hook)
        run.finish()
        return run

    def spawn(self, *words: object, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a run in a process of its own."""
        command = [*prefix, *self.runner, *map(str, words), "--model", self.model]
        command += ["--no-quality", "--window", "off", "--realtime", "--too-slow-ms", "10000"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Stop what still runs."""
        for run in self.runs:
            run.give_up()
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


def load_libraries() -> None:
    """Load what a run loads, so that no fault is timed while Python reads files."""
    import av  # noqa: F401
    import cv2  # noqa: F401
    import matplotlib.figure  # noqa: F401

    import kernels.frames  # noqa: F401
    import medisseg.evaluation.report  # noqa: F401


class Running:
    """A run in a thread of this process."""

    def __init__(self, words: list[str], open_engine: Callable[[], Engine], out: Path) -> None:
        from deploy import runner

        self.out = out
        self.pipeline: Any = None
        self.error: BaseException | None = None
        common = ["--model", "chaos", "--out", str(out), "--window", "off", "--no-quality"]
        patient = ["--min-free-mb", "0", "--too-slow-ms", "10000"]  # a slow machine is no fault
        chosen = options_module.parse([*common, *patient, *words])

        def remember(*arguments: Any) -> Any:
            self.pipeline = runner.Pipeline(*arguments)
            return self.pipeline

        def body() -> None:
            try:
                runner.run(chosen, open_engine, remember)
            except BaseException as error:  # looked at in finish()
                self.error = error

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()

    def _moving(self) -> object:
        """Return what changes while a run works: processor time, then its status."""
        if self.pipeline is None:
            return time.process_time()
        status = self.pipeline.live.status(0)
        return status.state, status.reason, tuple(status.frames.values())

    def wait_for(self, condition: Callable[[Any], object], what: str) -> Any:
        """Wait until a stream's status fulfils a condition, and return the status.

        Raises:
            Failed: Nothing changed for too long.
        """
        timeout = StallTimeout(self._moving, f"no {what}")
        while True:
            if self.error is not None:
                raise self.error
            if self.pipeline is not None and condition(status := self.pipeline.live.status(0)):
                return status
            expect(self._thread.is_alive() or self.error is not None, f"it ended without {what}")
            timeout.check()
            time.sleep(0.02)

    def finish(self, stop: bool = False) -> None:
        """Wait for the end (``stop``: ask for it), and check the accounts."""
        if stop and self.pipeline is not None:
            self.pipeline.stop()
        timeout = StallTimeout(self._moving, "the run did not end")
        while self._thread.is_alive():
            self._thread.join(0.1)
            timeout.check()
        if self.error is not None:
            raise self.error
        check_accounts(self.out)

    def give_up(self, seconds: float = 5.0) -> None:
        """Stop the run, and wait ``seconds`` at most."""
        if self.pipeline is not None:
            self.pipeline.stop()
        self._thread.join(seconds)

    @property
    def report(self) -> dict[str, Any]:
        """The contents of ``report.json``."""
        found: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return found

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of ``results.jsonl``, one a frame."""
        return read_lines(self.out)


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``results.jsonl``."""
    return [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]


def check_accounts(out: Path) -> dict[str, int]:
    """Return a run's counts; raise :class:`Failed` where they do not add up."""
    frames: dict[str, int] = json.loads((out / "report.json").read_text())["frames"]
    lines = read_lines(out)
    added = frames["processed"] + frames["dropped"] + frames["failed"]
    expect(frames["in"] == added, f"in = {frames['in']}, but the rest adds up to {added}")
    streams = json.loads((out / "report.json").read_text())["streams"]
    ids = sorted((line["stream"], line["id"]) for line in lines)
    due = [(n, i) for n, stream in enumerate(streams) for i in range(stream["frames"]["in"])]
    expect(ids == due, "not every frame has its line in the results")
    return frames


def counted(frames: dict[str, int]) -> str:
    """Return the counts as words."""
    return "{in} = {processed} + {dropped} + {failed}".format(**frames)
