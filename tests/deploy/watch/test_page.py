"""The live page: in a real browser, behind its gate, and never in the pipeline's way."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import socket as socket_module
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.chaos.loopback import LoopbackSource
from deploy.pipeline.live import Live
from deploy.status import AI_OFF, LIVE, OFFLINE, STATE_COLORS, STATES, StreamStatus
from deploy.watch.page import serve
from deploy.watch.page.gate import Address, Gate
from medisseg.errors import UserError
from medisseg.labels import Label

TOKEN = "a-token-of-24-characters"


@pytest.fixture
def live() -> Live:
    """Two streams, the second without a picture."""
    live = Live(["a camera", "rtsp://camera/2"])
    publish(live, 1)
    return live


def publish(live: Live, frame_id: int, level: int = 90) -> None:
    rgb = np.full((48, 64, 3), level, np.uint8)
    live.publish(rgb, frame_id, StreamStatus(0, "a camera", LIVE, age_s=0.0, frame_id=frame_id))


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers (lower case) and body; redirects are not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> None:
            return None

    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def join(port: int, **more: Any) -> Any:
    from websockets.sync.client import connect

    return connect(f"ws://127.0.0.1:{port}/live", max_size=None, proxy=None, **more)


def receive(socket: Any, timeout: float = 5.0) -> tuple[dict[str, Any], bytes]:
    data = socket.recv(timeout)
    (length,) = struct.unpack(">I", data[:4])
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def draw(socket: Any, header: dict[str, Any], **more: Any) -> None:
    socket.send(json.dumps({"drawn": header["number"], **more}))


# ---- the gate


@pytest.mark.parametrize(
    ("given", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        ("8080", "127.0.0.1", 8080, True),
        ("localhost:0", "localhost", 0, True),
        ("[::1]:8080", "::1", 8080, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("tower.local:8443", "tower.local", 8443, False),
    ],
)
def test_addresses(given: str, host: str, port: int, loopback: bool) -> None:
    address = Address.parse(given)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)


@pytest.mark.parametrize("given", ["", "127.0.0.1", "host:", "::1:8080", "h:70000", "http://h:1"])
def test_an_address_that_cannot_be_read(given: str) -> None:
    with pytest.raises(UserError, match="expected HOST:PORT, such as"):
        Address.parse(given)


def test_off_loopback_a_token_is_made_and_demanded() -> None:
    gate, again = (Gate(Address.parse("0.0.0.0:80")) for _ in range(2))
    assert gate.token and again.token and gate.token != again.token and len(gate.token) >= 32
    assert gate.url.endswith(f"/?token={gate.token}")
    assert Gate(Address.parse("127.0.0.1:80")).token is None
    for weak in ("short", "with spaces in it", "é" * 20):
        with pytest.raises(UserError, match="--token has .* expected 12 to 200"):
            Gate(Address.parse("127.0.0.1:80"), weak)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:9999"}, 200),  # through a tunnel
        ({"Host": "127.1.2.3"}, 200),
        ({"Host": "evil.example"}, 403),  # a name that a site points at 127.0.0.1
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": "192.168.1.7:8080"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_on_loopback_only_this_machines_names(
    live: Live, headers: dict[str, str], status: int
) -> None:
    with serve(live, "127.0.0.1:0") as page:
        for path in ("", "status", "metrics", "page.js", "snapshot/0.png"):
            code, answer, _ = get(f"http://127.0.0.1:{page.port}/{path}", **headers)
            assert code == status
            assert "default-src 'none'" in answer["content-security-policy"]
            assert answer["x-content-type-options"] == "nosniff"


def test_the_token_moves_from_the_url_into_a_cookie(live: Live) -> None:
    with serve(live, "127.0.0.1:0", TOKEN) as page:
        home = f"http://127.0.0.1:{page.port}/"
        assert page.url == f"{home}?token={TOKEN}"
        for path in ("", "page.js", "metrics", "status", "snapshot/0.png", "nothing"):
            code, _, body = get(home + path)
            assert code == 401 and b"token" in body and TOKEN.encode() not in body
            assert get(home + path, Authorization="Bearer wrong-wrong-wrong")[0] == 401
        code, answer, _ = get(page.url)
        assert (code, answer["location"]) == (303, ".")
        cookie = answer["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie
        code, _, body = get(home, Cookie=cookie.split(";")[0])
        assert code == 200 and b"page.js" in body
        assert get(home + "metrics", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_elsewhere_a_number_or_this_machines_name(live: Live) -> None:
    import socket

    with serve(live, "0.0.0.0:0") as page:
        home = f"http://127.0.0.1:{page.port}/status"
        assert page.token is not None and page.url.endswith(page.token)
        bearer = {"Authorization": f"Bearer {page.token}"}
        assert get(home)[0] == 401
        for host, status in (
            ("192.168.1.7:8080", 200),
            ("[fe80::1]:8080", 200),
            (socket.gethostname(), 200),
            ("evil.example", 403),
        ):
            assert get(home, Host=host, **bearer)[0] == status


def test_the_socket_has_the_same_gate(live: Live) -> None:
    from websockets.exceptions import InvalidStatus

    with serve(live, "127.0.0.1:0", TOKEN) as page:
        cookie = {"Cookie": f"medisseg-{page.port}={TOKEN}"}
        for more in (
            {},
            {"additional_headers": {"Cookie": f"medisseg-{page.port}=wrong"}},
            {"additional_headers": cookie, "origin": "http://evil.example"},
            {"additional_headers": cookie, "origin": f"http://127.0.0.1:{page.port + 1}"},
        ):
            with pytest.raises(InvalidStatus) as refused:
                join(page.port, **more)
            assert refused.value.response.status_code == 403
        origin = f"http://127.0.0.1:{page.port}"
        with join(page.port, additional_headers=cookie, origin=origin) as socket:
            assert receive(socket)[0]["shown"]["frame_id"] == 1


def test_a_port_that_is_taken_is_one_line(live: Live, spawn: Any, numbered: Path) -> None:
    with serve(live, "127.0.0.1:0") as page:
        address = f"127.0.0.1:{page.port}"
        process = spawn(numbered, "--serve", address, "--window", "off")
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
        assert errors.decode() == (
            f"error: --serve {address}: another program listens there; choose another port\n"
        )


# ---- a proxy, further names


class Proxy:
    """Serves a page under /med/, prefix stripped, byte for byte, as nginx or Traefik would.

    Args:
        target: Port of the page.
        host: What it puts in place of the browser's Host header; None leaves it.
    """

    def __init__(self, target: int, host: str | None = None) -> None:
        self._target, self._host = target, host
        self._listener = socket_module.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                browser, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(browser,), daemon=True).start()

    def _serve(self, browser: Any) -> None:
        head = b""
        while b"\r\n\r\n" not in head and (more := browser.recv(65536)):
            head += more
        method, path, rest = head.split(b" ", 2)
        if not path.startswith(b"/med/"):
            browser.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            browser.close()
            return
        version, *lines = rest.split(b"\r\n")
        if self._host:
            lines = [b"Host: " + self._host.encode() if line.lower().startswith(b"host:") else line
                     for line in lines]  # fmt: skip
        if b"upgrade: websocket" not in rest.lower():  # one request a connection
            lines = [line for line in lines if not line.lower().startswith(b"connection:")]
            lines.insert(0, b"Connection: close")
        try:
            page = socket_module.create_connection(("127.0.0.1", self._target))
        except OSError:  # the page is gone
            browser.close()
            return
        page.sendall(b" ".join((method, path[4:], b"\r\n".join((version, *lines)))))
        threading.Thread(target=self._pump, args=(browser, page), daemon=True).start()
        self._pump(page, browser)

    def _pump(self, source: Any, sink: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket_module.SHUT_WR)


def test_the_page_works_under_a_path(live: Live) -> None:
    with serve(live, "127.0.0.1:0", TOKEN) as page, contextlib.closing(Proxy(page.port)) as proxy:
        home = f"http://127.0.0.1:{proxy.port}/med/"
        code, answer, _ = get(f"{home}?token={TOKEN}")
        assert (code, answer["location"]) == (303, ".")  # of /med/: /med/ again
        cookie = answer["set-cookie"]
        assert "path" not in cookie.lower()  # the browser takes the page's own, /med/
        cookies = {"Cookie": cookie.split(";")[0]}
        code, _, body = get(home, **cookies)
        assert code == 200
        for name in ("page.css", "page.js", "status", "snapshot/0.png", "metrics"):
            assert get(home + name, **cookies)[0] == 200, name
        assert not re.search(rb"""(href|src|action)=["']/""", body)
        script = get(home + "page.js", **cookies)[2]
        assert b'new URL("live", location.href)' in script and b"fetch(`snapshot/" in script
        origin = f"http://127.0.0.1:{proxy.port}"
        from websockets.sync.client import connect

        address = f"ws://127.0.0.1:{proxy.port}/med/live"
        more: Any = {"max_size": None, "proxy": None, "additional_headers": cookies}
        with connect(address, origin=origin, **more) as socket:
            assert receive(socket)[0]["shown"]["frame_id"] == 1


