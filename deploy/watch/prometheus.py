"""Counters, states and times of all streams as text for Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploy.pipeline.state import OUTCOMES
from deploy.pipeline.timing import Timing
from deploy.status import STATES, StreamStatus, fault_of

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def prometheus_text(statuses: list[StreamStatus], timings: list[Timing]) -> bytes:
    """Return the text exposition of all streams for Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Frames(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _families(statuses, timings)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Frames())
    return generate_latest(registry)


def _families(statuses: list[StreamStatus], timings: list[Timing]) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

    frames = CounterMetricFamily("medisseg_frames", "Frames", labels=["stream", "outcome"])
    state = GaugeMetricFamily("medisseg_state", "1 for the state", labels=["stream", "state"])
    latency = SummaryMetricFamily(
        "medisseg_stage_seconds",
        "Time in a stage; stage all: arrival to shown",
        labels=["stream", "stage"],
    )
    gauges = {
        "fps": "Shown frames a second",
        "frame_age_seconds": "Seconds since the newest frame",
        "fault": "1 where frames are not segmented by a fault; 0 where a person turned it off",
        "alarm": "Whether a polyp is shown",
        "recording": "Whether both videos are written",
        "in_flight": "Frames in the pipeline",
    }
    families = {
        name: GaugeMetricFamily(f"medisseg_{name}", text, labels=["stream"])
        for name, text in gauges.items()
    }
    for status, timing in zip(statuses, timings, strict=True):
        stream = str(status.stream)
        for outcome in OUTCOMES:
            frames.add_metric([stream, outcome], status.frames.get(outcome, 0))
        for name in STATES:
            state.add_metric([stream, name], float(status.state == name))
        for stage, histogram in {**timing.stages, "all": timing.latency}.items():
            latency.add_metric([stream, stage], histogram.count, histogram.total / 1e3)
        values = (
            status.fps,
            status.age_s if status.age_s is not None else math.nan,
            float(bool(fault_of(status))),
            float(status.alarm),
            float(status.recording),
            status.frames.get("in_flight", 0),
        )
        for family, value in zip(families.values(), values, strict=True):
            family.add_metric([stream], value)
    yield from (frames, state, latency, *families.values())
