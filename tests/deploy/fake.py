"""The runner with a small engine of known answers, as a script: python fake.py OPTIONS.

``FAKE_MS`` is the time of one inference in milliseconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # a process of its own, started from any folder
    sys.path.insert(0, str(ROOT))

from deploy import options, run, runner  # noqa: E402
from medisseg.convention import InputConvention  # noqa: E402
from medisseg.labels import Label  # noqa: E402

GREEN = (0, 200, 0)  # what the engine below takes for a polyp


class FakeEngine:
    """Finds green: logits are +6 where green outweighs red and blue, -6 elsewhere.

    ``before`` is called with every batch and may sleep, raise, or answer in its place.
    """

    backend, name = "fake", "an engine that finds green"
    threshold, classes, max_batch, device = 0.5, 1, 8, "cpu"
    labels: tuple[Label, ...] = ()

    def __init__(self, before: Callable[[np.ndarray], np.ndarray | None] | None = None) -> None:
        self.convention = InputConvention(mean=(0, 0, 0), std=(1, 1, 1), size=(128, 128))
        self.before = before
        self.closed = False
        self.batches: list[int] = []

    def infer(self, batch: np.ndarray) -> np.ndarray:
        self.batches.append(len(batch))
        if self.before is not None:
            answer = self.before(batch)
            if answer is not None:
                return answer
        excess = batch[:, 1:2] - np.maximum(batch[:, 0:1], batch[:, 2:3])
        return np.where(excess > 0.25, 6, -6).astype(np.float32)

    def close(self) -> None:
        self.closed = True


def slow(ms: float) -> Callable[[np.ndarray], None]:
    """Return a ``before`` that takes its time."""
    return lambda batch: time.sleep(ms / 1e3)


def main(argv: list[str] | None = None) -> int:
    """Run the command line with the fake engine."""
    delay = slow(float(os.environ.get("FAKE_MS", "0")))
    chosen = options.parse(["--model", "fake", *(sys.argv[1:] if argv is None else argv)])
    return runner.run(chosen, lambda: FakeEngine(delay))


if __name__ == "__main__":
    run.entry(run_command=main)
