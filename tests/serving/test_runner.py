"""Two runners of two streams each on one real server, which is killed and comes back."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS, FPS = 40, 4


@pytest.fixture(scope="module")
def lab() -> Any:
    spec = importlib.util.spec_from_file_location("serving_lab", ROOT / "tests/deploy/lab.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def video(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "numbered.mp4"
    return lab.write_video(path, map(lab.numbered_frame, range(SECONDS * FPS)), fps=FPS)


def start(model: str, out: Path, *sources: Path) -> subprocess.Popen[bytes]:
    words = [*sources, "--model", model, "--out", out, "--window", "off", "--no-quality"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "deploy/run.py"), *map(str, words), "--realtime"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def segmented(out: Path) -> int:
    path = out / "results.jsonl"
    return path.read_text().count("processed") if path.exists() else 0


def until(what: Any, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_the_video_goes_on_while_the_server_is_away(
    serve: Any, lab: Any, video: Path, tmp_path: Path
) -> None:
    server = serve()
    outs = [tmp_path / name for name in ("one", "two")]
    runners = [start(server.url(), out, video, video) for out in outs]
    until(lambda: all(segmented(out) > 4 for out in outs))
    server.kill()
    time.sleep(4)
    server.start()
    for runner, out in zip(runners, outs, strict=True):
        said = runner.communicate(timeout=180)
        assert runner.returncode == 0, said
        run = lab.Run(out)
        run.check_accounts()
        report = run.report
        assert report["engine"].startswith("Triton 2") and report["backend"] == "triton"
        for number, stream in enumerate(report["streams"]):
            assert stream["state_changes"] >= 3
            states = [c["to"] for c in report["state_changes"] if c["stream"] == number]
            assert states[0] == "LIVE" and "AI-OFF" in states, states
            lines = [line for line in run.lines if line["stream"] == number]
            off = [line for line in lines if line.get("off")]
            why = {line["off"] for line in off}
            assert any("edge-polyp" in reason for reason in why), why  # the server's address
            assert all("edge-polyp" in r or r.startswith("too slow") for r in why), why
            away = [line["id"] for line in off if "edge-polyp" in line["off"]]
            done = [line["id"] for line in lines if line["outcome"] == "processed"]
            assert min(done) < min(away) and max(done) > max(away)  # before, and again by itself
            for line in off:  # shown raw, with no mask of an older frame
                assert line["outcome"] == "failed" and not line.get("tracks")
                assert line.get("rle") is None and line.get("shown_rle") is None
            pictures = lab.read_video(out / f"raw-{number + 1}-000.mp4")
            assert len(pictures) == stream["frames"]["in"] == SECONDS * FPS  # all, also the dropped
            numbers = [line["raw"] for line in lines if line["outcome"] != "dropped"]
            assert numbers == [line["id"] for line in lines if line["outcome"] != "dropped"]


def test_the_masks_of_a_run_are_those_of_a_run_in_process(
    shared_server: Any, bundle: Any, lab: Any, phantom: Path, tmp_path: Path
) -> None:
    masks, video = [], next(phantom.glob("*.mp4"))
    for name, model in (("there", shared_server.url()), ("here", str(bundle.path))):
        words = [video, "--model", model, "--out", tmp_path / name, "--window", "off"]
        command = [sys.executable, str(ROOT / "deploy/run.py"), *map(str, words)]
        subprocess.run(
            [*command, "--frames", "20", "--no-quality", "--record", "none"],
            check=True, capture_output=True,
        )  # fmt: skip
        lines = lab.Run(tmp_path / name).processed()
        masks.append([(line["id"], json.dumps(line["rle"]), line["area"]) for line in lines])
    assert len(masks[0]) == 20 and masks[0] == masks[1]
    assert np.ptp([area for _, _, area in masks[0]]) > 0


def test_no_server_is_one_line_and_leaves_nothing(video: Path, tmp_path: Path) -> None:
    runner = start("grpc://127.0.0.1:9/edge-polyp", tmp_path / "out", video)
    _, said = runner.communicate(timeout=60)
    lines = [line for line in said.decode().splitlines() if line]
    assert runner.returncode == 2 and not (tmp_path / "out").exists()
    assert len(lines) == 1 and lines[0].startswith("error: grpc://127.0.0.1:9/edge-polyp cannot be")
