"""The faults that a person can try: all met here; a runner that would not meet one is told on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deploy.chaos import command as chaos
from deploy.chaos.command import FAILED, MET, NOT_RUN, run_faults
from deploy.chaos.faults import WITHIN
from deploy.chaos.processes import APART
from medisseg.errors import UserError

FAKE_RUNNER = (sys.executable, str(Path(__file__).parents[1] / "fake.py"))


@pytest.fixture
def attempt(fake: Any) -> Any:
    def run(*names: str, limit_s: float = 300.0) -> dict[str, chaos.FaultOutcome]:
        engine = fake.FakeEngine(fake.slow(15))
        found = run_faults("a model", names, limit_s, lambda model: engine, FAKE_RUNNER)
        assert engine.closed and [outcome.fault for outcome in found] == list(names)
        return {outcome.fault: outcome for outcome in found}

    return run


def test_every_fault_is_met(attempt: Any) -> None:
    outcomes = attempt(*WITHIN, *APART)
    model = outcomes.pop("damaged model")  # the fake one has no file
    assert (model.result, "a model" in model.happened) == (NOT_RUN, True)
    wrong = {o.fault: o.happened for o in outcomes.values() if o.result != MET}
    assert not wrong
    assert "expected a video file" in outcomes["empty file"].happened
    assert "320 x 240 then 480 x 360" in outcomes["size changes"].happened
    assert "device lost (chaos)" in outcomes["engine raises"].happened
    assert "exit code 130" in outcomes["Ctrl-C while recording"].happened


def test_a_clock_that_jumps_is_met_on_a_busy_machine(fake: Any) -> None:
    """Its frames are dropped; it was called a failure where fewer than ten were recorded."""
    engine = fake.FakeEngine(fake.slow(300))
    (outcome,) = run_faults("a model", ["clock jumps"], 300.0, lambda model: engine, FAKE_RUNNER)
    assert outcome.result == MET, outcome.happened
    assert ", 1 parts, " in outcome.happened


def test_a_runner_that_queues_is_told_on(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.chaos import faults as chaos_faults
    from deploy.pipeline import pipeline

    monkeypatch.setattr(chaos_faults, "SLOW_MS", 90)
    monkeypatch.setattr(pipeline, "newest_of", lambda frame: None)
    outcome = attempt("slow model")["slow model"]
    assert outcome.result == FAILED and "nothing gave way" in outcome.happened


def test_what_does_not_end_is_told_on(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    end = threading.Event()
    monkeypatch.setitem(WITHIN, "empty file", lambda bench: str(end.wait(30)))
    monkeypatch.setattr(chaos, "LONGEST_S", 0.3)
    outcome = attempt("empty file")["empty file"]
    end.set()
    assert (outcome.result, outcome.happened) == (FAILED, "no end within 0.3 s")


def test_the_command(
    fake: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.runtime.load_engine", lambda model: fake.FakeEngine())
    words = ["--only", "empty file", "--only", "not a video"]
    assert chaos.main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["fault"], row["result"]) for row in rows] == [
        ("empty file", MET),
        ("not a video", MET),
    ]
    assert chaos.main([*words, "--limit-s", "-1"]) == 0  # nothing ran, and it says so
    assert "2 not run" in capsys.readouterr().out
    monkeypatch.setitem(WITHIN, "empty file", lambda bench: 1 / 0)
    assert chaos.main(words) == 1
    shown = capsys.readouterr().out
    assert "ZeroDivisionError" in shown and "1 as expected, 1 FAILED" in shown
    with pytest.raises(UserError, match="--only 'fire'; expected some of: empty file, not a"):
        chaos.main(["--only", "fire"])


def test_killed_before_anything_was_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unittest.mock import Mock

    from deploy.chaos import processes as chaos_processes

    line = {"outcome": "processed", "overlay": 0, "raw": 0, "time_s": 0.5}
    (tmp_path / "results.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
    monkeypatch.setattr(chaos_processes, "await_lines", lambda *arguments: None)
    monkeypatch.setattr(chaos_processes, "decoded", lambda paths: 0)
    found = chaos_processes.killed(Mock(), Mock(), tmp_path)
    assert found == "overlay: 0 frames play, raw: 0 frames play; the last result is of 0.5 s"


def test_a_slow_machine_is_waited_for_and_a_stuck_one_is_not() -> None:
    from deploy.chaos.bench import Failed, StallTimeout

    moved = [0]
    timeout = StallTimeout(lambda: moved[0], "no end", still_s=0.2)
    for _ in range(6):  # three times as long as nothing may move
        time.sleep(0.1)
        moved[0] += 1
        timeout.check()
    time.sleep(0.25)
    with pytest.raises(Failed, match="no end: nothing moved for 0.2 s"):
        timeout.check()


def test_the_work_of_a_process_is_its_progress(tmp_path: Path) -> None:
    import subprocess

    from deploy.chaos.processes import work_of

    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"], text=True)
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True)
    try:
        time.sleep(1)
        before = [work_of(process, tmp_path) for process in (busy, idle)]
        time.sleep(1)
        after = [work_of(process, tmp_path) for process in (busy, idle)]
        assert before[0] != after[0]
        (tmp_path / "results.jsonl").write_text("line")
        assert work_of(idle, tmp_path) != after[1]
    finally:
        for process in (busy, idle):
            process.kill()
            process.wait()
