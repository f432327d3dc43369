"""How many rooms a server carries: a queueing simulation, from measured figures and named guesses.

    python -m benchmarks.region --out FOLDER [--measured benchmarks/results/cpu/serving.json]

The model is :mod:`benchmarks.region_model`.

``check``: the model against ``benchmarks.serving``: eight clients that ask again at once, from the
engine's own times by batch size alone. ``rooms``: the most rooms, of one stream and of two, with
p99 under 100 ms and under 1 % of the frames displaced. ``loss``: twelve rooms on two servers, one
of which dies; after a second, in which the runner asks again, its rooms ask the other. That takes
one address for both (a name, a virtual address): a runner knows one server.

On GPUs ``medisseg-r50`` alone: no time of ``edge-polyp`` on a GPU was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, parser, show, write
from benchmarks.region_model import Rooms, Server, simulate, simulate_loss
from medisseg.errors import UserError, command

LIMIT_MS, MOST_LOST = 100.0, 0.01
MEASURED = Path("benchmarks/results/cpu/serving.json")


def most_rooms(server: Server, rooms: Rooms, seconds: float = 20.0) -> int:
    """Return the most rooms within the limits, by bisection; 0 where not one is."""

    def carried(count: int) -> bool:
        got = simulate(server, replace(rooms, count=count), seconds)
        return got["p99_ms"] < LIMIT_MS and got["lost"] < MOST_LOST

    if not carried(1):
        return 0
    low, high = 1, 2
    while high <= 512 and carried(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if carried(middle) else (low, middle)
    return low


def measured_server(path: Path) -> tuple[Server, dict[str, dict[str, Any]]]:
    """Fit the engine's times by batch size; return it and the measured rows by case.

    Raises:
        UserError: The file is not there, or is not what ``benchmarks.serving`` wrote.
    """
    try:
        rows = json.loads(path.read_text())["rows"]
        sizes = [row for row in rows if row["table"] == "batches"]
        each, fixed = np.polyfit([r["batch"] for r in sizes], [r["p50_ms"] for r in sizes], 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no measurement ({error}); make one: python -m benchmarks.serving --out OUT"
        ) from error
    sigma = float(np.mean([row["sigma"] for row in sizes]))
    most = max(row["batch"] for row in sizes)
    server = Server("measured CPU", max(0.0, float(fixed)), float(each), sigma, most, str(path))
    return server, {row["case"]: row for row in rows}


def check(path: Path) -> list[dict[str, Any]]:
    """Set the model beside what eight clients measured, each way of asking with its own cost."""
    server, found = measured_server(path)
    rows = []
    for case, row in found.items():
        if not case.startswith("8 clients"):
            continue
        added = max(0.0, found[case.removeprefix("8 clients, ")]["added_ms"])
        asking = Rooms(8, fps=0, own_ms=0, network_ms=added, link_gbit=1e6)
        made = simulate(server, asking, 60)
        rows.append({
            "case": case, "fps": made["fps"], "measured_fps": row["fps"],
            "p50_ms": made["p50_ms"], "measured_p50_ms": row["p50_ms"],
            "off": round(made["fps"] / row["fps"] - 1, 3),
        })  # fmt: skip
    return rows


# medisseg-r50 in FP16 on an H200, PyTorch in a CUDA graph: 2.52 ms for one image, 5.69 for four
# (benchmarks/results/h200/inference.json). It reaches 8 to 15 % of that GPU's limits, so that it is
# not known how it scales: "slow" scales the time of an image with memory bandwidth, "fast" lets it
# reach half of the smaller GPU's limits (172 GFLOP and 0.39 GB an image), and be no faster than the
# H200. A GUESS either way.
H200_FIXED_MS, H200_EACH_MS, H200_GB_S = 1.47, 1.056, 4800.0
GPUS = {"H200": (4800.0, 989.0), "RTX 6000 Ada": (960.0, 364.0), "L4": (300.0, 121.0),
        "AGX Orin 64 GB": (205.0, 43.0)}  # fmt: skip
# name: memory bandwidth in GB/s, dense FP16 in TFLOP/s, both of the vendor's data sheets


def candidates() -> list[Server]:
    """Return the GPUs, each with its two guesses; the H200 as it was measured."""
    made = []
    for name, (bandwidth, tflops) in GPUS.items():
        fixed = H200_FIXED_MS * (2 if "Orin" in name else 1)  # a slower processor launches
        slow = H200_EACH_MS * H200_GB_S / bandwidth
        halves = (0.387 / (0.5 * bandwidth) * 1e3, 0.172 / (0.5 * tflops) * 1e3)
        fast = max(H200_EACH_MS, *halves)
        if name == "H200":
            made.append(Server(name, fixed, slow, where="measured"))
            continue
        made.append(Server(f"{name}, slow", fixed, slow, where="guess: H200 by bandwidth"))
        made.append(Server(f"{name}, fast", fixed, fast, where="guess: half of its limits"))
    return made


def table_of_rooms(seconds: float) -> list[dict[str, Any]]:
    """Return the most rooms of each GPU: one stream of 25 or 60 frames a second, two of 25."""
    rows = []
    for server in candidates():
        for streams, fps in ((1, 25.0), (1, 60.0), (2, 25.0)):
            room = Rooms(1, streams, fps)
            count = most_rooms(server, room, seconds)
            row: dict[str, Any] = {"server": server.name, "streams": streams, "fps_each": fps,
                                   "rooms": count}  # fmt: skip
            if count:
                row |= simulate(server, replace(room, count=count), seconds)
            gbit = count * streams * fps * room.image_kb * 8 / 1e6
            rows.append({**row, "gbit_s": round(gbit, 2), "from": server.where})
    return rows


def loss(seconds: float) -> list[dict[str, Any]]:
    """Two servers, six rooms each: before, and when one dies and the other gets all twelve."""
    rows = []
    for server in candidates():
        before = simulate(server, Rooms(6), seconds)
        after = simulate_loss(server, Rooms(12), seconds=seconds)
        for case, made in (("both: six each", before), ("one dies: twelve", after)):
            good = made["p99_ms"] < LIMIT_MS and made["lost"] < MOST_LOST
            rows.append({"server": server.name, "case": case, **made, "within": good})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate, print tables, write ``region.json``."""
    given = parser("region", __doc__)
    given.add_argument("--measured", type=Path, default=MEASURED, help="of benchmarks.serving")
    args = given.parse_args(argv)
    seconds = 5.0 if args.quick else 20.0
    tables = {
        "check": check(args.measured),
        "rooms": table_of_rooms(seconds),
        "loss": loss(seconds),
    }
    for title, rows in tables.items():
        show(title, rows)
    named = [{"table": title, **row} for title, rows in tables.items() for row in rows]
    write(args.out, "region", machine("cpu"), named, limit_ms=LIMIT_MS, rooms=Rooms(1).__dict__)
    return 0


if __name__ == "__main__":
    command(main)
