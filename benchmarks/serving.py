"""An engine on a Triton server beside the same engine in process, in one run.

    make triton && python -m benchmarks.serving --out FOLDER [--quick]

``one``: one client, one image after the other: latency in process, over gRPC and HTTP, with and
without shared memory, in turns, so that a busy machine is busy for all; ``added_ms`` is beside in
process. ``eight``: eight clients at once (in process: full batches, as the runner makes of its
streams). ``policy``: one client, without and with a queue policy in the model's configuration, and
how many answers came later than ``LATE_MS``: why ``medisseg build --triton`` writes none.
``batches``: the engine by batch size, which ``benchmarks.region`` starts from.
"""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, parser, show, write
from benchmarks.triton_server import NAME, SERVER, Server
from export.build_engine import build
from export.runtime import load_engine
from export.triton_repository import Target, write_model
from medisseg.errors import UserError, command

Row = dict[str, Any]
WAYS = {
    "gRPC, shared memory": ("grpc", ""),
    "gRPC": ("grpc", "?shared_memory=off"),
    "HTTP, shared memory": ("http", ""),
    "HTTP": ("http", "?shared_memory=off"),
}
CLIENTS = 8
LATE_MS = 300
POLICY = "dynamic_batching { default_queue_policy { max_queue_size: 32 } }"


def times(ask: Callable[[], object], count: int) -> list[float]:
    """Return milliseconds of ``count`` calls."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def row(case: str, taken: Sequence[float], fps: float) -> Row:
    """Return one line of the results."""
    p50, p99 = (round(float(np.percentile(taken, p)), 2) for p in (50, 99))
    return {"case": case, "calls": len(taken), "p50_ms": p50, "p99_ms": p99, "fps": round(fps, 1)}


def one_client(here: Any, server: Server, images: Any, count: int, turns: int) -> list[Row]:
    """Measure one client, in turns."""
    engines = {"in process": here}
    engines |= {case: load_engine(server.url(*way)) for case, way in WAYS.items()}
    taken: dict[str, list[float]] = {case: [] for case in engines}
    for _ in range(turns):
        for case, engine in engines.items():
            taken[case] += times(lambda engine=engine: engine.infer(images), count)
    for case in WAYS:
        engines[case].close()
    rows = [row(case, values, 1e3 / statistics.fmean(values)) for case, values in taken.items()]
    return [{**made, "added_ms": round(made["p50_ms"] - rows[0]["p50_ms"], 2)} for made in rows]


def eight_clients(here: Any, server: Server, images: Any, count: int) -> list[Row]:
    """Measure eight clients at once, each waiting for its answer before it asks again."""
    full = np.repeat(images, here.max_batch, axis=0)
    taken = times(lambda: here.infer(full), max(1, count // 2))
    fps = 1e3 * here.max_batch / statistics.fmean(taken)
    rows = [row(f"in process, batches of {here.max_batch}", taken, fps)]
    for case, way in WAYS.items():

        def client(_: int, way: tuple[str, str] = way) -> list[float]:
            with load_engine(server.url(*way)) as engine:
                return times(lambda: engine.infer(images), count // 2)

        with ThreadPoolExecutor(CLIENTS) as threads:
            each = list(threads.map(client, range(CLIENTS)))
        # By what a client did in its time: opening a connection is not part of it.
        rate = sum(len(values) / sum(values) * 1e3 for values in each)
        rows.append(row(f"{CLIENTS} clients, {case}", [x for values in each for x in values], rate))
    return rows


def policy(servers: dict[str, Server], images: Any, count: int, turns: int) -> list[Row]:
    """Measure one client of each server, in turns, and count its late answers."""
    rows = []
    taken: dict[str, list[float]] = {case: [] for case in servers}
    for _ in range(turns):
        for case, server in servers.items():
            with load_engine(server.url(*WAYS["gRPC"])) as engine:
                taken[case] += times(lambda engine=engine: engine.infer(images), count)
    for case, values in taken.items():
        late = sum(value > LATE_MS for value in values)
        rows.append(row(case, values, 1e3 / statistics.fmean(values)) | {"late": late})
    return rows


def batches(here: Any, images: Any, count: int) -> list[Row]:
    """Measure the engine by batch size."""
    rows = []
    for size in range(1, here.max_batch + 1):
        batch = np.repeat(images, size, axis=0)
        taken = times(lambda batch=batch: here.infer(batch), count)
        made = row(f"batch of {size}", taken, 1e3 * size / statistics.fmean(taken))
        rows.append({**made, "batch": size, "sigma": round(float(np.log(taken).std()), 3)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, write ``serving.json``."""
    given = parser("serving", __doc__)
    given.add_argument("--model", default="edge-polyp", help="checkpoint (edge-polyp)")
    args = given.parse_args(argv)
    if not (SERVER / "ready").is_file():
        raise UserError(f"no Triton server in {SERVER}; fetch one: make triton")
    count, turns = (4, 1) if args.quick else (30, 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = build(args.model, folder / "bundle", backend="onnx", precision="fp32", images=1,
                       quiet=True)  # fmt: skip
        servers = {
            case: Server(folder / name, folder / f"{name}.log")
            for case, name in (("no queue policy", "models"), ("a queue policy", "limited"))
        }
        for server in servers.values():
            place, _ = write_model(bundle, Target(server.repository, NAME, "python"))
        config = place / "config.pbtxt"
        plain = config.read_text()
        config.write_text(re.sub(r"dynamic_batching \{\s*\}", POLICY, plain))
        assert config.read_text() != plain
        server = servers["no queue policy"]
        try:
            for each in servers.values():
                each.start()
            with load_engine(bundle.path) as here:
                size = (1, 3, *here.convention.size)
                images = np.random.default_rng(0).normal(size=size).astype(np.float32)
                tables = {
                    "one": one_client(here, server, images, count, turns),
                    "eight": eight_clients(here, server, images, count),
                    "policy": policy(servers, images, count, turns),
                    "batches": batches(here, images, count),
                }
                name = here.name
        finally:
            for each in servers.values():
                each.kill()
    for title, rows in tables.items():
        show(title, rows)
    named = [{"table": title, **made} for title, rows in tables.items() for made in rows]
    write(args.out, "serving", machine("cpu"), named, engine=name, model=args.model)
    return 0


if __name__ == "__main__":
    command(main)
