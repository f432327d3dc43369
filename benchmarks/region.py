"""How many rooms a server carries: a queueing simulation, from measured figures and named guesses.

    python -m benchmarks.region --out FOLDER [--measured benchmarks/results/cpu/serving.json]

A discrete-event model of what the parts do. A room is a runner with its streams; it has one request
under way at a time, made of the newest frame of each stream, and a newer frame displaces one that
waits. The server takes up to ``max_batch`` images that wait together and waits for no more; a batch
of b images takes ``fixed + b x each`` milliseconds, times a lognormal factor.

``check``: the model against ``benchmarks.serving``: eight clients that ask again at once, from the
engine's own times by batch size alone. ``rooms``: the most rooms with p99 under 100 ms and under
1 % of the frames displaced. ``loss``: two servers with half of the rooms each, one of which dies
and whose rooms move to the other.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, parser, show, write
from medisseg.errors import UserError, command

LIMIT_MS, MOST_LOST = 100.0, 0.01
MEASURED = Path("benchmarks/results/cpu/serving.json")


@dataclass(frozen=True)
class Server:
    """What a server needs for a batch.

    Attributes:
        name: Of the machine.
        fixed_ms: Time of a batch whatever its size.
        each_ms: Time of each image in it.
        sigma: Standard deviation of the logarithm of the time.
        max_batch: Most images of a batch.
        where: Where the figures come from.
    """

    name: str
    fixed_ms: float
    each_ms: float
    sigma: float = 0.05
    max_batch: int = 8
    where: str = ""


@dataclass(frozen=True)
class Rooms:
    """What asks.

    Attributes:
        count: Runners.
        streams: Streams of each; their frames share a request.
        fps: Frames a second of each stream; 0: the next request follows the answer at once.
        own_ms: What a frame costs in the room: decoding, preparing, drawing.
        network_ms: There and back, without the transfer.
        image_kb: Size of an image and its answer.
        link_gbit: The server's link, which all rooms share.
    """

    count: int
    streams: int = 1
    fps: float = 25.0
    own_ms: float = 10.0
    network_ms: float = 1.5
    image_kb: float = 786.4 + 262.1
    link_gbit: float = 10.0


class _World:
    """One run: events in the order of their times, in milliseconds."""

    def __init__(self, server: Server, rooms: Rooms, seed: int) -> None:
        self.server, self.rooms = server, rooms
        self.random = np.random.default_rng(seed)
        self.period = 1e3 / rooms.fps if rooms.fps else 0.0
        self.transfer = rooms.image_kb * 8 / (rooms.link_gbit * 1e3)  # of one image on the link
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.queue: list[tuple[int, list[float]]] = []  # at the server: room, frames' arrivals
        self.newest: list[dict[int, float]] = [{} for _ in range(rooms.count)]  # by stream
        self.asking = [False] * rooms.count
        self.idle = True
        self.latency: list[float] = []
        self.number = self.lost = 0
        self.now = self.link_free = self.work = 0.0
        for room in range(rooms.count):
            for stream in range(rooms.streams):
                self.at(float(self.random.uniform(0, self.period)), self.frame, room, stream)

    def at(self, moment: float, what: Callable[..., None], *words: Any) -> None:
        """Let something happen at a moment."""
        self.number += 1
        heapq.heappush(self.events, (moment, self.number, what, words))

    def run(self, seconds: float) -> None:
        """Let everything happen that does within ``seconds``."""
        while self.events and self.events[0][0] <= seconds * 1e3:
            self.now, _, what, words = heapq.heappop(self.events)
            what(*words)

    def frame(self, room: int, stream: int) -> None:
        """A frame comes; one of its stream that still waits is displaced."""
        self.lost += stream in self.newest[room]
        self.newest[room][stream] = self.now
        if self.period:
            then = self.period * float(self.random.normal(1, 0.02))
            self.at(self.now + then, self.frame, room, stream)
        self.ask(room)

    def ask(self, room: int) -> None:
        """Send the newest frames of a room that waits for no answer, over the shared link."""
        if self.asking[room] or not self.newest[room]:
            return
        frames = list(self.newest[room].values())
        self.newest[room].clear()
        self.asking[room] = True
        self.link_free = max(self.link_free, self.now) + self.transfer * len(frames)
        self.at(self.link_free + self.rooms.network_ms / 2, self.arrive, room, frames)

    def arrive(self, room: int, frames: list[float]) -> None:
        """A request reaches the server."""
        self.queue.append((room, frames))
        self.serve()

    def serve(self) -> None:
        """Run together what waits together, up to a full batch."""
        if not self.idle or not self.queue:
            return
        taken = [self.queue.pop(0)]
        size = len(taken[0][1])
        while self.queue and size + len(self.queue[0][1]) <= self.server.max_batch:
            taken.append(self.queue.pop(0))
            size += len(taken[-1][1])
        sigma = self.server.sigma
        took = self.server.fixed_ms + size * self.server.each_ms
        took *= float(self.random.lognormal(-(sigma**2) / 2, sigma))
        self.idle, self.work = False, self.work + took
        self.at(self.now + took, self.finish)
        for room, frames in taken:
            back = self.now + took + self.rooms.network_ms / 2
            self.at(back, self.answer, room, frames)

    def finish(self) -> None:
        """The server takes its next batch."""
        self.idle = True
        self.serve()

    def answer(self, room: int, frames: list[float]) -> None:
        """An answer reaches its room, which draws it and asks again."""
        self.latency += [self.now - arrival + self.rooms.own_ms for arrival in frames]
        self.asking[room] = False
        if not self.period:
            self.newest[room] = dict.fromkeys(range(self.rooms.streams), self.now)
        self.ask(room)


def simulate(
    server: Server, rooms: Rooms, seconds: float = 60.0, seed: int = 0
) -> dict[str, float]:
    """Return p50 and p99 (ms, from a frame's arrival to its picture), lost share, fps and load."""
    world = _World(server, rooms, seed)
    world.run(seconds)
    done = len(world.latency)
    frames = done + world.lost + sum(map(len, world.newest))
    return {
        "p50_ms": round(float(np.percentile(world.latency, 50)), 2),
        "p99_ms": round(float(np.percentile(world.latency, 99)), 2),
        "lost": round(world.lost / frames, 4),
        "fps": round(done / seconds, 1),
        "load": round(world.work / seconds / 1e3, 3),
    }


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
    """Return the most rooms of each GPU, at 25 and at 60 frames a second."""
    rows = []
    for server in candidates():
        for fps in (25.0, 60.0):
            count = most_rooms(server, Rooms(1, fps=fps), seconds)
            row: dict[str, Any] = {"server": server.name, "fps_each": fps, "rooms": count}
            if count:
                row |= simulate(server, Rooms(count, fps=fps), seconds)
            gbit = count * fps * Rooms(1).image_kb * 8 / 1e6
            rows.append({**row, "gbit_s": round(gbit, 2), "from": server.where})
    return rows


def loss(seconds: float) -> list[dict[str, Any]]:
    """Two servers, twelve rooms: both, and what the one that is left does with all twelve."""
    rows = []
    for server in candidates():
        for case, count in (("both: six each", 6), ("one left: twelve", 12)):
            made = simulate(server, Rooms(count), seconds)
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
