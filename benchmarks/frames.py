"""The frame extension beside what users write with numpy and OpenCV (PyTorch on a GPU), in one run.

    python -m benchmarks.frames --out FOLDER [--device cuda] [--quick] [--threads 2]

The providers of an operation take turns call by call, so a busy machine is busy for all of them.
``times_ours`` is how many times as long as ours a provider takes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.common import cores, machine, parser, percentiles, show, write
from benchmarks.frames_cases import Case, cpu_cases, cuda_cases
from kernels import frames
from medisseg.errors import command

WARM_UP = 10  # the first calls load code, tables and threads


def measure(case: Case, repeat: int) -> list[dict[str, Any]]:
    """Time the providers of a case in turns; one row a provider, ours first."""
    times: dict[str, list[float]] = {name: [] for name in case.providers}
    for turn in range(repeat + min(WARM_UP, repeat)):
        for name, call in case.providers.items():
            start = time.perf_counter()
            call()
            if turn >= min(WARM_UP, repeat):
                times[name].append(time.perf_counter() - start)
    ours = float(np.median(times["ours"]))
    about = {"op": case.op, "dtype": case.dtype, "shape": case.shape}
    return [
        {
            **about,
            "provider": name,
            **percentiles(values),
            "bytes": case.bytes,
            "gb_per_s": round(case.bytes / float(np.median(values)) / 1e9, 3),
            "times_ours": round(float(np.median(values)) / ours, 2),
        }
        for name, values in times.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parser("frames", __doc__)
    options.add_argument("--repeat", type=int, help="calls a provider (200; 5 with --quick)")
    options.add_argument(
        "--threads", type=int, default=cores(), help="ours and OpenCV's: all cores"
    )
    args = options.parse_args(argv)
    import cv2

    frames.set_threads(args.threads)
    cv2.setNumThreads(args.threads)
    built = frames.build_info()
    on = machine(args.device) | {"numpy": np.__version__, "opencv": cv2.__version__}
    on |= {"instruction_set": built["instruction_set"], "threads": built["threads"]}
    repeat = args.repeat or (5 if args.quick else 200)
    rows: list[dict[str, Any]] = []
    for case in cuda_cases() if args.device == "cuda" else cpu_cases():
        rows += measure(case, repeat)
        write(args.out, "frames", on, rows)
    show("Frames", rows)
    return 0


if __name__ == "__main__":
    command(main)
