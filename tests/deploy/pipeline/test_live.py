"""A live picture: the newest frame, bounded latency, settings obeyed, states that are true."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.pipeline.live import Controls, Live
from deploy.pipeline.state import StreamState
from deploy.status import AI_OFF, LIVE, OFFLINE, STALE, Settings, StreamStatus


@pytest.mark.parametrize("ms", [60, 300])
def test_a_slow_model_costs_frames_not_latency(
    play: Any, fake: Any, numbered: Path, ms: int
) -> None:
    run = play(numbered, "--realtime", engine=lambda: fake.FakeEngine(fake.slow(ms)))
    run.check_accounts()
    report = run.report
    assert report["frames"]["dropped"] > 20
    # Two frame intervals and one inference; and the steps around it on a busy machine.
    shown = [line["latency_ms"] for line in run.processed()]
    assert np.median(shown) < 2 * 40 + ms
    # It does not grow: if frames queued, the last would wait for more than a second.
    assert np.median(shown[-3:]) < np.median(shown[:3]) + 300
    dropped = [line for line in run.lines if line["outcome"] == "dropped"]
    assert {line["error"] for line in dropped} == {"newer frame"}


def test_a_file_keeps_every_frame_however_slow_the_model(
    play: Any, fake: Any, numbered: Path
) -> None:
    run = play(numbered, "--frames", 20, engine=lambda: fake.FakeEngine(fake.slow(60)))
    assert run.report["frames"] == {"in": 20, "processed": 20, "dropped": 0, "failed": 0}
    # Three frames are on their way at most, so latency is three intervals (five with full queues)
    # and the engine never waits.
    assert run.report["latency_ms"]["p50"] < 3.5 * 60
    assert run.report["fps"] > 0.8 * 1000 / 60


def test_a_slow_reader_of_the_pictures_slows_nothing(fake: Any, numbered: Path) -> None:
    from deploy import options, runner

    seen: list[int] = []

    def watch(*arguments: Any) -> Any:
        pipeline = runner.Pipeline(*arguments)

        def body() -> None:
            sequence = 0
            while (view := pipeline.live.wait(0, sequence, 5.0)) is not None:
                sequence = view.sequence
                seen.append(view.frame_id)
                time.sleep(0.3)

        threading.Thread(target=body, daemon=True).start()
        return pipeline

    words = [str(numbered), "--model", "m", "--realtime", "--no-quality", "--window", "off"]
    began = time.monotonic()
    assert runner.run(options.parse(words), fake.FakeEngine, watch) == 0
    assert time.monotonic() - began < 8
    assert 5 < len(seen) < 30 and seen == sorted(seen)


def test_a_budget_drops_late_frames_and_warns(play: Any, fake: Any, numbered: Path) -> None:
    calls = iter(range(1000))

    def uneven(batch: np.ndarray) -> None:
        time.sleep(0.2 if next(calls) % 10 == 9 else 0.001)

    run = play(numbered, "--realtime", "--budget-ms", 60, engine=lambda: fake.FakeEngine(uneven))
    run.check_accounts()
    stream = run.report["streams"][0]
    assert stream["over_budget"] >= 3
    assert stream["warnings"]["frames over the latency budget"] == stream["over_budget"]


def test_settings_are_obeyed_from_the_next_frame_on(
    fake: Any, lab: Any, numbered: Path, tmp_path: Path
) -> None:
    from deploy import options, runner

    def turn(*arguments: Any) -> Any:
        pipeline = runner.Pipeline(*arguments)

        def body() -> None:
            while pipeline.live.status(0).frames.get("processed", 0) < 20:
                time.sleep(0.01)
            pipeline.live.controls.set(ai=False)
            while pipeline.live.status(0).frames["processed"] < 50:
                time.sleep(0.01)
            pipeline.live.controls.set(ai=True, threshold=0.9, hold_off=0, opacity=1.0)

        threading.Thread(target=body, daemon=True).start()
        return pipeline

    words = [str(numbered), "--model", "m", "--realtime", "--no-quality", "--window", "off"]
    chosen = options.parse([*words, "--out", str(tmp_path / "run")])
    assert runner.run(chosen, fake.FakeEngine, turn) == 0
    result = lab.Run(tmp_path / "run")
    result.check_accounts()
    lines = result.processed()
    off = [line for line in lines if not line["settings"]["ai"]]
    assert 20 <= len(off) <= 45
    found = {(line["state"], line["off"], line["rle"]) for line in off}
    assert found == {(AI_OFF, "turned off", None)}
    last = lines[-1]
    assert last["state"] == LIVE and last["settings"]["threshold"] == 0.9 and last["tracks"]
    x, y = lab.polyp_corner(last["id"])
    middle = result.video()[-1][y + 15 : y + 30, x + 15 : x + 40].reshape(-1, 3).mean(axis=0)
    from medisseg.colors import LESION

    assert np.abs(middle - LESION).max() < 12  # opacity 1: the colour of the overlay alone


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0}, {"threshold": 1.0}, {"opacity": 1.1}, {"hold_off": 7}, {"hold_off": 1.0},
        {"ai": 1}, {"treshold": 0.5}, {"threshold": "0.5"}, {"threshold": float("nan")},
    ],
)  # fmt: skip
def test_controls_refuse_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    controls = Controls()
    with pytest.raises(ValueError):
        controls.set(opacity=0.9, **wrong) if "opacity" not in wrong else controls.set(**wrong)
    assert controls.get() == Settings()


def test_watchers_wait_for_what_is_newer() -> None:
    live = Live(["a", "b"])
    picture = np.zeros((4, 4, 3), np.uint8)
    live.publish(picture, 7, StreamStatus(1, "b", LIVE))
    view = live.wait(1, 0, 0.0)
    assert view is not None and (view.sequence, view.frame_id, view.status.state) == (1, 7, LIVE)
    assert live.latest(0) is None and live.wait(1, 1, 0.05) is None
    threading.Timer(0.05, lambda: live.publish(picture, 8, StreamStatus(1, "b", LIVE))).start()
    later = live.wait(1, 1, 5.0)
    assert later is not None and later.frame_id == 8
    threading.Timer(0.05, live.close).start()
    began = time.monotonic()
    assert live.wait(1, 2, 5.0) is None and time.monotonic() - began < 2
    assert live.closed and live.latest(1) is later


def test_states() -> None:
    state = StreamState(live=True, stale_s=0.1, began=time.monotonic())
    assert state.now()[:2] == (OFFLINE, "connecting")
    state.link(True, "")
    assert state.now()[:2] == (OFFLINE, "waiting for the first frame")
    state.arrival(time.monotonic())
    assert state.now()[0] == LIVE
    state.ai("engine restarting")
    assert state.now()[:2] == (AI_OFF, "engine restarting")
    time.sleep(0.15)
    now, _, age, change = state.now()
    assert now == STALE and age is not None and age > 0.1
    assert change is not None and (change["from"], change["to"]) == (AI_OFF, STALE)
    state.link(False, "timed out")
    assert state.now()[:2] == (OFFLINE, "timed out")
    state.link(True, "")
    # Connected again, but the last picture is still the old one.
    assert state.now()[0] == OFFLINE
    assert [change["to"] for change in state.changes] == [LIVE, AI_OFF, STALE, OFFLINE]


def test_a_file_that_waits_for_its_engine_is_not_stale() -> None:
    state = StreamState(live=False, stale_s=0.01, began=time.monotonic())
    state.link(True, "")
    state.arrival(time.monotonic())
    time.sleep(0.05)
    assert state.now()[0] == LIVE