def test_the_page_shows_the_colors_of_the_videos(live: Live) -> None:
    from medisseg.colors import LESION, css

    with serve(live, "127.0.0.1:0") as page:
        _, headers, body = get(f"http://127.0.0.1:{page.port}/page.css")
    sheet = body.decode()
    assert headers["content-type"] == "text/css; charset=utf-8"
    defined = dict(re.findall(r"--([\w-]+): (#\w+);", sheet))
    assert defined["mark"] == css(LESION) == "#00dcaa"
    assert {s: defined[s.lower()] for s in STATES} == {
        s: css(color.light) for s, color in STATE_COLORS.items()
    }
    assert set(re.findall(r"var\(--([\w-]+)\)", sheet)) <= defined.keys() | {"state"}


def test_a_browser_under_a_path(browser: Any, live: Live) -> None:
    with serve(live, "127.0.0.1:0", TOKEN) as page, contextlib.closing(Proxy(page.port)) as proxy:
        browser.get(f"http://127.0.0.1:{proxy.port}/med/?token={TOKEN}")
        state = "return document.getElementById('state').textContent"
        until(lambda: browser.execute_script(state) == LIVE, LIVE)
        assert browser.current_url == f"http://127.0.0.1:{proxy.port}/med/"


@pytest.mark.parametrize(
    ("host", "names", "status"),
    [
        ("tower.lan:8080", None, 403),
        ("tower.lan:8080", "other.lan", 403),
        ("tower.lan:8080", "tower.lan", 200),
        ("TOWER.LAN", " tower.lan , med.example", 200),
        ("med.example:8443", "tower.lan,med.example:8443", 200),
        ("tower.lan.evil.example", "tower.lan", 403),
        ("evil.example", "tower.lan", 403),
    ],
)
@pytest.mark.parametrize("address", ["127.0.0.1:0", "0.0.0.0:0"])
def test_further_host_names(
    live: Live, address: str, host: str, names: str | None, status: int
) -> None:
    with serve(live, address, TOKEN, names=names) as page:
        home = f"http://127.0.0.1:{page.port}/status"
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert get(home, Host=host, **bearer)[0] == status
        assert get(home, **bearer)[0] == 200  # the numbers stay
        assert get(home, Host=host)[0] == (401 if status == 200 else 403)


