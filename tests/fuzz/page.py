"""The live page: a browser's messages, and requests with any path, query and headers."""

from __future__ import annotations

import json
from typing import Any

import anyio
import numpy as np
from starlette.websockets import WebSocketDisconnect

from deploy.pipeline.live import Live
from deploy.status import LIVE, StreamStatus
from deploy.watch.page.app import make_app
from deploy.watch.page.gate import Address, Gate
from deploy.watch.page.session import Pictures, Session
from tests.fuzz.edits import Choices, dumps, edited

TOKEN = "a-token-of-some-length"
WISHES: list[Any] = [
    {"drawn": 1},
    {"watch": 1},
    {"set": {"threshold": 0.6, "opacity": 0.5, "hold_off": 2, "ai": True}},
    {"play": True, "seek": 3, "step": -1},
]


class Recorded:
    """A player that remembers nothing but numbers."""

    def __init__(self) -> None:
        self.position = 0

    def to_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def play(self, on: bool) -> None:
        assert type(on) is bool

    def seek(self, frame: int) -> None:
        self.position = min(max(frame, 0), 9)

    def step(self, frames: int) -> None:
        self.seek(self.position + frames)


class Socket:
    """Says some texts and leaves."""

    client = None

    def __init__(self, texts: list[str]) -> None:
        self._texts = iter(texts)

    async def receive_text(self) -> str:
        for text in self._texts:
            return text
        raise WebSocketDisconnect(1000)

    async def close(self, code: int, reason: str) -> None:
        pass


def a_run() -> Live:
    live = Live(["a camera", "another"])
    for stream in (0, 1):
        status = StreamStatus(stream, "a camera", LIVE, age_s=0.0, frame_id=1)
        live.publish(np.zeros((16, 16, 3), np.uint8), 1, status)
    return live


def seeds() -> list[bytes]:
    texts = b"\n".join(dumps(wish) for wish in WISHES)
    request = b"/snapshot/0.png\nsequence=1\nhost: 127.0.0.1\norigin: http://127.0.0.1\n"
    cookie = f"/\ntoken={TOKEN}\nhost: [::1]:80\ncookie: medisseg-80={TOKEN}\n".encode()
    return [b"\0" + texts, b"\1\0\3", b"\1\2\7\5", b"\2" + request, b"\2" + cookie]


def one(data: bytes) -> None:
    kind, rest = data[:1], data[1:]
    if kind == b"\2":
        anyio.run(ask, rest)
        return
    texts = rest.decode("utf-8", "replace").split("\n")
    if kind == b"\1":
        choices = Choices(rest)
        texts = [dumps(edited(choices.pick(WISHES), choices)).decode("utf-8", "replace")]
    anyio.run(talk, texts)


async def talk(texts: list[str]) -> None:
    live = a_run()
    session = Session(Socket(texts), live, Pictures(live), Recorded())  # type: ignore[arg-type]
    session._undrawn = {1: 0.0}
    async with anyio.create_task_group() as group:
        await session._listen(group)
    settings = live.controls.get()
    assert 0 < settings.threshold < 1 and 0 <= settings.opacity <= 1
    json.dumps(session._answer).encode()


async def ask(data: bytes) -> None:
    path, query, *lines = (data.split(b"\n") + [b"", b""])[:40]
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name.strip().lower(), value.strip()))
    gate = Gate(Address("127.0.0.1", 80), TOKEN if b"token" in data else None)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path.decode("latin-1") or "/",
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("192.0.2.1", 5000),
        "server": ("127.0.0.1", 80),
    }
    answers: list[Any] = []

    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(asked, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        answers.append(message)

    await make_app(a_run(), gate)(scope, receive, send)
    assert not answers or answers[0]["status"] < 500


def done() -> None:
    pass
