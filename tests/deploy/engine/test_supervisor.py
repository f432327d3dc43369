"""What an engine may do wrong, and what the video does meanwhile: go on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.engine import supervisor as supervisor_module
from deploy.engine.supervisor import EngineOff, EngineSupervisor
from medisseg.errors import UserError

BATCH = np.zeros((1, 3, 128, 128), np.float32)


class Faulty:
    """A ``before`` for the fake engine: does what ``faults`` says at the calls it names."""

    def __init__(self, faults: dict[int, Any]) -> None:
        self.faults, self.calls = faults, -1  # the warm-up is call 0

    def __call__(self, batch: np.ndarray) -> np.ndarray | None:
        self.calls += 1
        fault = self.faults.get(self.calls)
        if isinstance(fault, Exception):
            raise fault
        if callable(fault):
            return fault(batch)
        return None


FAULTS = {
    "raises": RuntimeError("out of memory"),
    "not a number": lambda batch: np.full((len(batch), 1, 128, 128), np.nan, np.float32),
    "infinite": lambda batch: np.full((len(batch), 1, 128, 128), np.inf, np.float32),
    "wrong shape": lambda batch: np.zeros((len(batch), 2, 128, 128), np.float32),
    "too few": lambda batch: np.zeros((0, 1, 128, 128), np.float32),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_one_answer_and_a_restart(fake: Any, name: str) -> None:
    engines = [fake.FakeEngine(Faulty({2: FAULTS[name]})), fake.FakeEngine()]
    opened = iter(engines)
    supervisor = EngineSupervisor(lambda: next(opened))
    assert supervisor.infer(BATCH).shape == (1, 1, 128, 128)
    with pytest.raises(EngineOff, match="restarting"):
        supervisor.infer(BATCH)
    assert supervisor.wait()
    assert supervisor.infer(BATCH).shape == (1, 1, 128, 128)
    assert supervisor.restarts == 1 and engines[0].closed and not engines[1].closed
    supervisor.close()
    assert engines[1].closed


def test_an_engine_that_cannot_answer_at_all_is_one_line(fake: Any) -> None:
    wrong = Faulty({0: ValueError("Failed to allocate\n295 GB")})
    with pytest.raises(UserError, match=r"cannot answer \(Failed to allocate 295 GB\); take"):
        EngineSupervisor(lambda: fake.FakeEngine(wrong))


def test_one_thread_opens_the_engine_and_asks_it(fake: Any) -> None:
    threads = []

    def note(batch: np.ndarray) -> None:
        threads.append(threading.current_thread())

    def open_engine() -> Any:
        threads.append(threading.current_thread())
        return fake.FakeEngine(note)

    supervisor = EngineSupervisor(open_engine)
    supervisor.infer(BATCH)
    supervisor.close()
    assert len(threads) == 3 and len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


def test_at_most_five_restarts_a_minute(fake: Any) -> None:
    opened = []

    def broken() -> Any:
        opened.append(time.monotonic())
        return fake.FakeEngine(Faulty({1: RuntimeError("broken")}))

    supervisor = EngineSupervisor(broken)
    until = time.monotonic() + 10
    while not supervisor.reason.startswith("engine off") and time.monotonic() < until:
        with pytest.raises(EngineOff):
            supervisor.infer(BATCH)
        time.sleep(0.01)
    assert supervisor.restarts == supervisor_module.RESTARTS_PER_MINUTE == len(opened) - 1
    assert "5 restarts in a minute (RuntimeError: broken)" in supervisor.reason
    assert not supervisor.wait()  # a file does not wait for an engine that was given up
    supervisor.close()


def test_a_server_that_is_away_is_asked_until_it_is_back(fake: Any) -> None:
    opened: list[float] = []

    def open_engine() -> Any:
        opened.append(time.monotonic())
        if 1 < len(opened) < 9:  # more often than an engine is restarted in a minute
            raise ConnectionRefusedError("grpc://rack:8001/polyps cannot be reached now")
        return fake.FakeEngine(Faulty({1: ConnectionResetError("gone")} if len(opened) < 2 else {}))

    supervisor = EngineSupervisor(open_engine)
    supervisor._closing = Hasty()
    with pytest.raises(EngineOff, match="gone"):
        supervisor.infer(BATCH)
    assert supervisor.wait()  # a file waits for it, too
    assert supervisor.infer(BATCH).max() == -6
    assert len(opened) == 9 and supervisor.restarts == 1 and not supervisor.reason
    supervisor.close()


class Hasty(threading.Event):
    """An event whose waiting takes a hundredth of the time."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(None if timeout is None else timeout / 100)


def test_another_network_is_refused(fake: Any) -> None:
    class Other(fake.FakeEngine):
        classes = 3

    engines = iter([fake.FakeEngine(Faulty({1: RuntimeError("updated")})), Other()])
    supervisor = EngineSupervisor(lambda: next(engines))
    with pytest.raises(EngineOff, match="updated"):
        supervisor.infer(BATCH)
    while "another network than before" not in supervisor.reason:
        time.sleep(0.01)
    with pytest.raises(EngineOff, match="another network than before; start the run again"):
        supervisor.infer(BATCH)
    supervisor.close()


