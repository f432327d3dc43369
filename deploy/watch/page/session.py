"""One viewer's WebSocket: newest pictures out, changes of settings in.

A browser says when it has drawn a message; at most two are on their way to it. So a slow browser or
a slow network sees fewer pictures, each the newest, never old ones late, and nothing piles up. Each
picture is compressed once for all browsers, in a worker thread.

A message to the browser is binary: length of the header (4 bytes, big endian), header (JSON), JPEG
(nothing when there is no newer picture). From the browser comes JSON text: ``{"drawn": n}``
(message n is on the screen), ``{"watch": stream}``, ``{"set": {"threshold": 0.6}}`` and, with a
recorded run, ``{"play": true}``, ``{"seek": frame}``, ``{"step": -1}``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

import anyio
from starlette.websockets import WebSocketDisconnect

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from deploy.pipeline.live import Live, View

MOST_UNDRAWN = 2  # messages on their way: the next picture travels while one is being drawn
TIMEOUT_S = 15.0  # a browser that draws nothing for so long is let go
EVERY_S = 0.25  # without a new picture, the state comes as often
QUALITY = 85  # of JPEG
KEPT = 8  # pictures that a snapshot can still ask for
MOST_MISTAKES = 20
POLICY_VIOLATION = 1008  # WebSocket close code


class Player(Protocol):
    """What a recorded run is shown with; every method may be called from any thread."""

    def to_dict(self) -> dict[str, object]:
        """Return {"position", "frames", "playing", "marks" (alarms: first, last), "text"}."""

    def play(self, on: bool) -> None:
        """Play or pause."""

    def seek(self, frame: int) -> None:
        """Show the frame at a position."""

    def step(self, frames: int) -> None:
        """Pause, and show the frame so many further on."""


class Pictures:
    """The newest pictures of every stream as JPEG, each compressed once."""

    def __init__(self, live: Live) -> None:
        self._locks = [anyio.Lock() for _ in range(live.streams)]
        self._newest: list[tuple[int, bytes]] = [(0, b"")] * live.streams
        self._sent: list[deque[View]] = [deque(maxlen=KEPT) for _ in range(live.streams)]

    async def jpeg(self, view: View) -> bytes:
        """Return a view's picture as JPEG."""
        stream = view.status.stream
        async with self._locks[stream]:
            if self._newest[stream][0] != view.sequence:
                data = await anyio.to_thread.run_sync(jpeg, view)
                self._newest[stream] = view.sequence, data
                self._sent[stream].append(view)
            return self._newest[stream][1]

    def sent(self, stream: int, sequence: int) -> View | None:
        """Return a view that was shown a moment ago."""
        if stream >= len(self._sent):
            return None
        return next((view for view in self._sent[stream] if view.sequence == sequence), None)


def jpeg(view: View) -> bytes:
    """Compress a picture."""
    import cv2

    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(view.rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    assert done
    return data.tobytes()


class Session:
    """One browser's connection."""

    def __init__(
        self, websocket: WebSocket, live: Live, pictures: Pictures, player: Player | None
    ) -> None:
        self._socket, self._live, self._pictures = websocket, live, pictures
        self._player = player
        self._stream, self._seen = 0, 0
        self._number = 0  # messages sent
        self._undrawn: dict[int, float] = {}  # message: monotonic time at which it was sent
        self._drawn = anyio.Event()
        self._scope = anyio.CancelScope()
        self._browser_ms: float | None = None
        self._answer: str = ""
        self._mistakes = 0

    @property
    def draws_nothing(self) -> bool:
        """Whether it has not said yet that it has drawn a message."""
        return self._browser_ms is None

    def leave(self) -> None:
        """End the connection."""
        self._scope.cancel()

    async def run(self) -> None:
        """Serve the browser until it leaves or the pipeline ends."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, group)
            try:
                await self._send_all()
                await self._close(1000, "the run has ended")
            except (WebSocketDisconnect, RuntimeError):
                pass  # the browser left while we spoke
            except TimeoutError:
                await self._close(POLICY_VIOLATION, "nothing was drawn for too long")
            group.cancel_scope.cancel()

    async def _close(self, code: int, reason: str) -> None:
        with anyio.move_on_after(1), contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self._socket.close(code, reason)

    async def _send_all(self) -> None:
        ended = False
        while not ended:
            with anyio.fail_after(TIMEOUT_S):
                while len(self._undrawn) >= MOST_UNDRAWN:
                    self._drawn = anyio.Event()
                    await self._drawn.wait()
            stream, seen = self._stream, self._seen
            ended = self._live.closed
            view = await anyio.to_thread.run_sync(self._live.wait, stream, seen, EVERY_S)
            picture = b"" if view is None else await self._picture(view)
            if stream != self._stream:  # changed meanwhile: this is not the picture asked for
                ended = False  # not said yet
                continue
            if view is not None:
                self._seen = view.sequence
            await self._send(view, picture, ended)

    async def _picture(self, view: View) -> bytes:
        try:
            return await self._pictures.jpeg(view)
        except Exception as error:  # OpenCV's own kind, of a picture that JPEG cannot hold
            self._answer = f"this picture cannot be shown: {error}"[:200]
            return b""

    async def _send(self, view: View | None, picture: bytes, ended: bool) -> None:
        self._number += 1
        header = {
            "number": self._number,
            "stream": self._stream,
            "sequence": self._seen,
            "shown": view.status.to_dict() if view else None,
            "streams": [self._live.status(i).to_dict() for i in range(self._live.streams)],
            "settings": dataclasses.asdict(self._live.controls.get()),
            "player": self._player.to_dict() if self._player else None,
            "browser_ms": self._browser_ms,
            "answer": self._answer,
            "ended": ended,
        }
        self._answer = ""
        text = json.dumps(header, separators=(",", ":")).encode()
        self._undrawn[self._number] = time.monotonic()
        with anyio.fail_after(TIMEOUT_S):
            await self._socket.send_bytes(struct.pack(">I", len(text)) + text + picture)

    async def _listen(self, group: anyio.abc.TaskGroup) -> None:
        try:
            while self._mistakes <= MOST_MISTAKES:
                try:
                    self._obey(json.loads(await self._socket.receive_text()))
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    self._mistakes += 1
                    self._answer = str(error)[:200]
            await self._close(POLICY_VIOLATION, "too many messages that make no sense")
        except (WebSocketDisconnect, RuntimeError):
            pass
        group.cancel_scope.cancel()

    def _obey(self, wish: object) -> None:
        if not isinstance(wish, dict):
            raise ValueError("expected an object")
        for key, value in wish.items():
            if key == "drawn":
                self._take_drawn(value)
            elif key == "watch":
                if type(value) is not int or not 0 <= value < self._live.streams:
                    raise ValueError(f"there is no stream {value!r}")
                self._stream, self._seen = value, 0
            elif key == "set":
                client = self._socket.client
                address = f"{client.host}:{client.port}" if client else "the page"
                self._live.controls.set(address, **value)
            elif key == "play" and self._player and type(value) is bool:
                self._player.play(value)
            elif key in ("seek", "step") and self._player and type(value) is int:
                getattr(self._player, key)(value)
            else:
                raise ValueError(f"{key!r}: {value!r} means nothing here")

    def _take_drawn(self, number: object) -> None:
        if type(number) is not int:
            raise ValueError(f"drawn is {number!r}; expected a picture's number")
        sent = self._undrawn.pop(number)
        self._browser_ms = (time.monotonic() - sent) * 1e3
        self._drawn.set()
