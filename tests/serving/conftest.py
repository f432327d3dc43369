"""A real Triton Inference Server with a bundle of ours in its Python backend.

The environment is made by ``make triton`` (``.triton`` beside the checkout's other environment);
without it the tests skip and say so, or fail where ``MEDISSEG_REQUIRE`` names ``triton``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from needs import lacking

from benchmarks.triton_server import NAME, SERVER, Server
from export.build_engine import build
from export.bundle import Bundle
from export.triton_repository import Target, write_model


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The packaged checkpoint in float32 for ONNX Runtime."""
    out = tmp_path_factory.mktemp("serving") / "edge-polyp"
    return build(NAME, out, backend="onnx", precision="fp32", images=1, quiet=True)


@pytest.fixture(scope="session")
def real() -> Path:
    """The environment of the real server."""
    if not (SERVER / "ready").is_file():
        lacking("triton", "no Triton Inference Server here; make triton fetches one")
    return SERVER


@pytest.fixture
def serve(real: Path, bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of the bundle: ``serve()``; all are killed with the test."""
    started: list[Server] = []

    def start(change: Callable[[Path], None] | None = None, *options: str) -> Server:
        repository = tmp_path / f"models{len(started)}"
        write_model(bundle, Target(repository, NAME, "python"))
        if change is not None:
            change(repository / NAME)
        server = Server(repository, tmp_path / f"server{len(started)}.log", *options)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.kill()


@pytest.fixture(scope="session")
def shared_server(
    real: Path, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all tests that only ask."""
    folder = tmp_path_factory.mktemp("shared-server")
    write_model(bundle, Target(folder / "models", NAME, "python"))
    server = Server(folder / "models", folder / "server.log")
    server.start()
    yield server
    server.kill()
