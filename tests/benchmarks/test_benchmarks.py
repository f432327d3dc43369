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

NAMES = (
    "kernels",
    "frames",
    "frames_threads",
    "network",
    "inference",
    "costs",
)  # pipeline: tests/deploy


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


def test_costs_of_a_chosen_preset(tmp_path: Path) -> None:
    from benchmarks import costs

    chosen = ["--preset", "unet", "--count-only", "--size", "64x64", "--out", str(tmp_path)]
    assert not costs.main(chosen)
    (row,) = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert row["network"] == "unet" and row["trained_parameters"] == 31_113_217
    assert row["p50_ms"] is None


def test_networks_side_by_side(tmp_path: Path) -> None:
    from benchmarks import inference
    from benchmarks.summaries import RUNS
    from export import build_engine

    bundle = tmp_path / "built"
    built = ["edge-kvasir", "--backend", "onnx", "--precision", "fp32", "--size", "64x64"]
    assert not build_engine.main([*built, "--images", "2", "--out", str(bundle)])
    chosen = ["--peers", "--out", str(tmp_path), "--quick", "--bundle", str(bundle)]
    assert not inference.main(chosen)
    whole = json.loads((tmp_path / "peers.json").read_text())
    rows = {(row["network"], row["backend"]): row for row in whole["rows"]}
    ours, alone = "edge-kvasir", "efficientnet-lite0, alone"
    assert {name for name, _ in rows} >= {ours, alone}
    dice = json.loads((RUNS / ours / "metrics.json").read_text())["mdsc"]
    assert rows["built", "onnx"]["one_core_ms"] > 0 and "dice" not in rows["built", "onnx"]
    for backend in ("openvino", "onnx"):
        whole_row, encoder = rows[ours, backend], rows[alone, backend]
        assert whole_row["dice"] == dice and encoder["dice"] is None
        ratio = whole_row["one_core_ms"] / encoder["one_core_ms"]
        assert whole_row["times_encoder"] == pytest.approx(ratio, abs=0.02)
        assert whole_row["parameters"] > encoder["parameters"] == 2_939_120
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"built takes 64x64, the others 256x256; give --size"):
        inference.main([*chosen[:3], "--bundle", str(bundle)])
    with pytest.raises(UserError, match="two rows would be called built"):
        inference.main([*chosen, str(bundle)])
    with pytest.raises(UserError, match="--bundle goes with --peers"):
        inference.main(["--bundle", str(bundle), "--out", str(tmp_path)])


def test_both_packaged_networks_stand_at_their_dice() -> None:
    from benchmarks import peers

    found = {name: peers.known_dice(name) for name in peers.NETWORKS}
    assert found == {
        "edge-kvasir": pytest.approx(0.8806, abs=5e-5),
        "edge-polyp": pytest.approx(0.8860, abs=5e-5),
        "unet": None,
    }


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import peers

    made: list[str] = []
    now = iter(range(1000))
    monkeypatch.setattr(peers.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(peers.time, "process_time", lambda: 0.5)
    pauses: list[float] = []
    monkeypatch.setattr(peers.time, "sleep", pauses.append)
    times = peers.in_turn({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, 20)
    turn = peers.CALLS + 1
    rounds = len(pauses) // 2
    assert made == ["a", "b"] + (["a"] * turn + ["b"] * turn) * rounds
    assert set(times["a"]) == set(times["b"]) == {(1, 0.0)}
    assert rounds >= 5 and min(pauses) >= 0.08, "an engine's threads look for work for 0.06 s"
    assert len(times["a"]) == peers.CALLS * rounds, "the first call of a turn wakes the threads"


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


def test_pictures_on_screens(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    from benchmarks import screens

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    shade = cv2.resize(random.random((5, 5, 1)), (200, 160), interpolation=cv2.INTER_CUBIC)
    image = np.array([70, 95, 190]) * (0.45 + 0.5 * shade[..., None])  # BGR
    image += 30 * (random.random((160, 200, 1)) - 0.5)
    mask = cv2.circle(np.zeros((160, 200), np.uint8), (90, 80), 30, 255, -1)
    cv2.imwrite(str(tmp_path / "data" / "images" / "0.png"), image.clip(0, 255).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "data" / "masks" / "0.png"), mask)
    words = ["--data", str(tmp_path / "data"), "--split", "all", "--model", "edge-kvasir"]
    assert not screens.main([*words, "--out", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "screens.json").read_text())["rows"]
    assert [row["picture"] for row in rows] == ["full", "auto"] * 6
    assert [row["left_whole"] for row in rows] == [1, 1, *[1, 0] * 5]
    found = [row["overlap"] for row in rows if row["picture"] == "auto"]
    assert min(found) > 0.95 and max(row["overlap"] for row in rows[2::2]) <= 0.7501
    assert all(row["against_bare"] == pytest.approx(row["dice"] - rows[0]["dice"]) for row in rows)