def test_a_late_answer_is_thrown_away(fake: Any) -> None:
    release = threading.Event()

    def late(batch: np.ndarray) -> np.ndarray:
        release.wait(5)
        return np.full((len(batch), 1, 128, 128), 99, np.float32)

    supervisor = EngineSupervisor(lambda: fake.FakeEngine(Faulty({1: late})), too_slow_s=0.05)
    with pytest.raises(EngineOff, match="too slow: no answer in 50 ms"):
        supervisor.infer(BATCH)
    with pytest.raises(EngineOff, match="too slow"):
        supervisor.infer(BATCH)
    release.set()
    time.sleep(0.1)
    assert supervisor.infer(BATCH).max() == -6  # the answer to this batch, not the 99 of the other
    assert supervisor.restarts == 0
    supervisor.close()


def test_a_hung_engine_is_replaced(fake: Any) -> None:
    release = threading.Event()
    engines = iter([fake.FakeEngine(Faulty({1: lambda b: release.wait(20)})), fake.FakeEngine()])
    supervisor = EngineSupervisor(lambda: next(engines), too_slow_s=0.05, hang_s=0.3)
    with pytest.raises(EngineOff, match="too slow"):
        supervisor.infer(BATCH)
    time.sleep(0.4)
    with pytest.raises(EngineOff, match=r"no answer for 0\.3 s"):
        supervisor.infer(BATCH)
    assert supervisor.wait()
    assert supervisor.infer(BATCH).max() == -6
    release.set()
    supervisor.close()


def test_a_file_waits_for_the_restart(play: Any, fake: Any, numbered: Path) -> None:
    engines = iter([fake.FakeEngine(Faulty({31: RuntimeError("lost the GPU")})), fake.FakeEngine()])
    run = play(numbered, engine=lambda: next(engines))
    run.check_accounts()
    assert run.report["frames"]["processed"] == 100 and run.report["engine_restarts"] == 1


def test_live_video_goes_on_without_ai(play: Any, lab: Any, fake: Any, numbered: Path) -> None:
    def slow_to_open() -> Any:
        if opened:
            time.sleep(0.6)
        opened.append(1)
        return fake.FakeEngine(Faulty({20: RuntimeError("lost the GPU")}))

    opened: list[int] = []
    run = play(numbered, "--realtime", "--frames", 80, engine=slow_to_open)
    run.check_accounts()
    report = run.report
    assert report["frames"]["failed"] >= 8 and report["frames"]["processed"] > 30
    off = [line for line in run.lines if line["outcome"] == "failed"]
    assert {line["state"] for line in off} == {"AI-OFF"}
    assert all(line["rle"] is None and line["off"] for line in off)
    changes = [(change["from"], change["to"]) for change in report["state_changes"]]
    assert ("LIVE", "AI-OFF") in changes and ("AI-OFF", "LIVE") in changes
    # Frames without an answer are shown and recorded all the same, in their order.
    shown = [lab.read_number(picture) for picture in run.video()]
    assert shown == [line["id"] for line in run.lines if line["outcome"] != "dropped"]


def test_an_engine_that_does_not_open_ends_the_run_before_it_begins(
    fake: Any, numbered: Path, tmp_path: Path
) -> None:
    from deploy import options, runner

    def refuse() -> Any:
        raise UserError("the bundle was built for another GPU; build it again: ...")

    chosen = options.parse([str(numbered), "--model", "m", "--out", str(tmp_path / "run")])
    with pytest.raises(UserError, match="another GPU"):
        runner.run(chosen, refuse)
    assert not (tmp_path / "run").exists()


class Sticky(RuntimeError):
    """What PyTorch raises for an error of CUDA."""


def test_a_process_that_lost_its_gpu_is_said_to_be_of_no_use(
    fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal address every call of CUDA fails until the process ends."""
    words = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    opened = []

    def open_engine() -> Any:
        opened.append(fake.FakeEngine(Faulty({1: Sticky(words)})))
        return opened[-1]

    def gone(_: Any = None) -> None:
        raise torch.AcceleratorError(words)

    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    supervisor = EngineSupervisor(open_engine)
    supervisor.device = "cuda:0"
    with pytest.raises(EngineOff, match="restarting|GPU is lost"):
        supervisor.infer(BATCH)
    assert not supervisor.wait()
    supervisor_ended(supervisor)
    assert supervisor.lost.endswith("(CUDA error: an illegal memory access was encountered)")
    with pytest.raises(EngineOff, match="GPU is lost"):
        supervisor.infer(BATCH)
    assert len(opened) == 1 and supervisor.restarts == 0
    supervisor.close()


def supervisor_ended(supervisor: EngineSupervisor) -> None:
    deadline = time.monotonic() + 10
    while not supervisor.lost and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_gpu_is_warmed_for_every_number_of_frames_it_will_be_asked_about(fake: Any) -> None:
    engine = fake.FakeEngine()
    engine.device, engine.max_batch = "cuda:0", 3
    EngineSupervisor(lambda: engine, streams=4).close()
    assert engine.batches == [1, 2, 3]
    plain = fake.FakeEngine()
    EngineSupervisor(lambda: plain, streams=4).close()
    assert plain.batches == [1]
