"""The real Triton Inference Server that ``make triton`` fetched, as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = Path(os.environ.get("MEDISSEG_TRITON", ROOT / ".triton"))
NAME = "edge-polyp"


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


class Server:
    """One server over one model repository; its ports stay when it is killed and started again."""

    def __init__(self, repository: Path, log: Path, *options: str) -> None:
        self.repository, self.log, self.options = repository, log, options
        self.http, self.grpc, self.metrics = free_ports(3)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Start it, and wait until the model is ready."""
        part = next(SERVER.glob("lib/python3*/site-packages/pytriton/tritonserver"))
        words = [
            part / "bin/tritonserver", f"--model-repository={self.repository}",
            f"--backend-directory={part / 'backends'}", "--model-control-mode=poll",
            "--repository-poll-secs=1", "--exit-on-error=false", "--strict-readiness=false",
            "--exit-timeout-secs=2", "--allow-gpu-metrics=false",
            *(f"--{what}-address=127.0.0.1" for what in ("http", "grpc", "metrics")),
            *(f"--{what}-port={getattr(self, what)}" for what in ("http", "grpc", "metrics")),
            *self.options,
        ]  # fmt: skip
        # It takes the Python that is first on PATH; a session of its own, with the backend's stub.
        environment = {**os.environ, "PATH": f"{SERVER / 'bin'}:{os.environ['PATH']}"}
        environment.pop("PYTHONPATH", None)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                list(map(str, words)), env=environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self, name: str = NAME, version: str = "") -> None:
        """Wait until a version of a model is ready."""
        path = f"v2/models/{name}{f'/versions/{version}' if version else ''}/ready"
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=5).close()
                return
            except OSError as error:
                assert self.process is not None and self.process.poll() is None, self.said()
                assert time.monotonic() < until, f"{error}: {self.said()}"
                time.sleep(0.1)

    def said(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def pause(self) -> None:
        """Answer nothing more, with the connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a pause."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        if self.process is not None:
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def scrape(self) -> str:
        """Return its metrics as Prometheus reads them."""
        place = f"http://127.0.0.1:{self.metrics}/metrics"
        with urllib.request.urlopen(place, timeout=5) as answer:
            return answer.read().decode()

    def url(self, scheme: str = "grpc", more: str = "") -> str:
        """Return the model's address."""
        port = self.grpc if scheme.startswith("grpc") else self.http
        return f"{scheme}://127.0.0.1:{port}/{NAME}{more}"
