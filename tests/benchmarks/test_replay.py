"""How a GPU's kernels are timed, over a stand-in for the GPU, and how two runs are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.replay import GRAPHED, MOST_COPIES, WARM, copies_for, replayed
from medisseg.errors import UserError

CALL = 1e-4  # seconds of the stand-in's calls, once warm


class Counting:
    """A GPU whose calls take CALL seconds, and twice that in the first 0.1 seconds."""

    l2_bytes = 50 << 20

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.capturing = False
        self.busy = 0.0

    def capture(self, calls: Callable[[], Any]) -> Callable[[], Any]:
        calls()  # outside the graph
        self.capturing = True
        calls()
        self.capturing = False
        return lambda: None

    def launch(self, copy: int) -> None:
        if self.capturing:
            self.captured.append(copy)

    def seconds(self, replay: Callable[[], Any]) -> float:
        replay()
        found = len(self.captured) * CALL * (2 if self.busy < 0.1 else 1)
        self.busy += found
        return found


@pytest.mark.parametrize("copies", [1, 3, 40])
def test_calls_take_turns_in_one_graph_that_is_warm(copies: int) -> None:
    gpu, made = Counting(), []

    def prepare(copy: int) -> Callable[[], None]:
        made.append(copy)
        return lambda: gpu.launch(copy)

    times = replayed(prepare, copies, gpu, seconds=0.5)
    assert made == list(range(copies)), "each copy is made once"
    assert gpu.captured[:copies] == list(range(copies)) and len(gpu.captured) >= GRAPHED
    assert {gpu.captured.count(copy) for copy in range(copies)} == {len(gpu.captured) // copies}
    assert times == pytest.approx([CALL] * len(times)), "cold replays are not counted"
    spent = sum(times) * len(gpu.captured)
    assert 0.5 <= spent < 0.5 + 6 * len(gpu.captured) * CALL and gpu.busy >= spent + WARM


def test_copies_exceed_the_cache() -> None:
    assert copies_for(1 << 20, 50 << 20) == 150
    assert copies_for(1 << 30, 50 << 20) == 1
    assert copies_for(4, 50 << 20) == MOST_COPIES


def results(p50: float, provider: str = "ours", **machine: Any) -> dict[str, Any]:
    row = {"op": "telu", "dtype": "float16", "shape": "8", "mode": "forward", "provider": provider}
    rows = [row | {"p50_ms": p50, "p95_ms": 1.02 * p50}, row | {"failed": "no", "mode": "backward"}]
    return {"machine": {"device": "H200", **machine}, "rows": rows}


def test_a_slower_run_is_noticed_and_noise_is_not(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps(results(1.0)))
    for now, provider, code in ((1.04, "ours", 0), (1.2, "ours", 1), (0.7, "ours", 0)):
        new = tmp_path / "new.json"
        new.write_text(json.dumps(results(now, provider)))
        assert compare.main([str(new), "--baseline", str(old)]) == code
    assert compare.main([str(new), "--baseline", str(old), "--limit", "50"]) == 0
    verdicts = [compare.compared(results(1.0), results(now), 5)[0]["verdict"] for now in (0.7, 1.2)]
    assert verdicts == ["faster", "slower"]
    wide = results(1.0)
    wide["rows"][0]["p95_ms"] = 1.5
    assert compare.compared(wide, results(1.3), 5)[0]["verdict"] == "same"


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'H200'.*'H100'"):
        compare.compared(results(1.0), results(1.0, device="H100"), 5)
    with pytest.raises(UserError, match="timing None"):
        compare.compared(results(1.0), results(1.0, timing="graph"), 5)
    with pytest.raises(UserError, match="no row in common"):
        compare.compared(results(1.0), results(1.0, provider="eager"), 5)
    with pytest.raises(UserError, match="no baseline of 'H200'"):
        compare.baseline_of(results(1.0), tmp_path)
    for text in ("", "[]", "{}", '{"rows": 3, "machine": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="no results file"):
            compare.read(tmp_path / "bad.json")
    (tmp_path / "cpu").mkdir()
    known = tmp_path / "cpu" / "kernels.json"
    known.write_text(json.dumps(results(1.0)))
    assert compare.baseline_of(results(2.0), tmp_path) == known
