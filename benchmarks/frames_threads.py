"""Threads of the CPU path of frames beside other work: what one and all cores make of the tail.

    python -m benchmarks.frames_threads --out FOLDER [--quick]

A 1080p frame becomes a network's input at 25 frames a second, the pool of one and of all cores in
turn, second by second, so that both meet the same other work. Run it beside what the machine has to
do anyway; ``load`` in the results says how much that was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.common import cores, machine, parser, percentiles, show, write
from kernels import frames
from medisseg.errors import command


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    args = parser("frames_threads", __doc__).parse_args(argv)
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    times: dict[int, list[float]] = {1: [], cores(): []}
    for _ in range(1 if args.quick else 40):
        for threads, found in times.items():
            frames.set_threads(threads)
            for _ in range(25):
                began = time.perf_counter()
                frames.preprocess(frame, (352, 352), layout="BGR")
                found.append(time.perf_counter() - began)
                time.sleep(0 if args.quick else max(0.0, began + 0.04 - time.perf_counter()))
    rows = [
        {"threads": threads, "frames": len(found)} | percentiles(found)
        for threads, found in times.items()
    ]
    write(args.out, "frames_threads", machine(), rows)
    show("Preprocess, 1080p to 352 x 352", rows)
    return 0


if __name__ == "__main__":
    command(main)