@pytest.mark.parametrize("names", ["a b", "http://tower.lan", "tower.lan/x", "*", "a:b", "-x"])
def test_a_host_name_that_is_none(names: str) -> None:
    with pytest.raises(UserError, match="--host-name is .* expected names such as tower.lan"):
        Gate(Address.parse("127.0.0.1:80"), names=names)


def test_a_proxy_that_puts_its_own_host_in(live: Live) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    names = "med.example,tower.lan:8443"
    with (
        serve(live, "127.0.0.1:0", TOKEN, names=names) as page,
        contextlib.closing(Proxy(page.port, f"127.0.0.1:{page.port}")) as proxy,
    ):
        more: Any = {
            "max_size": None,
            "proxy": None,
            "additional_headers": {"Cookie": f"medisseg-{page.port}={TOKEN}"},
        }
        address = f"ws://127.0.0.1:{proxy.port}/med/live"
        for origin in ("https://med.example", "https://tower.lan:8443"):
            with connect(address, origin=origin, **more) as socket:
                assert receive(socket)[0]["shown"]["frame_id"] == 1
        for origin in ("https://evil.example", "https://med.example:81", "https://tower.lan"):
            with pytest.raises(InvalidStatus):
                connect(address, origin=origin, **more)


# ---- the socket


def test_pictures_settings_streams_and_mistakes(live: Live) -> None:
    import cv2

    with serve(live, "127.0.0.1:0") as page, join(page.port) as socket:
        header, picture = receive(socket)
        shown = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape == (48, 64, 3) and abs(float(shown.mean()) - 90) < 2
        assert [status["source"] for status in header["streams"]] == ["a camera", "rtsp://camera/2"]
        draw(socket, header, set={"threshold": 0.7, "hold_off": 1})
        header, picture = receive(socket)
        draw(socket, header)
        assert not picture and live.controls.get().threshold == 0.7  # no newer picture, no picture
        for wish, answer in (
            ({"set": {"opacity": 2}}, "opacity is 2"),
            ({"set": {"colour": 1}}, "unknown: ['colour']"),
            ({"watch": 2}, "there is no stream 2"),
            ({"seek": 1}, "means nothing here"),
            ([], "expected an object"),
        ):
            socket.send(json.dumps(wish))
            for _ in range(4):
                header, _ = receive(socket)
                draw(socket, header)
                if header["answer"]:
                    break
            assert answer in header["answer"]
        assert live.controls.get().opacity == 0.4
        publish(live, 2, level=200)
        socket.send(json.dumps({"watch": 1}))
        while header["stream"] != 1:
            header, _ = receive(socket)
            draw(socket, header)
        assert header["shown"] is None and header["streams"][0]["frame_id"] == 2
        assert header["settings"]["hold_off"] == 1 and header["browser_ms"] > 0


