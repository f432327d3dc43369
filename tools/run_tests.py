"""Run the tests, every part in a process of its own: ``make test``.

    python tools/run_tests.py PART [PART ...]      PART: a folder, or files with spaces between

What the libraries of one part leave behind does not end another. Two parts run at a time, each on
half of the cores; then, one by one, those that stream in real time, which a busy machine makes
late. Each line at the end has a part's wall time and the peak memory of its largest process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

ALONE = ("deploy", "serving")  # real time
LONGEST = ("export", "training", "kernels")  # begin first


@dataclass(frozen=True)
class Ended:
    """A part of the tests that has run."""

    part: str
    code: int
    seconds: float
    peak_mb: float

    def __str__(self) -> str:
        how = "passed" if self.code == 0 else f"FAILED ({self.code})"
        return f"{self.part}: {how}, {self.seconds:.0f} s, {self.peak_mb:.0f} MB"


def main(parts: Sequence[str]) -> int:
    """Run the parts; 1 where one failed."""
    alone = [part for part in parts if name(part) in ALONE]
    if len(parts) == 1:  # its output comes as it is written
        alone = list(parts)
    shared = sorted((part for part in parts if part not in alone), key=place)
    with ThreadPoolExecutor(2) as pool:
        try:
            ended = list(pool.map(captured, shared))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # those that run got the signal themselves
            return 130
    ended += [shown(part) for part in alone]
    print("\n".join(map(str, ended)), flush=True)
    failed = [one.part for one in ended if one.code]
    if failed:
        print(f"failed in: {' '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def name(part: str) -> str:
    """Return the folder's name."""
    return part.rstrip("/").rpartition("/")[2]


def place(part: str) -> int:
    """Return where a part stands in the order."""
    return LONGEST.index(name(part)) if name(part) in LONGEST else len(LONGEST)


def captured(part: str) -> Ended:
    """Run a part on half of the cores and print what it said in one piece."""
    half = str(max(1, (os.cpu_count() or 1) // 2))
    environment = {"OMP_NUM_THREADS": half, **os.environ}
    return wait(part, environment, subprocess.PIPE)


def shown(part: str) -> Ended:
    """Run a part with nothing beside it."""
    return wait(part, dict(os.environ), None)


def wait(part: str, environment: dict[str, str], output: int | None) -> Ended:
    """Run a part to its end."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", *part.split()]
    process = subprocess.Popen(
        command, env=environment, stdout=output, stderr=subprocess.STDOUT if output else None
    )
    text = process.stdout.read() if process.stdout else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    return Ended(part, process.returncode, time.monotonic() - began, used.ru_maxrss / 1024)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
