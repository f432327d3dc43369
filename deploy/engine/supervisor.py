"""A supervisor of the engine: its faults turn the AI off, and the video goes on.

An engine that raises, hangs or returns values that are not finite is replaced by a new one, at most
five times a minute. One that is only slow keeps working; its late answer is thrown away, because it
belongs to a frame that has been shown already. A server that is away is asked for every second and
counts as no restart. Where the process has lost its GPU no new engine helps, and the run is told to
end, so that whatever started it starts it again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

from export.runtime.engine import Engine, Values
from medisseg.device import lost
from medisseg.errors import UserError
from medisseg.labels import Label

log = logging.getLogger(__name__)
RESTARTS_PER_MINUTE = 5
Answer: TypeAlias = "Values | BaseException | None"  # None: not yet


class EngineOff(Exception):
    """There is no answer for these frames; the message, shown on the screen, says why."""


def ask(engine: Engine, batch: Values) -> Values:
    """Return an engine's logits float32 [N, K, h, w], of an array or of a tensor."""
    return engine.infer(batch) if isinstance(batch, np.ndarray) else engine.infer(batch)


def warm_up(engine: Engine, count: int) -> None:
    """Ask about ``count`` black frames.

    Raises:
        ConnectionError: A server is away.
        UserError: There is no answer: of a graph that asks for 295 GB, for example.
    """
    try:
        engine.infer(np.zeros((count, 3, *engine.convention.size), np.float32))
    except ConnectionError:
        raise
    except Exception as error:  # ONNX Runtime's own classes have no public base
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{engine.name} cannot answer ({reason}); take another model, or a smaller one"
        ) from error


def finite(answer: Values) -> bool:
    """Return whether all logits are finite, by their sum in float64, which cannot overflow."""
    return math.isfinite(
        answer.sum(dtype=np.float64) if isinstance(answer, np.ndarray) else answer.double().sum()
    )


