"""Live sources on loopback: lost, silent, back again, back at another size. Nothing is invented."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.sources import live as connections
from deploy.sources.live import NetworkSource, reconnect_delay
from deploy.status import LIVE, OFFLINE, STALE
from medisseg.errors import UserError

HERE = Path(__file__).parent
PYTHON = "/usr/bin/python3"
NEEDS = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good,bad,ugly}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def rtsp() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start servers: ``rtsp(port, width, height)``."""
    code = (
        "import gi; gi.require_version('GstRtspServer', '1.0');"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    )
    if (
        not Path(PYTHON).exists()
        or subprocess.run([PYTHON, "-c", code], capture_output=True).returncode
    ):
        pytest.skip(f"no GStreamer RTSP server here: apt install {NEEDS}")
    started: list[subprocess.Popen[str]] = []

    def start(
        port: int, width: int = 320, height: int = 240, transport: str = "any"
    ) -> subprocess.Popen[str]:
        words = map(str, (port, width, height, transport))
        command = [PYTHON, str(HERE / "rtsp_server.py"), *words]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(server)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        return server

    yield start
    for server in started:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


class LiveRun:
    """The runner in a thread, and what its watchers see."""

    def __init__(self, words: list[str], engine: Callable[[], Any], out: Path) -> None:
        from deploy import options, runner

        argv = [*words, "--model", "fake", "--out", str(out), "--no-quality", "--window", "off"]
        chosen = options.parse(argv)
        self.live: Any = None
        self.pipeline: Any = None
        self.code: int | None = None
        original = runner.Pipeline

        def remember(*arguments: Any) -> Any:
            self.pipeline = original(*arguments)
            self.live = self.pipeline.live
            return self.pipeline

        def body() -> None:
            self.code = runner.run(chosen, engine, remember)

        self.thread = threading.Thread(target=body, daemon=True)
        self.thread.start()

    def wait_for(self, condition: Callable[[Any], bool], seconds: float = 15.0) -> Any:
        """Wait until the first stream's status fulfils a condition, and return it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.live is not None and condition(status := self.live.status(0)):
                return status
            time.sleep(0.02)
        raise AssertionError(f"waited {seconds} s; status {self.live and self.live.status(0)}")

    def stop(self, seconds: float = 8.0) -> None:
        self.pipeline.stop()
        self.thread.join(seconds)
        assert not self.thread.is_alive() and self.code == 0


@pytest.fixture
def start(tmp_path: Path, fake: Any) -> Iterator[Callable[..., LiveRun]]:
    runs: list[LiveRun] = []

    def begin(*words: object, engine: Callable[[], Any] | None = None) -> LiveRun:
        runs.append(LiveRun([*map(str, words)], engine or fake.FakeEngine, tmp_path / "run"))
        return runs[-1]

    yield begin
    for run in runs:
        if run.pipeline is not None:
            run.pipeline.stop()


def states(run: Any) -> list[str]:
    return [change["to"] for change in run.report["state_changes"]]


def test_a_killed_server_that_returns_at_another_size(
    rtsp: Any, start: Any, lab: Any, tmp_path: Path
) -> None:
    port = free_port()
    server = rtsp(port)
    run = start(f"rtsp://127.0.0.1:{port}/video", "--timeout-s", 1.5)
    run.wait_for(lambda s: s.state == LIVE and s.frames["processed"] > 20)
    server.kill()
    run.wait_for(lambda s: s.state in (STALE, OFFLINE))
    lost = run.wait_for(lambda s: s.state == OFFLINE)
    assert lost.reason
    time.sleep(0.5)
    silent = run.live.status(0)
    assert (
        silent.frames["in"] + silent.frames["in_flight"]
        == lost.frames["in"] + lost.frames["in_flight"]
    )
    assert silent.age_s > lost.age_s  # the age of the picture is shown, and it grows
    rtsp(port, 640, 480)
    run.wait_for(lambda s: s.state == LIVE and s.size == (480, 640))
    run.stop()
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    assert states(result)[0] == LIVE and OFFLINE in states(result)[1:-1]
    parts = result.report["streams"][0]["overlay"]
    assert [(part["width"], part["height"]) for part in parts] == [(320, 240), (640, 480)]
    assert len(result.video("overlay")) == result.report["frames"]["processed"]


def test_a_server_that_falls_silent(rtsp: Any, start: Any) -> None:
    port = free_port()
    server = rtsp(port)
    run = start(f"rtsp://127.0.0.1:{port}/video", "--timeout-s", 1.5)
    run.wait_for(lambda s: s.state == LIVE and s.frames["processed"] > 10)
    server.send_signal(signal.SIGSTOP)
    stale = run.wait_for(lambda s: s.state == STALE)
    assert stale.age_s >= 0.5
    offline = run.wait_for(lambda s: s.state == OFFLINE and s.reason == "timed out")
    view = run.live.wait(0, run.live.latest(0).sequence, 1.0)
    assert view.frame_id == offline.frame_id  # the last picture again, greyed
    assert (view.rgb[100:140] == view.rgb[100:140, :, :1]).all()
    server.send_signal(signal.SIGCONT)
    run.wait_for(lambda s: s.state == LIVE)
    run.stop()


def test_a_network_that_swallows_everything(start: Any) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()  # connects, and never answers
        run = start(f"rtsp://127.0.0.1:{hole.getsockname()[1]}/video", "--timeout-s", 1)
        status = run.wait_for(lambda s: s.state == OFFLINE and s.reason)
        assert status.frames.get("in", 0) == 0
        time.sleep(1.0)
        began = time.monotonic()
        run.stop()
        assert time.monotonic() - began < 8


def test_udp_comes_and_goes(start: Any, lab: Any, tmp_path: Path) -> None:
    port = free_port()
    video = lab.write_video(tmp_path / "v.ts", map(lab.numbered_frame, range(75)), g="10")
    run = start(f"udp://127.0.0.1:{port}", "--timeout-s", 1)
    time.sleep(0.5)
    for _ in range(2):
        send(video, f"udp://127.0.0.1:{port}?pkt_size=1316", times=1)
        run.wait_for(lambda s: s.state == OFFLINE, 6)
    run.stop()
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    changes = result.report["state_changes"]
    assert sum((change["from"], change["to"]) == (OFFLINE, LIVE) for change in changes) == 2


def send(video: Path, url: str, times: int) -> None:
    """Send a video at its own rate."""
    import av

    for _ in range(times):
        with av.open(str(video)) as source, av.open(url, "w", format="mpegts") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            began = time.monotonic()
            for packet in source.demux(video=0):
                if packet.dts is None:
                    continue
                time.sleep(
                    max(0.0, began + float(packet.dts * packet.time_base) - 1.5 - time.monotonic())
                )
                packet.stream = stream
                target.mux(packet)


def test_a_recording_behind_http_ends(start: Any, lab: Any, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    lab.write_video(folder / "v.mkv", map(lab.numbered_frame, range(50)))
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen([*command, "--directory", str(folder)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        run = start(f"http://127.0.0.1:{port}/v.mkv?token=secret")
        run.thread.join(20)
        assert run.code == 0
    finally:
        server.kill()
        server.wait()
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    assert result.report["frames"]["in"] == 50
    assert "secret" not in (tmp_path / "run" / "report.json").read_text()


def test_delays_grow_within_bounds_and_differ() -> None:
    for tries in range(20):
        longest = min(connections.LONGEST_DELAY_S, connections.FIRST_DELAY_S * 2**tries)
        drawn = {reconnect_delay(tries) for _ in range(50)}
        assert len(drawn) > 10
        assert longest / 2 <= min(drawn) and max(drawn) <= longest


def test_passwords_are_not_shown() -> None:
    url = "rtsp://user:pa%40ss@camera:554/live?key=1"
    assert NetworkSource(url, 1.0, "auto").name == "rtsp://camera:554/live"


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://admin:P#5ecret@127.0.0.1:9/live",
        "rtsp://admin:P/5ecret@127.0.0.1:9/live",
        "rtsp://admin:P[5ecret@127.0.0.1:9/live",
        "rtsp://127.0.0.1:9/user=a_password=5ecret_",
        "rtsp://127.0.0.1:9/live;password=5ecret",
    ],
)
def test_a_run_leaves_no_password_behind(address: str, spawn: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = spawn(address, "--out", out, "--duration", 1, "--window", "off")
    said = b"".join(process.communicate(timeout=120))
    assert b"Traceback" not in said and b"127.0.0.1" in said and b"5ecret" not in said
    written = [path.read_bytes() for path in out.iterdir() if path.is_file()]
    assert len(written) >= 4 and not any(b"5ecret" in text for text in written)


def test_an_unknown_address_is_refused_without_its_password(tmp_path: Path) -> None:
    from deploy import options
    from deploy.sources.opening import open_source

    for given in ("rtps://admin:5ecret@camera/live", "rtsp:admin:5ecret@camera/live"):
        with pytest.raises(UserError, match="camera/live") as error:
            open_source(given, options.parse([given, "--model", "m"]))
        assert "5ecret" not in str(error.value)


def first_error(url: str, timeout_s: float = 2.0) -> str:
    """Return what ends a source at once; a source that tries again is stopped after a while."""
    source = NetworkSource(url, timeout_s, "auto")
    stop = threading.Event()
    threading.Timer(20, stop.set).start()
    with pytest.raises(UserError) as error:
        list(source.frames(stop, lambda connected, reason: None))
    return str(error.value)


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """Start servers that give every request one answer; returns their ports."""
    servers: list[socket.socket] = []

    def serve(server: socket.socket, answer: bytes) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    request = client.recv(65536)
                    number = re.search(rb"CSeq: *([0-9]+)", request)
                    client.sendall(answer.replace(b"NUMBER", number[1] if number else b"1"))

    def start(answer: bytes) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        threading.Thread(target=serve, args=(server, answer), daemon=True).start()
        return server.getsockname()[1]

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.mark.parametrize("code", ["400 Bad Request", "401 Unauthorized", "403 Forbidden",
                                  "404 Not Found"])  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_what_no_retry_can_mend_ends_at_once(answering: Any, scheme: str, code: str) -> None:
    protocol = "HTTP/1.1" if scheme == "http" else "RTSP/1.0"
    answer = f"{protocol} {code}\r\nCSeq: NUMBER\r\nContent-Length: 0\r\n\r\n"
    port = answering(answer.encode())
    assert f"{scheme}://127.0.0.1:{port}/live: " in first_error(f"{scheme}://127.0.0.1:{port}/live")


def test_a_page_is_no_video(answering: Any) -> None:
    page = b"<html>" + b"camera" * 3000
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(page)
    port = answering(head + page)
    assert "sends no video that FFmpeg knows" in first_error(f"http://127.0.0.1:{port}/")


def test_one_source_that_cannot_be_mended_leaves_the_others(
    answering: Any, play: Any, numbered: Path
) -> None:
    port = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    run = play(f"http://127.0.0.1:{port}/live", numbered)
    run.check_accounts()
    bad, good = run.report["streams"]
    assert bad["frames"]["in"] == 0 and "404" in bad["stopped"][0]
    assert good["frames"]["processed"] == 100
    with pytest.raises(UserError, match="404"):  # alone, it ends the run: exit code 2
        play(f"http://127.0.0.1:{port}/live")


def test_losses_are_no_end() -> None:
    from av import error

    for loss in (error.ConnectionRefusedError, error.ConnectionResetError, error.TimeoutError,
                 error.HTTPServerError, error.EOFError, error.InvalidDataError):  # fmt: skip
        assert not connections.is_permanent(loss(0, "lost"))


def test_srt_is_refused_with_the_remedy() -> None:
    from deploy import options
    from deploy.sources.opening import open_source

    url = "srt://user:5ecret@10.0.0.5:9000"
    with pytest.raises(UserError, match=r"no SRT.*ffmpeg -i.*udp://127") as error:
        open_source(url, options.parse([url, "--model", "m"]))
    assert "5ecret" not in str(error.value)


def test_an_unknown_codec_is_said(lab: Any, tmp_path: Path) -> None:
    from deploy import options
    from deploy.sources.opening import open_source

    path = lab.write_video(tmp_path / "v.mkv", map(lab.numbered_frame, range(2)))
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_XXXXX/XXX/XXX"))
    with pytest.raises(UserError, match="video codec is not known here"):
        open_source(str(path), options.parse([str(path), "--model", "m"]))


def test_rtsp_over_udp_where_the_server_wants_it(rtsp: Any, start: Any) -> None:
    port = free_port()
    rtsp(port, 320, 240, "udp")
    run = start(f"rtsp://127.0.0.1:{port}/video")
    run.wait_for(lambda s: s.state == LIVE and s.frames["processed"] > 10, 40)
    assert "UDP only" in run.pipeline.streams[0].source.notes.texts[0]
    run.stop()


def test_rtmp(start: Any, lab: Any, tmp_path: Path) -> None:
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("no RTMP server here: apt install ffmpeg")
    video = lab.write_video(tmp_path / "v.mp4", map(lab.numbered_frame, range(75)), g="10")
    url = f"rtmp://127.0.0.1:{free_port()}/live/exam"
    command = [ffmpeg, "-v", "error", "-re", "-i", str(video), "-c", "copy", "-f", "flv"]
    server = subprocess.Popen([*command, "-listen", "1", url], stdin=subprocess.DEVNULL)
    try:
        run = start(url, "--timeout-s", 2)
        run.wait_for(lambda s: s.state == LIVE and s.frames["processed"] > 30, 40)
        run.wait_for(lambda s: s.state == OFFLINE, 40)
    finally:
        server.kill()
        server.wait()
    run.stop()
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    numbers = [lab.read_number(picture) for picture in result.video("raw")]
    assert numbers == sorted(numbers) and len(numbers) > 30


def serve_jpegs(port: int, pictures: list[bytes], fps: float) -> Any:
    """A camera's multipart stream: no time stamps, its pictures come as they come."""
    import http.server

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):
                for index in range(10**6):
                    data = pictures[index % len(pictures)]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}"
                    self.wfile.write(head.encode() + b"\r\n\r\n" + data + b"\r\n")
                    time.sleep(1 / fps)

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def jpeg(picture: Any) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "jpeg", quality=95)
    return out.getvalue()


