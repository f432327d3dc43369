"""The live page under attack: by strangers without a token, and by other sites' pages."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deploy.pipeline.live import Live
from deploy.status import LIVE, StreamStatus
from deploy.watch.page import app, connections, gate, serve

TOKEN = "a-token-of-24-characters"


@pytest.fixture
def live() -> Live:
    live = Live(["a camera"])
    publish(live, 1)
    return live


def publish(live: Live, frame_id: int) -> None:
    rgb = np.full((48, 64, 3), 90, np.uint8)
    live.publish(rgb, frame_id, StreamStatus(0, "a camera", LIVE, age_s=0.0, frame_id=frame_id))


def status_of(port: int, path: str = "/status", **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status


def join(port: int, **more: Any) -> Any:
    from websockets.sync.client import connect

    return connect(f"ws://127.0.0.1:{port}/live", max_size=None, proxy=None, **more)


def receive(browser: Any) -> dict[str, Any]:
    data = browser.recv(20)
    (length,) = struct.unpack(">I", data[:4])
    header = json.loads(data[4 : 4 + length])
    browser.send(json.dumps({"drawn": header["number"]}))
    return header


@contextlib.contextmanager
def silent(port: int, count: int, begin: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that send nothing, or the beginning of a request."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)))
            with contextlib.suppress(OSError):  # refused already
                opened[-1].sendall(begin)
        yield opened


def closed(connection: socket.socket, seconds: float = 20.0) -> bool:
    """Whether the other side closes a connection within so many seconds."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nHost: 127"])
def test_silent_connections_keep_nobody_out(live: Live, begin: bytes) -> None:
    with serve(live, "127.0.0.1:0") as page, join(page.port) as browser:
        assert receive(browser)["shown"]["frame_id"] == 1
        with silent(page.port, 200, begin) as opened:
            assert status_of(page.port) == 200
            publish(live, 2)
            while (receive(browser)["shown"] or {}).get("frame_id") != 2:
                pass
            # All but the newest have been closed, to make room.
            surplus = len(opened) - connections.MOST_CONNECTIONS
            assert all(closed(connection) for connection in opened[:surplus])