class _Worker:
    """One engine in one thread, from its opening on, with at most one batch at a time.

    OpenMP keeps a pool of threads for every thread that ever computed. With two pools there are
    more threads than cores, and then each waits asleep: an inference takes twice as long.

    Raises:
        BaseException: What opening the engine raised.
    """

    def __init__(self, open_engine: Callable[[], Engine], streams: int) -> None:
        self.engine: Engine
        self.began: float | None = None  # monotonic time of the batch at work
        self._jobs: queue.SimpleQueue[tuple[int, Values] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        self._number = 0
        work = partial(self._work, open_engine, streams)
        self._thread = threading.Thread(target=work, name="engine", daemon=True)
        self._thread.start()
        _, failure = self._answers.get()
        if isinstance(failure, BaseException):
            raise failure

    def ask(self, batch: Values, wait_s: float) -> Answer:
        """Return the answer, the error, or None when there is none within ``wait_s`` seconds."""
        self._number += 1
        self.began = time.monotonic()
        self._jobs.put((self._number, batch))
        return self.answer(wait_s)

    def answer(self, wait_s: float) -> Answer:
        """Wait for the answer to the newest batch."""
        deadline = time.monotonic() + wait_s
        with contextlib.suppress(queue.Empty):
            while True:
                left = max(0.0, deadline - time.monotonic())
                number, answer = (
                    self._answers.get(timeout=left) if left else self._answers.get(False)
                )
                if number == self._number:
                    self.began = None
                    return answer
        return None

    def _work(self, open_engine: Callable[[], Engine], streams: int) -> None:
        try:
            engine = open_engine()
            # Compiles, allocates, loads and captures; what it answers is looked at by nobody.
            largest = min(streams, engine.max_batch) if str(engine.device).startswith("cuda") else 1
            for count in range(1, largest + 1):
                warm_up(engine, count)
        except BaseException as error:  # handed to the thread that waits for the engine
            self._answers.put((0, error))
            return
        self.engine = engine
        self._answers.put((0, None))
        while (job := self._jobs.get()) is not None:
            number, batch = job
            try:
                self._answers.put((number, ask(engine, batch)))
            except Exception as error:  # handed to the asking thread
                self._answers.put((number, error))
        engine.close()

    def stop(self, wait_s: float) -> None:
        """Close the engine once it is idle; wait for that ``wait_s`` seconds at most."""
        self._jobs.put(None)
        self._thread.join(wait_s)


class EngineSupervisor:
    """An engine in a thread of its own, replaced when it fails.

    Args:
        open_engine: Opens the engine; called again for every restart.
        too_slow_s: How long :meth:`infer` waits for an answer; None: as long as ``hang_s``.
        hang_s: After so long without an answer the engine is replaced.
        streams: How many frames are asked about at once at most: on a GPU every batch size is
            warmed before the first frame.

    Attributes:
        lost: Why only a new process helps; "" while this one can go on.

    Raises:
        UserError: The first opening failed.
    """

    def __init__(
        self,
        open_engine: Callable[[], Engine],
        too_slow_s: float | None = None,
        hang_s: float = 30.0,
        streams: int = 1,
    ) -> None:
        self._open = partial(_Worker, open_engine, streams)
        self._wait_s = hang_s if too_slow_s is None else min(too_slow_s, hang_s)
        self._hang_s = hang_s
        self._restarts: deque[float] = deque(maxlen=RESTARTS_PER_MINUTE)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self.restarts = 0
        self.reason = ""  # why there are no answers now
        self.lost = ""
        self._worker: _Worker | None = self._open()
        engine = self._worker.engine
        self.convention, self.threshold = engine.convention, engine.threshold
        self.classes, self.max_batch = engine.classes, engine.max_batch
        self.backend, self.name = engine.backend, engine.name
        self.device = engine.device
        self.labels: tuple[Label, ...] = engine.labels
        self._ready.set()

    def wait(self) -> bool:
        """Wait for a restart under way; return whether there is an engine to ask again."""
        while not self._ready.wait(0.1):
            if self._closing.is_set() or self.lost or self.reason.startswith("engine off"):
                return False
        return True

    def infer(self, batch: Values) -> Values:
        """Return logits float32 [N, K, h, w]: an array, or a tensor of a batch on the GPU.

        Raises:
            EngineOff: No answer for this batch.
        """
        worker = self._worker
        if worker is None:
            raise EngineOff(self.reason)
        if worker.began is not None and worker.answer(0.0) is None:
            # Still at an older batch. Its answer comes too late for anyone.
            if time.monotonic() - worker.began > self._hang_s:
                self._replace(worker, f"no answer for {self._hang_s:g} s")
            raise EngineOff(self.reason)
        answer = worker.ask(batch, self._wait_s)
        if answer is None:
            self.reason = f"too slow: no answer in {self._wait_s * 1e3:.0f} ms"
            if self._wait_s >= self._hang_s:
                self._replace(worker, self.reason)
            raise EngineOff(self.reason)
        if isinstance(answer, BaseException):
            fault = f"{type(answer).__name__}: {answer}"
        else:
            fault = self._fault(answer, len(batch))
            if not fault:
                self.reason = ""
                return answer
        self._replace(worker, fault)
        raise EngineOff(self.reason)

    def _fault(self, answer: Values, length: int) -> str:
        expected = (length, self.classes)
        if answer.ndim != 4 or tuple(answer.shape[:2]) != expected:
            return f"answer of shape {list(answer.shape)}; expected {[*expected, 'h', 'w']}"
        return "" if finite(answer) else "answer is not finite"

    def _replace(self, worker: _Worker, reason: str) -> None:
        with self._lock:
            self._worker = None
            self._ready.clear()
            self.reason = f"engine restarting ({reason})"
        log.error("engine failed: %s", reason)
        threading.Thread(target=self._restart, args=(worker, reason), daemon=True).start()

    def _restart(self, old: _Worker, reason: str) -> None:
        hung = old.began is not None
        old.stop(0.0 if hung else 5.0)
        if not hung and (gone := lost(self.device)):
            self.reason = self.lost = f"the GPU is lost to this process ({gone})"
            log.error("engine off: %s", self.reason)
            return
        while not self._closing.is_set():
            now = time.monotonic()
            if len(self._restarts) == RESTARTS_PER_MINUTE and now - self._restarts[0] < 60:
                self.reason = f"engine off: {RESTARTS_PER_MINUTE} restarts in a minute ({reason})"
                self._closing.wait(60 - (now - self._restarts[0]))
                continue
            self._restarts.append(now)
            self.restarts += 1
            try:
                worker = self._open()
                self._refuse_another(worker)
            except ConnectionError as error:  # a server that is away: nothing was started
                self._restarts.pop()
                self.restarts -= 1
                if not self.reason.startswith("engine away"):
                    log.error("engine away, asked for every second: %s", error)
                self.reason = f"engine away: {error}"  # not "off": a file waits for it
                self._closing.wait(1.0)
                continue
            except Exception as error:  # whatever it is, it is shown, and tried again
                reason = str(error)
                self.reason = f"engine off: {reason}"
                log.error("engine could not be opened again: %s", reason)
                self._closing.wait(1.0)
                continue
            with self._lock:
                if not self._closing.is_set():
                    self._worker = worker
                    self._ready.set()
                    log.warning("engine restarted")
                    return
            worker.stop(10.0)

    def _refuse_another(self, worker: _Worker) -> None:
        """Refuse an engine with another input convention or other classes than the first.

        Raises:
            UserError: It differs; frames are prepared for the first one.
        """
        engine = worker.engine
        ours, theirs = (self.convention, self.classes), (engine.convention, engine.classes)
        if ours != theirs:
            worker.stop(10.0)
            raise UserError(f"{engine.name} is another network than before; start the run again")

    def close(self) -> None:
        """Close the engine; a hung one is left behind."""
        self._closing.set()
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop(0.0 if worker.began is not None else 10.0)
