"""Counting and timing, against numpy and Prometheus' own parser; and the queue between stages."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from deploy.pipeline.channel import Aborted, Channel, ThreadGroup
from deploy.pipeline.state import FrameCounter
from deploy.pipeline.timing import Histogram, Timing
from deploy.status import StreamStatus
from deploy.watch.prometheus import prometheus_text


@pytest.mark.parametrize("shape", ["log-normal", "two peaks", "constant"])
def test_percentiles_against_numpy(shape: str) -> None:
    draw = np.random.default_rng(1)
    times = {
        "log-normal": draw.lognormal(3, 1.5, 20_000),
        "two peaks": np.concatenate([draw.normal(10, 0.5, 9_900), draw.normal(4000, 9, 100)]),
        "constant": np.full(1000, 12.5),
    }[shape]
    histogram = Histogram()
    for value in times:
        histogram.add(float(value))
    summary = histogram.summary()
    for name, percent in {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99.9": 99.9}.items():
        exact = np.percentile(times, percent, method="inverted_cdf")
        assert summary[name] == pytest.approx(exact, rel=0.0051)
    assert summary["max"] == pytest.approx(times.max(), abs=1e-3)
    assert summary["min"] == pytest.approx(times.min(), abs=1e-3)
    assert summary["mean"] == pytest.approx(times.mean(), abs=1e-3)
    edges, counts = histogram.edges()
    assert counts.sum() == len(times)
    assert edges[0] <= times.min() and edges[-1] >= times.max() * 0.999


def test_nothing_is_clipped() -> None:
    histogram = Histogram()
    for value in (1e-9, 1e-3, 1e7):
        histogram.add(value)
    assert histogram.most == 1e7 and histogram.percentile(100) == pytest.approx(1e7, rel=0.006)
    merged = Histogram()
    merged.merge(histogram)
    merged.merge(histogram)
    assert merged.count == 6 and merged.most == 1e7 and merged.total == 2 * histogram.total


def test_warm_up_and_the_first_frame_after_a_pause_stand_apart() -> None:
    timing = Timing()
    for index in range(20):
        timing.shown(100.0 if index < 5 else 10.0, arrived=index * 0.04)
    timing.shown(70.0, arrived=30.0)
    timing.shown(11.0, arrived=30.04)
    assert (timing.warm_up.count, timing.warm_up.most) == (5, 100.0)
    assert (timing.after_idle.count, timing.after_idle.most) == (1, 70.0)
    assert (timing.latency.count, timing.latency.most) == (16, 11.0)


def test_a_slow_machine_does_not_pause() -> None:
    timing = Timing()
    for index in range(20):
        timing.shown(6000.0, arrived=index * 2.0)
    assert timing.after_idle.count == 0 and timing.latency.count == 15


def test_the_ledger_balances_at_every_moment() -> None:
    counter = FrameCounter()
    done = threading.Event()
    wrong: list[dict[str, int]] = []

    def look() -> None:
        while not done.is_set():
            frames = counter.snapshot()
            if frames["in"] != frames["processed"] + frames["dropped"] + frames["failed"]:
                wrong.append(frames)
            if frames["in_flight"] < 0:
                wrong.append(frames)

    watcher = threading.Thread(target=look)
    watcher.start()

    def work(outcome: str) -> None:
        for _ in range(2000):
            counter.take()
            counter.finish(outcome)

    workers = [threading.Thread(target=work, args=(o,)) for o in ("processed", "dropped", "failed")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    done.set()
    watcher.join()
    assert not wrong
    expected = {"in": 6000, "processed": 2000, "dropped": 2000, "failed": 2000, "in_flight": 0}
    assert counter.snapshot() == expected


def test_metrics_are_read_back_by_prometheus() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    timing = Timing()
    timing.stages["infer"].add(20.0)
    timing.stages["infer"].add(30.0)
    frames = {"in": 9, "processed": 7, "dropped": 2, "failed": 0, "in_flight": 1}
    status = StreamStatus(0, "x", "STALE", age_s=2.5, frames=frames, fps=24.0, alarm=True)
    text = prometheus_text([status], [timing]).decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    stream = ("stream", "0")
    assert samples["medisseg_frames_total", ("outcome", "dropped"), stream] == 2
    assert samples["medisseg_state", ("state", "STALE"), stream] == 1
    assert samples["medisseg_state", ("state", "LIVE"), stream] == 0
    assert samples["medisseg_stage_seconds_sum", ("stage", "infer"), stream] == 0.05
    assert samples["medisseg_stage_seconds_count", ("stage", "infer"), stream] == 2
    assert samples["medisseg_frame_age_seconds", stream] == 2.5
    assert samples["medisseg_alarm", stream] == 1


def test_a_run_keeps_its_metrics_file(play: Any, numbered: Any, tmp_path: Any) -> None:
    path = tmp_path / "medisseg.prom"
    play(numbered, "--frames", 10, "--metrics", path)
    assert 'medisseg_frames_total{outcome="processed",stream="0"} 10.0' in path.read_text()


def test_a_bounded_channel_keeps_order_and_makes_its_producer_wait() -> None:
    channel: Channel[int] = Channel(capacity=2)
    progress: list[int] = []

    def produce() -> None:
        for number in range(6):
            channel.put(number)
            progress.append(number)
        channel.close()

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.1)
    assert progress == [0, 1]
    taken = []
    while (items := channel.get(most=4)) is not None:
        taken += items
    producer.join()
    assert taken == [0, 1, 2, 3, 4, 5]


def test_the_newest_of_each_key_displaces_the_older() -> None:
    dropped: list[tuple[str, int]] = []
    channel: Channel[tuple[str, int]] = Channel(newest_of=lambda i: i[0], on_drop=dropped.append)
    for item in (("a", 1), ("b", 1), ("a", 2), ("a", 3)):
        channel.put(item)
    assert dropped == [("a", 1), ("a", 2)]
    assert channel.get(most=4) == [("a", 3), ("b", 1)]
    channel.close()
    assert channel.get() is None


def test_the_first_error_of_a_crew_stops_all_and_is_raised() -> None:
    threads = ThreadGroup()
    channel = threads.watch(Channel(capacity=1))

    def fail() -> None:
        time.sleep(0.05)
        raise KeyError("the cause")

    threads.start("waits for ever", lambda: channel.get())
    threads.start("fails", fail)
    with pytest.raises(KeyError, match="the cause"):
        threads.join(5)
    assert threads.alive() == []
    with pytest.raises(Aborted):
        channel.put(1)
