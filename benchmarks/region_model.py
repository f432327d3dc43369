"""The discrete-event model behind :mod:`benchmarks.region`: rooms, servers, queues and batches.

A room is a runner with its streams; it has one request under way at a time, made of the newest
frame of each stream, and a newer frame displaces one that waits. A server takes up to ``max_batch``
images that wait together and waits for no more; a batch of b images takes ``fixed + b x each``
milliseconds, times a lognormal factor. A server that dies takes its queue and its batch along; its
rooms show their frames without masks until they ask another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


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


@dataclass(frozen=True)
class _Request:
    """Frames of one room on their way to a server: when each arrived, in milliseconds."""

    room: int
    server: int
    frames: list[float]


class _World:
    """One run: events in the order of their times, in milliseconds."""

    def __init__(self, server: Server, rooms: Rooms, seed: int, servers: int = 1) -> None:
        self.server, self.rooms = server, rooms
        self.random = np.random.default_rng(seed)
        self.period = 1e3 / rooms.fps if rooms.fps else 0.0
        self.transfer = rooms.image_kb * 8 / (rooms.link_gbit * 1e3)  # of one image on the link
        self.events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.queues: list[list[_Request]] = [[] for _ in range(servers)]
        self.newest: list[dict[int, float]] = [{} for _ in range(rooms.count)]  # by stream
        self.asking = [False] * rooms.count
        self.home: list[int | None] = [room % servers for room in range(rooms.count)]
        self.idle, self.link_free = [True] * servers, [0.0] * servers
        self.latency: list[float] = []
        self.answered: list[tuple[float, int]] = []  # of each latency: when, and the room
        self.number = self.lost = self.unmasked = 0
        self.now = self.work = 0.0
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
        if self.home[room] is None:  # shown at once, without a mask
            self.unmasked += 1
        else:
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
        home = self.home[room]
        assert home is not None
        frames = list(self.newest[room].values())
        self.newest[room].clear()
        self.asking[room] = True
        self.link_free[home] = max(self.link_free[home], self.now) + self.transfer * len(frames)
        arrival = self.link_free[home] + self.rooms.network_ms / 2
        self.at(arrival, self.arrive, _Request(room, home, frames))

    def arrive(self, request: _Request) -> None:
        """A request reaches its server."""
        if self.home[request.room] == request.server:  # else the server has died
            self.queues[request.server].append(request)
            self.serve(request.server)

    def serve(self, number: int) -> None:
        """Run together what waits together, up to a full batch."""
        queue = self.queues[number]
        if not self.idle[number] or not queue:
            return
        taken = [queue.pop(0)]
        size = len(taken[0].frames)
        while queue and size + len(queue[0].frames) <= self.server.max_batch:
            taken.append(queue.pop(0))
            size += len(taken[-1].frames)
        sigma = self.server.sigma
        took = self.server.fixed_ms + size * self.server.each_ms
        took *= float(self.random.lognormal(-(sigma**2) / 2, sigma))
        self.idle[number], self.work = False, self.work + took
        self.at(self.now + took, self.finish, number)
        for request in taken:
            self.at(self.now + took + self.rooms.network_ms / 2, self.answer, request)

    def finish(self, number: int) -> None:
        """A server takes its next batch."""
        self.idle[number] = True
        self.serve(number)

    def answer(self, request: _Request) -> None:
        """An answer reaches its room, which draws it and asks again."""
        room, frames = request.room, request.frames
        if self.home[room] != request.server:  # the server died before
            return
        self.latency += [self.now - arrival + self.rooms.own_ms for arrival in frames]
        self.answered += [(self.now, room)] * len(frames)
        self.asking[room] = False
        if not self.period:
            self.newest[room] = dict.fromkeys(range(self.rooms.streams), self.now)
        self.ask(room)

    def die(self, dead: int, other: int, away_ms: float) -> None:
        """A server dies with its queue and its batch; its rooms go to another after a while."""
        gone = [room for room, home in enumerate(self.home) if home == dead]
        self.queues[dead].clear()
        for room in gone:  # what is under way, and what waits in the room, is shown without a mask
            self.unmasked += len(self.newest[room]) + self.rooms.streams * self.asking[room]
            self.newest[room].clear()
            self.home[room], self.asking[room] = None, False
            self.at(self.now + away_ms, self.move, room, other)

    def move(self, room: int, other: int) -> None:
        """A room reaches another server; its next frame is asked about there."""
        self.home[room] = other


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


def simulate_loss(
    server: Server,
    rooms: Rooms,
    away_s: float = 1.0,
    seconds: float = 20.0,
    seed: int = 0,
) -> dict[str, float]:
    """Let one of two servers die at half time, with half of the rooms on it.

    Args:
        server: Each of the two.
        rooms: Of both together.
        away_s: Until the dead server's rooms ask the other: the runner asks once a second.
        seconds: Of the whole run.
        seed: Of the random numbers.

    Returns:
        Frames shown without a mask, seconds without one in the room that had none for longest, p50
        and p99 (ms) from the moment on at which all rooms ask the other server, and the share of
        frames that are displaced from then on.
    """
    world = _World(server, rooms, seed, servers=2)
    moment = 500.0 * seconds
    world.run(moment / 1e3)
    last, moved = dict.fromkeys(range(0, rooms.count, 2), 0.0), moment + 1e3 * away_s
    for when, room in world.answered:
        if room in last:
            last[room] = when
    world.now = moment
    world.die(0, 1, 1e3 * away_s)
    world.run(moved / 1e3)
    displaced = world.lost
    world.run(seconds)
    after = [
        ms for ms, (when, _) in zip(world.latency, world.answered, strict=True) if when > moved
    ]
    first = dict.fromkeys(last, 1e3 * seconds)  # the end, where no mask came back
    for when, room in reversed(world.answered):
        if when > moment and room in first:
            first[room] = when
    lost = world.lost - displaced
    return {
        "unmasked": world.unmasked,
        "no_mask_s": round(max(first[room] - last[room] for room in last) / 1e3, 3),
        "p50_ms": round(float(np.percentile(after, 50)), 2),
        "p99_ms": round(float(np.percentile(after, 99)), 2),
        "lost": round(lost / (lost + len(after)), 4),
    }
