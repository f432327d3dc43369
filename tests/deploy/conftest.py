"""Fixtures of the runner's tests. ``lab`` is the module of helpers, ``fake`` the engine's."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_tests_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LAB, FAKE = load("lab"), load("fake")


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    return LAB


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    return FAKE


@pytest.fixture(scope="session")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 numbered frames at 320 x 240 and 25 frames a second."""
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    return LAB.write_video(path, map(LAB.numbered_frame, range(100)))


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Any]:
    """Run sources through a fake engine within this process: ``play(*sources, *options)``."""

    def run(*words: object, engine: Callable[[], Any] | None = None, code: int = 0) -> Any:
        from deploy import options, runner

        out = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        argv = [*map(str, words), "--model", "fake", "--out", str(out), "--window", "off"]
        chosen = options.parse([*argv, "--no-quality"])
        assert runner.run(chosen, engine or FAKE.FakeEngine) == code
        return LAB.Run(out)

    return run


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the runner as a process of its own; all are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: object, ms: float = 0, **more: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "FAKE_MS": str(ms), **more.pop("env", {})}
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        process = subprocess.Popen(
            [sys.executable, str(HERE / "fake.py"), *map(str, words)], env=environment, **more
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