def test_a_picture_never_comes_under_another_streams_name(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.watch.page import session

    slow = session.jpeg

    def jpeg(view: Any) -> bytes:
        time.sleep(0.2)  # long enough for a wish to come in between
        return slow(view)

    monkeypatch.setattr(session, "jpeg", jpeg)
    with serve(live, "127.0.0.1:0") as page, join(page.port) as socket:
        time.sleep(0.1)
        socket.send(json.dumps({"watch": 1}))
        for _ in range(4):
            header, picture = receive(socket)
            draw(socket, header)
            if header["stream"] == 1:
                assert header["shown"] is None and not picture


def test_the_end_is_said_to_who_changes_streams_at_that_moment(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    from websockets.exceptions import ConnectionClosed

    from deploy.watch.page import session

    begun, go_on = threading.Event(), threading.Event()
    compress = session.jpeg

    def jpeg(view: Any) -> bytes:
        begun.set()
        go_on.wait(5)
        return compress(view)

    with serve(live, "127.0.0.1:0") as page, join(page.port) as socket:
        first, second = receive(socket)[0], receive(socket)[0]  # undrawn: nothing more is sent
        monkeypatch.setattr(session, "jpeg", jpeg)
        publish(live, 2)
        live.close()
        headers: list[dict[str, Any]] = []
        draw(socket, first)
        draw(socket, second)
        assert begun.wait(5)
        socket.send(json.dumps({"watch": 1}))
        time.sleep(0.2)  # the wish is read while the last picture is being compressed
        go_on.set()
        with pytest.raises(ConnectionClosed):
            while True:
                headers.append(receive(socket)[0])
                draw(socket, headers[-1])
        assert [header["ended"] for header in headers][-1:] == [True]


def test_a_browser_that_draws_slowly_sees_the_newest_only(live: Live) -> None:
    with serve(live, "127.0.0.1:0") as page, join(page.port) as socket:
        first, _ = receive(socket)
        for frame_id in range(2, 102):
            publish(live, frame_id)
            time.sleep(0.002)
        second, _ = receive(socket)  # sent while the first was not drawn yet
        with pytest.raises(TimeoutError):
            receive(socket, 0.6)  # two are on their way: nothing more, not even states
        draw(socket, first)
        third, picture = receive(socket)
        assert third["number"] == 3 and third["shown"]["frame_id"] == 101 and picture
        assert second["shown"]["frame_id"] < 101


def test_a_browser_that_reads_nothing_costs_the_pipeline_nothing(live: Live) -> None:
    rgb = np.random.default_rng(1).integers(0, 255, (1080, 1920, 3), np.uint8)  # 2 MB of JPEG
    with serve(live, "127.0.0.1:0") as page, contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(join(page.port, close_timeout=0.1)) for _ in range(3)]
        longest = 0.0
        for frame_id in range(2, 60):
            began = time.perf_counter()
            live.publish(rgb, frame_id, StreamStatus(0, "a camera", LIVE, frame_id=frame_id))
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.005)
        assert longest < 0.2
        assert len(deaf) == 3
        live.close()


