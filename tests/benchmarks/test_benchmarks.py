"""Every benchmark runs at its smallest, and leaves files that say what was measured on what."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path

import pytest

from benchmarks import common
from medisseg.errors import UserError

NAMES = ("kernels", "frames", "frames_threads", "network", "inference")  # pipeline: tests/deploy


@pytest.mark.parametrize("name", NAMES)
def test_quick_run(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert not module.main(["--out", str(tmp_path), "--quick", "--device", "cpu"])
    whole = json.loads((tmp_path / f"{name}.json").read_text())
    assert whole["machine"]["cores"] >= 1 and whole["machine"]["torch"] and whole["machine"]["date"]
    failed = {
        row.get("backend")
        for row in whole["rows"]
        if "failed" in row and "this CPU does not compute in bf16" not in row["failed"]
    }
    assert failed <= {"tensorrt", "tensorrt-rtx", "torch-tensorrt"}, "GPU engines alone may fail"
    numbers = [
        value
        for row in whole["rows"]
        for key, value in row.items()
        if key.endswith("_ms") and value is not None
    ]
    assert numbers and all(math.isfinite(value) and value >= 0 for value in numbers)
    with (tmp_path / f"{name}.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(whole["rows"])
    if name == "kernels":  # fast is not enough: the answers are those of the plain operators
        apart = [row["difference"] for row in whole["rows"] if row["provider"] == "ours"]
        assert max(apart) < 1e-5
        assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")


def test_networks_side_by_side(tmp_path: Path) -> None:
    from benchmarks import inference
    from benchmarks.summaries import RUNS

    assert not inference.main(["--peers", "--out", str(tmp_path), "--quick"])
    whole = json.loads((tmp_path / "peers.json").read_text())
    rows = {(row["network"], row["backend"]): row for row in whole["rows"]}
    ours, alone = "edge-kvasir", "efficientnet-lite0, alone"
    assert {name for name, _ in rows} >= {ours, alone}
    dice = json.loads((RUNS / ours / "metrics.json").read_text())["mdsc"]
    for backend in ("openvino", "onnx"):
        whole_row, encoder = rows[ours, backend], rows[alone, backend]
        assert whole_row["dice"] == dice and encoder["dice"] is None
        ratio = whole_row["one_core_cpu_ms"] / encoder["one_core_cpu_ms"]
        assert whole_row["times_encoder"] == pytest.approx(ratio, abs=0.02)
        assert whole_row["parameters"] > encoder["parameters"] == 2_939_120
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import peers

    made: list[str] = []
    now = iter(range(1000))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(peers.time, "process_time", lambda: 0.5)
    times = peers.in_turn({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, 20)
    assert made == ["a", "b"] * (len(made) // 2)
    assert set(times["a"]) == set(times["b"]) == {(1, 0.0)}
    assert 5 <= len(times["a"]) == len(made) // 2 - 1 <= 12, "the first round warms up"


def test_clock_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    now = iter(range(1000))  # every look at the clock is a second later
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(now))
    times = common.timed(lambda: calls.append(1), seconds=100, warmup=3)
    assert set(times) == {1} and len(calls) == len(times) + 3 and 30 <= len(times) <= 36
    assert len(common.timed(lambda: None, seconds=0.0)) == 2
    assert common.percentiles([0.001, 0.002, 0.003])["p50_ms"] == 2.0
    with pytest.raises(UserError, match="cannot be made a folder"):
        (tmp_path / "file").touch()
        common.write(tmp_path / "file" / "in", "x", {}, [])
