"""``benchmarks.pipeline`` measures both sides with one engine and writes what it found."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, fake: Any, tmp_path: Path) -> Any:
    """Run the benchmark with the fake engine, opened once: ``bench(*words)`` returns its file."""
    from benchmarks import pipeline
    from export import runtime

    opened: list[Any] = []

    def load(*arguments: Any) -> Any:
        opened.append(fake.FakeEngine(fake.slow(20)))
        return contextlib.closing(opened[-1])

    monkeypatch.setattr(runtime, "load_engine", load)

    def run(name: str, *words: str) -> list[dict[str, Any]]:
        assert pipeline.main(["--out", str(tmp_path), *words]) == 0
        assert len(opened) == 1
        return json.loads((tmp_path / f"{name}.json").read_text())["rows"]

    return run


def test_the_tables(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench("pipeline", "--quick")
    tables = {table: [r for r in rows if r["table"] == table] for table in ("runs", "own")}
    alone, *others = tables["runs"]
    assert alone["case"] == "engine alone" and 20 < alone["frame_ms"] < 40
    ways = ["loop", "runner", "runner", "loop", "runner"]
    assert [row["case"].split(",")[0] for row in others] == ways
    for row in others:
        assert row["own_share"] == pytest.approx(1 - alone["frame_ms"] / row["frame_ms"], abs=1e-3)
        assert row["latency_p50_ms"] >= 20
    loop, runner = (row for row in rows if row["table"] == "slow")
    assert loop["dropped"] == 0 and runner["dropped"] > 5
    # 20 frames of 100 ms that come every 40 ms: the last waits for 20 x 60 ms.
    assert loop["last_quarter_ms"] > 900
    assert runner["last_quarter_ms"] < runner["limit_ms"] + 40
    one, four = (row for row in rows if row["table"] == "streams")
    assert (one["frames"], four["frames"]) == (12, 48)
    assert "engine alone" in capsys.readouterr().out


def test_a_soak(tmp_path: Path) -> None:
    from benchmarks import soak

    assert soak.main(["--out", str(tmp_path), "--quick"]) == 0
    run, kill = json.loads((tmp_path / "soak.json").read_text())["rows"]
    assert run["in"] == run["processed"] + run["dropped"] + run["failed"] > 50
    assert run["accounts"] == kill["accounts"] == "exact" and run["pictures_watched"] > 5
    assert run["mb_late"] > 50 and run["descriptors_late"] > 5 < run["threads_late"]
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_a_soak_notices_what_a_killed_run_lost(tmp_path: Path) -> None:
    from benchmarks import soak

    def results(*ids: int) -> str:
        lines = [
            {"stream": 0, "id": i, "time_s": i, "monotonic_s": i, "outcome": "dropped"} for i in ids
        ]
        return "".join(json.dumps(line) + "\n" for line in lines)

    path = tmp_path / "results.jsonl"
    path.write_text(results(0, 2, 1, 3) + '{"stream": 0, "id"')
    assert soak.left_behind(tmp_path) == {"in": 4, "missing_at_end": 0, "accounts": "exact"}
    path.write_text(results(0, 2, 3, 4))
    assert "has no line" in soak.left_behind(tmp_path)["accounts"]
    path.write_text(results(0, 1, 1, 2))
    assert "has two lines" in soak.left_behind(tmp_path)["accounts"]