def test_who_draws_nothing_or_talks_nonsense_is_let_go(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    from websockets.exceptions import ConnectionClosed

    from deploy.watch.page import session

    monkeypatch.setattr(session, "TIMEOUT_S", 0.5)
    with serve(live, "127.0.0.1:0") as page:
        for words, reason in ((0, "nothing was drawn for too long"), (30, "too many messages")):
            with join(page.port) as socket, pytest.raises(ConnectionClosed) as closed:
                for _ in range(words):
                    socket.send("{")
                while True:
                    socket.recv(5)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
            assert closed.value.rcvd.reason.startswith(reason)


def test_too_many_browsers_and_the_end_of_the_run(live: Live) -> None:
    from websockets.exceptions import ConnectionClosed

    with serve(live, "127.0.0.1:0") as page, contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(join(page.port)) for _ in range(16)]
        for socket in sockets:
            draw(socket, receive(socket)[0])
        with join(page.port) as refused, pytest.raises(ConnectionClosed) as closed:
            refused.recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1013
        live.close()
        header = {"ended": False}
        while not header["ended"]:
            header, _ = receive(sockets[0])
            if not header["ended"]:
                draw(sockets[0], header)
        with pytest.raises(ConnectionClosed) as closed:
            sockets[0].recv(5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1000


def test_a_snapshot_is_the_picture_without_loss(live: Live) -> None:
    import io

    from PIL import Image

    rgb = np.random.default_rng(1).integers(0, 255, (48, 66, 3), np.uint8)[:, :64]  # padded rows
    live.publish(rgb, 7, StreamStatus(0, "/videos/exam 1.mp4", AI_OFF, frame_id=7))
    with serve(live, "127.0.0.1:0") as page:
        code, headers, body = get(f"http://127.0.0.1:{page.port}/snapshot/0.png")
        assert code == 200 and headers["content-type"] == "image/png"
        assert 'filename="medisseg-exam-1-frame000007-' in headers["content-disposition"]
        image = Image.open(io.BytesIO(body))
        assert (np.asarray(image) == rgb).all()
        assert (image.text["Frame"], image.text["State"]) == ("7", "AI-OFF")  # type: ignore[attr-defined]
        assert get(f"http://127.0.0.1:{page.port}/snapshot/1.png")[0] == 404
        assert get(f"http://127.0.0.1:{page.port}/snapshot/9.png")[0] == 404


# ---- a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no browser here: apt install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chosen = webdriver.ChromeOptions()
    chosen.binary_location = binary
    downloads = tmp_path_factory.mktemp("downloads")
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        chosen.add_argument(word)
    chosen.add_argument("--window-size=1280,720")
    chosen.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    chosen.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(chosen, Service(driver))
    chrome.downloads = downloads
    yield chrome
    chrome.quit()


def until(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


class Watched:
    """A run with its page open in the browser."""

    def __init__(self, browser: Any, words: list[str], engine: Callable[[], Any]) -> None:
        from deploy import options, runner

        self.browser, self.codes = browser, []
        chosen = options.parse([*words, "--model", "fake", "--window", "off", "--no-quality"])
        self.pipeline: Any = None
        self.page: Any = None

        def remember(*arguments: Any) -> Any:
            self.pipeline = runner.Pipeline(*arguments)
            self.inner = serve(self.pipeline.live, "127.0.0.1:0")
            self.page = self.inner.__enter__()
            return self.pipeline

        def body() -> None:
            self.codes.append(runner.run(chosen, engine, remember))

        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()
        until(lambda: self.page, "the page")
        browser.get(self.page.url)

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def state(self) -> str:
        return self.run("return document.getElementById('state').textContent")

    def frame(self) -> int:
        return int(self.run("return document.getElementById('picture').dataset.frame || -1"))

    def mean(self) -> list[float]:
        """Mean colour in the middle of the polyp, as drawn in the browser: (r, g, b)."""
        return self.run(
            "const c = document.getElementById('picture');"
            "const d = c.getContext('2d').getImageData(140, 170, 40, 30).data;"
            "return [0, 1, 2].map(k => d.filter((_, i) => i % 4 === k)"
            ".reduce((a, b) => a + b) / (d.length / 4));"
        )

    def slide(self, name: str, value: float) -> None:
        self.run(
            f"const s = document.getElementById('{name}'); s.value = {value};"
            "s.dispatchEvent(new Event('input', {bubbles: true}));"
        )

    def stop(self) -> None:
        self.pipeline.stop()
        self.thread.join(10)
        self.inner.__exit__(None, None, None)
        assert self.codes == [0]


def scene(number: int) -> np.ndarray:
    """Mucosa, a green polyp in the middle, a bar that moves."""
    picture = np.full((240, 320, 3), (150, 60, 50), np.uint8)
    picture[140:220, 110:210] = (0, 200, 0)
    picture[100:110, (number * 8) % 300 :][:, :20] = 255
    return picture


def test_in_a_browser(browser: Any, fake: Any) -> None:
    source = LoopbackSource(scene)
    source.start()
    browser.get("about:blank")  # an earlier test's page asks on for its runner, which is gone
    complaints(browser)
    run = Watched(browser, [source.url, "--timeout-s", "1", "--stale-s", "0.5"], fake.FakeEngine)
    try:
        until(lambda: run.state() == LIVE, LIVE)
        # The picture moves.
        seen = [until(lambda: run.frame() > 0, "a picture") and run.frame()]
        while len(seen) < 5:
            seen.append(until(lambda: run.frame() > seen[-1] and run.frame(), "the next picture"))
        # The slider changes the overlay: (0, 200, 0) under (0, 220, 170).
        run.slide("hold_off", 0)
        run.slide("opacity", 1)
        until(lambda: run.mean()[2] > 140, "an opaque overlay")
        assert run.pipeline.live.controls.get().opacity == 1
        run.slide("opacity", 0)
        until(lambda: run.mean()[2] < 40, "no overlay")
        run.slide("opacity", 0.5)
        until(lambda: 60 < run.mean()[2] < 120, "half an overlay")
        run.slide("threshold", 0.95)  # the fake engine is 0.998 sure
        until(lambda: run.pipeline.live.controls.get().threshold == 0.95, "the threshold")
        assert run.run("return document.getElementById('count').textContent") == "1 detection"
        # AI off and on, by keyboard.
        press(browser, "a")
        until(lambda: run.state() == AI_OFF, AI_OFF)
        until(lambda: run.mean()[2] < 40, "no overlay")
        press(browser, "a")
        until(lambda: run.state() == LIVE, LIVE)
        check_snapshot(browser, run)
        # The source dies, and the page says so; it returns, and the picture moves on.
        source.kill()
        until(lambda: run.state() == OFFLINE, OFFLINE)
        until(lambda: "s old" in run.run("return document.getElementById('veil').innerText"), "age")
        assert run.run("return document.getElementById('count').textContent") == "Not segmented"
        last = run.frame()
        source.start()
        until(lambda: run.state() == LIVE, LIVE)
        until(lambda: run.frame() > last, "a picture after the return")
        check_accounts(run)
        assert not complaints(browser)
    finally:
        source.kill()
        run.stop()
    # The runner itself is gone: the page may not go on showing LIVE.
    until(lambda: run.state() == OFFLINE, OFFLINE)
    # The page asks again and again, as it should: while the runner closes, and after.
    expected = ("ERR_CONNECTION_REFUSED", "Connection closed before receiving a handshake response")
    assert not [said for said in complaints(browser) if not any(part in said for part in expected)]


def test_the_browser_names_the_class_of_a_track(browser: Any, fake: Any) -> None:
    class Named(fake.FakeEngine):
        labels = (Label("<b>neoplastic", (230, 159, 0)),)

    source = LoopbackSource(scene)
    source.start()
    run = Watched(browser, [source.url, "--timeout-s", "1", "--hold-off", "0"], Named)
    try:
        line = "const line = document.querySelector('#tracks li'); return line && "
        text = until(lambda: run.run(line + "line.textContent"), "a track")
        assert re.match(r"#\d+ · <b>neoplastic · 100 % sure · ", text)
        assert run.run(line + "line.style.borderLeftColor") == "rgb(230, 159, 0)"
    finally:
        source.kill()
        run.stop()


def complaints(browser: Any) -> list[str]:
    """What the browser's console holds against the page since it was last asked."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def press(browser: Any, key: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.TAG_NAME, "body").send_keys(key)


def check_snapshot(browser: Any, run: Watched) -> None:
    from PIL import Image

    press(browser, "s")
    saved = until(lambda: list(browser.downloads.glob("medisseg-*.png")), "the snapshot")
    with Image.open(saved[0]) as image:
        assert image.size == (320, 240) and int(image.text["Frame"]) <= run.frame()


def check_accounts(run: Watched) -> None:
    words = "return ['in', 'processed', 'dropped', 'failed'].map(n => +document.getElementById(n)"
    counts = run.run(words + ".textContent)")
    assert counts[0] == sum(counts[1:]) > 20


def test_two_streams_by_keyboard_on_a_phone(browser: Any, fake: Any, numbered: Path) -> None:
    run = Watched(browser, [str(numbered), str(numbered), "--realtime"], fake.FakeEngine)
    try:
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        until(lambda: run.frame() > 0, "a picture")
        press(browser, "2")
        pressed = "return document.querySelector('[aria-pressed=true]').title"
        until(lambda: run.run(pressed).endswith("(2)"), "the second stream")
        until(lambda: run.frame() > 0, "its picture")
        wide = "return [document.documentElement.scrollWidth, innerWidth]"
        assert run.run(wide) == [390, 390]  # nothing sticks out
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        run.stop()


def test_the_program_keeps_its_logging(live: Live) -> None:
    class Handler(logging.StreamHandler):  # type: ignore[type-arg]
        def close(self) -> None:
            closed.append(self)
            super().close()

    closed: list[logging.Handler] = []
    handler = Handler(io.StringIO())
    with serve(live, "127.0.0.1:0"):
        assert closed == []
    handler.close()


def test_window_and_snapshot_have_square_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """PAL stores 720 x 576 for a picture of 4:3, whose pixels are 16/15 as wide as high."""
    from PIL import Image

    from deploy.outputs.pixels import square_pixels
    from deploy.pipeline.live import View
    from deploy.watch.page.app import png
    from deploy.watch.window import Window

    tkinter = pytest.importorskip("tkinter")
    rgb = np.zeros((576, 720, 3), np.uint8)
    rgb[:, 360:] = 200
    view = View(1, rgb, 7, StreamStatus(0, "PAL", LIVE, aspect=16 / 15))
    image = np.asarray(Image.open(io.BytesIO(png(view))))
    assert image.shape == (576, 768, 3)
    assert image[300, 380].tolist() == [0] * 3 and image[300, 388].tolist() == [200] * 3

    class Widget:
        def __init__(self, *_: object, **words: Any) -> None:
            self.words = words

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **words: self.words.update(words)

    class OneView:
        def wait(self, *_: object) -> View:
            return view

    for name in ("Tk", "Label", "PhotoImage"):
        monkeypatch.setattr(tkinter, name, Widget)
    window = Window(OneView())  # type: ignore[arg-type]
    assert window.tick(0)
    assert window._photo.words["data"].startswith(b"P6 768 576 255 ")
    assert np.array_equal(square_pixels(rgb, 1.0), rgb)
