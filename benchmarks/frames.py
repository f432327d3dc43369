"""The frame extension beside what users write with numpy and OpenCV (PyTorch on a GPU), in one run.

    python -m benchmarks.frames [--device cuda] [--repeat 200] [--threads 2]

The providers of an operation take turns call by call, so a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from benchmarks.frames_cases import Case, cpu_cases, cuda_cases
from kernels import frames
from medisseg.errors import command
from medisseg.files import replacing

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the CSV; times in milliseconds at 20, 50 and 80 percent of the calls."""

    op: str
    provider: str
    dtype: str
    shape: str
    bytes: int
    gb_per_s: float
    ms_20: float
    ms_50: float
    ms_80: float
    times_ours: float
    threads: int
    device: str
    versions: str
    date: str


def measure(case: Case, repeat: int, device: str) -> list[Row]:
    """Time the providers of a case in turns."""
    times: dict[str, list[float]] = {name: [] for name in case.providers}
    for turn in range(repeat + 10):
        for name, call in case.providers.items():
            start = time.perf_counter()
            call()
            if turn >= 10:  # the first calls load code, tables and threads
                times[name].append(1e3 * (time.perf_counter() - start))
    ours = float(np.median(times["ours"]))
    rows = []
    for name, values in times.items():
        low, middle, high = (round(float(v), 4) for v in np.percentile(values, (20, 50, 80)))
        rate = round(case.bytes / middle / 1e6, 2)
        columns = (case.op, name, case.dtype, case.shape, case.bytes, rate, low, middle, high)
        slower = round(middle / ours, 2)
        threads = frames.build_info()["threads"]
        today = datetime.date.today().isoformat()
        rows.append(Row(*columns, slower, threads, device, _versions(), today))
    return rows


def _versions() -> str:
    import cv2

    built = frames.build_info()["instruction_set"]
    python = platform.python_version()
    return f"Python {python}, numpy {np.__version__}, OpenCV {cv2.__version__}, {built}"


def _device(name: str) -> str:
    if name == "cuda":
        import torch

        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {cores} cores"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeat", type=int, default=200, help="calls a provider")
    parser.add_argument("--threads", type=int, default=2, help="ours and OpenCV's")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/frames-DEVICE.csv")
    args = parser.parse_args(argv)
    import cv2

    frames.set_threads(args.threads)
    cv2.setNumThreads(args.threads)
    cases = cuda_cases() if args.device == "cuda" else cpu_cases()
    rows = [row for case in cases for row in measure(case, args.repeat, _device(args.device))]
    for row in rows:
        print(
            f"{row.op:32} {row.dtype:8} {row.provider:22} {row.ms_50:9.3f} ms"
            f" {row.gb_per_s:7.2f} GB/s  {row.times_ours:6.2f} x ours"
        )
    with (
        replacing(args.out or RESULTS / f"frames-{args.device}.csv") as beside,
        beside.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    command(main)  # type: ignore[arg-type]