def test_a_live_source_without_times_is_timed_by_arrival(
    start: Any, lab: Any, tmp_path: Path
) -> None:
    port = free_port()
    server = serve_jpegs(port, [jpeg(lab.numbered_frame(i)) for i in range(50)], fps=8)
    try:
        run = start(f"http://127.0.0.1:{port}/", "--frames", 32)
        run.thread.join(60)
        assert run.code == 0
    finally:
        server.shutdown()
        server.server_close()
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    lines = result.lines
    took = lines[-1]["monotonic_s"] - lines[0]["monotonic_s"]
    assert took > 2 and lines[-1]["time_s"] - lines[0]["time_s"] == pytest.approx(took, abs=0.3)


def test_a_frozen_picture_is_stale(start: Any, lab: Any) -> None:
    port = free_port()
    server = serve_jpegs(port, [jpeg(lab.numbered_frame(5))], fps=10)
    try:
        run = start(f"http://127.0.0.1:{port}/")
        run.wait_for(lambda s: s.state == LIVE)
        stale = run.wait_for(lambda s: s.state == STALE, 30)
        assert stale.reason == "the picture stands still" and stale.age_s > 0.5
        seen = run.live.status(0).frames["processed"]
        run.wait_for(lambda s: s.frames["processed"] > seen + 5 and s.state == STALE)
    finally:
        server.shutdown()
        server.server_close()
    run.stop()
