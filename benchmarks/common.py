"""What every benchmark shares: its options, its clock, the machine it names, its files, its table.

A benchmark runs as ``python -m benchmarks.NAME --out FOLDER [--device cpu|cuda] [--quick]`` and
leaves ``FOLDER/NAME.json``, ``{"machine": {...}, "rows": [{...}, ...]}``, and the rows as a CSV.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medisseg import __version__
from medisseg.device import pick_device
from medisseg.errors import UserError
from medisseg.files import replacing

Row = Mapping[str, Any]
FEWEST, MOST = 5, 10_000  # calls that a measurement takes; 2 in no time at all, for a trial


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the figures belong to: device, processor, system, versions and date (UTC)."""
    found: dict[str, Any] = {"device": cpu_model(), "capability": None, "driver": None}
    if on_gpu(device):
        import torch

        found["device"] = torch.cuda.get_device_name(device)
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["driver"], found["cuda"] = _driver(), torch.version.cuda
    found |= {"cpu": cpu_model(), "cores": cores(), "load": round(os.getloadavg()[0], 1)}
    found |= {"os": f"{platform.system()} {platform.release()} {platform.machine()}"}
    found |= {"python": platform.python_version()}
    found |= {name: _version(name) for name in ("torch", "triton", "openvino", "onnxruntime")}
    now = datetime.datetime.now(datetime.timezone.utc)
    return found | {"medisseg": __version__, "date": now.strftime("%Y-%m-%d %H:%M")}


def cpu_model() -> str:
    """Return the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_gpu(device: str) -> bool:
    """Whether ``device`` is a GPU; it must then be one that PyTorch can use."""
    return pick_device(str(device), "--device").startswith("cuda")


def timed(
    function: Callable[[], Any], seconds: float = 1.0, warmup: int = 2, device: str = "cpu"
) -> list[float]:
    """Return the seconds of each call over about ``seconds``: five calls at least, or two for 0.

    On a GPU calls are queued one after the other with an event between them: what is measured is
    the GPU's time, or the launches' where they take longer.
    """
    gpu = on_gpu(device)
    wait = _synchronize if gpu else (lambda: None)
    for _ in range(warmup):
        function()
    wait()
    times: list[float] = []
    fewest = FEWEST if seconds else 2
    start = time.perf_counter()
    while len(times) < fewest or (time.perf_counter() - start < seconds and len(times) < MOST):
        if gpu:
            spent = max(time.perf_counter() - start, 1e-5)
            guess = len(times) / spent * (seconds - spent) if times else fewest
            times += _events(function, int(min(max(guess, fewest), 1000)))
            continue
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return times


def _events(function: Callable[[], Any], count: int) -> list[float]:
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return [1e-3 * a.elapsed_time(b) for a, b in zip(events, events[1:], strict=False)]


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return p50_ms, p95_ms and p99_ms of times in seconds."""
    return {f"p{p}_ms": round(float(1e3 * np.percentile(times, p)), 6) for p in (50, 95, 99)}


def write(
    out: Path | str, name: str, machine: Mapping[str, Any], rows: Sequence[Row], **extra: Any
) -> Path:
    """Write ``out/name.json`` and ``out/name.csv``, each whole or not at all; return the JSON."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made a folder ({error.strerror})") from error
    whole = {"machine": dict(machine), **extra, "rows": [dict(row) for row in rows]}
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with (
        replacing(folder / f"{name}.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(rows)
    return folder / f"{name}.json"


def show(title: str, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
    """Print rows as a table: numbers to four digits, ``columns`` (default: all) from the left."""
    from rich.console import Console
    from rich.table import Table

    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=title, title_justify="left")
    numeric = {n for n in names if all(isinstance(row.get(n, 0), (int, float)) for row in rows)}
    for name in names:
        table.add_column(name, justify="right" if name in numeric else "left")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return str(value)


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--out FOLDER --device cpu|cuda --quick``."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the results")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    made.add_argument("--quick", action="store_true", help="tiny sizes and few calls: a trial")
    return made


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
        return answer.stdout.splitlines()[0].strip()
    return None