UPGRADE = (
    b"GET /live HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_websockets_that_draw_nothing_keep_nobody_out(live: Live) -> None:
    """90 of them took every place for 15 s, and every connection for as long as they closed."""
    with serve(live, "127.0.0.1:0") as page, join(page.port) as first:
        receive(first)
        with silent(page.port, 90, UPGRADE):
            assert status_of(page.port) == 200
            with join(page.port) as browser:
                assert receive(browser)["shown"]["frame_id"] == 1
                publish(live, 2)
                for one in (browser, first):  # who draws stays
                    while (receive(one)["shown"] or {}).get("frame_id") != 2:
                        pass


def test_a_request_that_never_ends_is_cut_off(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.2)
    with (
        serve(live, "127.0.0.1:0") as page,
        join(page.port) as browser,
        silent(page.port, 3, b"GET / HTTP/1.1\r\nHost: 127") as opened,
    ):
        assert all(closed(connection) for connection in opened)
        publish(live, 2)  # the WebSocket, which is older, is not
        while (receive(browser)["shown"] or {}).get("frame_id") != 2:
            pass


def test_few_files_leave_the_page_few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for files, most in ((1024, 64), (100, 25), (8, 4), (resource.RLIM_INFINITY, 64)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, files=files: (files, files))
        assert connections.most_connections() == most


@pytest.mark.parametrize(
    ("path", "site", "more", "status"),
    [
        ("/snapshot/0.png", "cross-site", {"Sec-Fetch-Mode": "no-cors"}, 403),
        ("/snapshot/0.png", "same-site", {"Sec-Fetch-Mode": "no-cors"}, 403),
        ("/status", "cross-site", {"Sec-Fetch-Mode": "cors"}, 403),
        ("/", "cross-site", {"Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        (
            "/metrics",
            "cross-site",
            {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
            403,
        ),
        ("/", "cross-site", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("/", "cross-site", {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ("/snapshot/0.png", "same-origin", {"Sec-Fetch-Mode": "cors"}, 200),
        ("/snapshot/0.png", "none", {}, 200),
    ],
)
def test_another_sites_page_gets_nothing(
    live: Live, path: str, site: str, more: dict[str, str], status: int
) -> None:
    with serve(live, "127.0.0.1:0") as page:
        assert status_of(page.port, path, **{"Sec-Fetch-Site": site, **more}) == status


def test_one_snapshot_is_compressed_at_a_time(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most = [0], [0]

    def png(view: object) -> bytes:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.05)
        at_work[0] -= 1
        return b"a picture"

    monkeypatch.setattr(app, "png", png)
    with serve(live, "127.0.0.1:0") as page:
        answers: list[int] = []
        asking = [
            threading.Thread(target=lambda: answers.append(status_of(page.port, "/snapshot/0.png")))
            for _ in range(6)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    assert answers == [200] * 6 and most == [1]


def test_names_are_looked_up_once_and_by_no_request(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def slow() -> str:
        asked.append(threading.current_thread().name)
        time.sleep(1)
        return "tower.example"

    monkeypatch.setattr(gate.socket, "getfqdn", slow)
    with serve(live, "0.0.0.0:0", TOKEN) as page:
        assert [status_of(page.port, Host="foo") for _ in range(3)] == [403] * 3
        assert asked == ["host names"]
        while (got := status_of(page.port, Host="tower.example")) == 403:
            time.sleep(0.05)
        assert got == 401 and asked == ["host names"]


def test_tokens_cannot_be_guessed_for_ever(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "FAILURES_S", 1.0)
    with serve(live, "127.0.0.1:0", TOKEN) as page:
        stale = {"Cookie": f"medisseg-{page.port}=the-token-of-an-earlier-run"}
        assert [status_of(page.port, **stale) for _ in range(30)] == [401] * 30
        for number in range(gate.MOST_FAILURES - 1):
            assert status_of(page.port, Authorization=f"Bearer guess-number-{number}") == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert status_of(page.port, **right) == 429
        time.sleep(1.1)
        assert status_of(page.port, **right) == 200


def test_claimed_addresses_get_no_more_guesses(live: Live) -> None:
    """A proxy on this machine names its client; so can whoever speaks to the page directly."""
    with serve(live, "127.0.0.1:0", TOKEN) as page:
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert status_of(page.port, **right) == 200
        answers = [
            status_of(
                page.port,
                Authorization=f"Bearer guess-number-{number}",
                **{"X-Forwarded-For": f"192.0.2.{number}"},
            )
            for number in range(gate.MOST_STRANGERS + 5)
        ]
        assert answers == [401] * gate.MOST_STRANGERS + [429] * 5
        assert status_of(page.port, **right) == 200  # who was here before stays


def test_one_request_holds_few_guesses(live: Live) -> None:
    guesses = "&".join(f"token=guess-number-{number}" for number in range(gate.MOST_FAILURES))
    with serve(live, "127.0.0.1:0", TOKEN) as page:
        assert status_of(page.port, f"/status?{guesses}&token={TOKEN}") == 401
        assert status_of(page.port, f"/status?token={TOKEN}") == 429


def test_no_cookie_holds_the_page_up(live: Live) -> None:
    """Python's own reader of cookies took 5 s for one of these, before any token was asked for."""
    with serve(live, "127.0.0.1:0", TOKEN) as page:
        hostile = 'a="' + "\\" * 15_000 + '"'
        began = time.process_time()
        for _ in range(3):
            assert status_of(page.port, Cookie=hostile) == 401
        assert time.process_time() - began < 2
        cookie = f"other=1; medisseg-{page.port}={TOKEN}; {hostile[:100]}"
        assert status_of(page.port, Cookie=cookie) == 200


@pytest.mark.parametrize("path", ["9" * 5000, "-1", "0x0", "1", "%D9%A1", "0.png/.."])
def test_a_stream_that_does_not_exist_is_a_404(live: Live, path: str) -> None:
    with serve(live, "127.0.0.1:0") as page:
        assert status_of(page.port, f"/snapshot/{path}.png") == 404
        assert status_of(page.port, f"/snapshot/0.png?sequence={'9' * 5000}") == 200


def test_hostile_messages_are_answered(live: Live) -> None:
    with serve(live, "127.0.0.1:0") as page, join(page.port) as browser:
        for text in ("[" * 4000, '{"set": {"threshold": NaN}}', '{"drawn": [1]}', '{"set": 1e999}'):
            browser.send(text)
            while not receive(browser)["answer"]:
                pass
        assert live.controls.get().threshold == 0.5
