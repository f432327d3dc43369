"""A frame's way, from the source to the screen and the disk.

    decode -> preprocess -> infer -> postprocess -> temporal -> draw -> record

Each stage is a method (the last two are those of :class:`Outputs`) that fills in its part of a
:class:`Frame`, in a thread of its own behind a bounded queue (:class:`Channel`). A mask is only
ever drawn on its own frame because it never leaves it. Up to the engine, live streams keep their
newest frame only: what is displaced is counted and written down as dropped. Of a file only a few
frames are on their way at once: queues that fill up would add their length to the latency and
nothing to the pace.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from deploy.analysis.quality import GOOD, QualityGate
from deploy.analysis.regions import findings, foreground, shown_part
from deploy.engine.device import OnCPU, choose
from deploy.engine.supervisor import EngineGuard, EngineOff
from deploy.options import Options
from deploy.outputs.drawing import draw_mask, draw_tag
from deploy.outputs.pixels import to_rgb
from deploy.outputs.results import Results
from deploy.pipeline.accounting import END, Books
from deploy.pipeline.channel import Channel, Crew
from deploy.pipeline.live import Live
from deploy.pipeline.stages import Outputs
from deploy.pipeline.stream import Frame, Stream, brief
from deploy.sources.source import Arrival

log = logging.getLogger(__name__)
# Frames: the first second of a network stream comes at once, before the encoder is open. A disk
# that stalls longer costs raw frames of a live source, counted.
RAW_QUEUE = 32


class Pipeline:
    """Runs streams through an engine until they end or :meth:`stop` is called.

    Args:
        streams: What to read, with their recorders and scores where wanted.
        guard: The engine.
        options: What the run was asked for.
        live: Where pictures and status go, and settings come from.
        results: Where lines and events go; None writes none.
    """

    def __init__(
        self,
        streams: list[Stream],
        guard: EngineGuard,
        options: Options,
        live: Live,
        results: Results | None = None,
    ) -> None:
        self.streams, self.guard, self.options = streams, guard, options
        self.live, self.results = live, results
        self.crew = Crew()
        self.books = Books(streams, guard, live, results)
        self.outputs = Outputs(self.books, live, options, results is not None)
        self.stopping = threading.Event()
        self.place = choose(guard.convention, guard.device, guard.classes)
        self._gate = QualityGate() if options.quality else None
        self._expected_ms = 0.0  # smoothed time of one inference
        self._warm_up()

    def _warm_up(self) -> None:
        """Load the libraries that the stages use, before the first frame waits for them."""
        import cv2  # noqa: F401

        empty = np.zeros((16, 16, 3), np.uint8)
        OnCPU(self.guard.convention).prepare(empty)
        draw_mask(empty, np.zeros((16, 16), np.uint8), 0.5)
        draw_tag(empty, "font")  # OpenCV loads it at the first word: 0.1 s

    def start(self) -> None:
        """Start the way of the frames; returns at once."""
        channel, count = self.crew.channel, len(self.streams)
        newest = {"newest_of": newest_of, "on_drop": partial(self.books.drop, reason="newer frame")}
        decoded = channel(capacity=count, producers=count, **newest)
        originals = channel(capacity=RAW_QUEUE, producers=count)
        prepared = channel(capacity=count, **newest)
        answered, measured, judged, drawn = (channel(capacity=1) for _ in range(4))
        for stream in self.streams:
            work = partial(self._decode, stream, decoded, originals)
            self.crew.start(f"decode {stream.index}", work, decoded, originals)
        batch = min(count, self.guard.max_batch)
        self._stage("preprocess", self.preprocess, decoded, prepared)
        self._stage("infer", self.infer, prepared, answered, batch)
        self._stage("postprocess", self.postprocess, answered, measured)
        self._stage("temporal", self.judge, measured, judged)
        self._stage("draw", self.outputs.draw, judged, drawn)
        self._stage("record", self.outputs.record, drawn, None)
        self.crew.start("record raw", partial(self.outputs.record_raw, originals))
        self.books.start()

    def _stage(
        self,
        name: str,
        function: Callable[[list[Frame]], list[Frame]],
        inlet: Channel[Frame],
        outlet: Channel[Frame] | None,
        most: int = 1,
    ) -> None:
        def work() -> None:
            while (frames := inlet.get(most)) is not None:
                began = time.perf_counter()
                frames = function(frames)
                ms = (time.perf_counter() - began) * 1e3
                for frame in frames:
                    frame.ms[name] = ms
                    frame.stream.timing.stages[name].add(ms)
                    if outlet is not None:
                        outlet.put(frame)

        self.crew.start(name, work, *([] if outlet is None else [outlet]))

    def _decode(self, stream: Stream, decoded: Channel, originals: Channel) -> None:
        """Give every frame its id, its account and its place in the raw recording."""
        arrivals = stream.source.frames(self.stopping, partial(self.books.link, stream))
        with contextlib.closing(arrivals):  # type: ignore[type-var]
            while self._may_come(stream):
                began = time.perf_counter()
                arrival = next(arrivals, None)
                if arrival is None:
                    break
                ms = (time.perf_counter() - began) * 1e3
                stream.timing.stages["decode"].add(ms)
                frame = self._arrive(stream, arrival, ms)
                if frame is not None:
                    self.outputs.keep_original(stream, frame, originals)
                    decoded.put(frame)
                taken = sum(stream.ledger.snapshot()[key] for key in ("in", "in_flight"))
                enough = self.options.frames is not None and taken >= self.options.frames
                if enough or self.stopping.is_set() or self.crew.failed.is_set():
                    break
        stream.ended = "stopped" if self.stopping.is_set() else END

    def _may_come(self, stream: Stream) -> bool:
        """Wait until another frame of a file may come; False when none may any more."""
        while not stream.source.live and not stream.room.acquire(timeout=0.1):
            if self.stopping.is_set() or self.crew.failed.is_set():
                return False
        return True

    def _arrive(self, stream: Stream, arrival: Arrival, ms: float) -> Frame | None:
        now = time.monotonic()
        frame_id = stream.ledger.take()
        frame = Frame(
            frame_id,
            stream,
            arrival.picture,
            arrival.time,
            now,  # type: ignore[arg-type]
            arrival.connection,
            arrival.error,
            ms={"decode": ms},
        )
        if arrival.picture is None:
            frame.outcome = "failed"
            stream.room.release()
            if stream.warn("frames that cannot be decoded"):
                log.warning("%s: frame %d: %s", stream.source.name, frame_id, arrival.error)
            self.books.settle(frame, brief(frame))
            return None
        stream.standing.arrival(now)
        return frame

    def preprocess(self, frames: list[Frame]) -> list[Frame]:
        """Make the picture RGB, judge its quality, make the network's input of it."""
        for frame in frames:
            frame.rgb = to_rgb(frame.picture)
            frame.settings = self.live.controls.get()
            if not frame.settings.ai:
                frame.off = "turned off"
                continue
            if self._gate is not None:
                frame.quality = "corrupt" if frame.error else self._gate(frame.rgb)
            if frame.quality == GOOD:
                frame.input = self.place.prepare(frame.rgb)
        return frames

    def infer(self, frames: list[Frame]) -> list[Frame]:
        """Ask the engine, one batch over all streams; without an answer the frames go on raw."""
        frames = [frame for frame in frames if not self._too_late(frame)]
        asked = [frame for frame in frames if frame.input is not None]
        if not asked:
            return frames
        inputs = [frame.input for frame in asked if frame.input is not None]
        batch = self.place.stack(inputs)
        began = time.perf_counter()
        try:
            try:
                logits = self.guard.infer(batch)
            except EngineOff:
                # A file can wait for the engine to come back; a live picture cannot.
                if any(frame.stream.source.live for frame in asked) or not self.guard.wait():
                    raise
                logits = self.guard.infer(batch)
        except EngineOff as error:
            for frame in asked:
                frame.outcome, frame.off, frame.input = "failed", str(error), None
                if frame.stream.warn("frames without an answer from the engine"):
                    log.error("%s: AI-OFF: %s", frame.stream.source.name, error)
            return frames
        ms = (time.perf_counter() - began) * 1e3
        self._expected_ms = ms if not self._expected_ms else 0.9 * self._expected_ms + 0.1 * ms
        for frame, answer in zip(asked, logits, strict=True):
            frame.logits, frame.input = answer, None
        return frames

    def _too_late(self, frame: Frame) -> bool:
        budget = self.options.budget_ms
        if budget is None or not frame.stream.source.live or self._expected_ms > budget:
            return False  # dropping helps only where a fresh frame could keep the budget
        late = (time.monotonic() - frame.arrived) * 1e3 + self._expected_ms > budget
        if late:
            self.books.drop(frame, "over budget")
        return late

    def postprocess(self, frames: list[Frame]) -> list[Frame]:
        """Turn logits into a mask at the frame's size."""
        for frame in frames:
            if frame.logits is not None:
                frame.mask, frame.logits = self.place.finish(
                    frame.logits, frame.size, frame.settings.threshold
                )
        return frames

    def judge(self, frames: list[Frame]) -> list[Frame]:
        """Decide what is shown of a mask: old enough, large enough, and on this frame."""
        for frame in frames:
            stream = frame.stream
            found = findings(frame, self.guard.convention, self.options.min_area)
            raw = None if frame.logits is None else foreground(frame.logits) > 0
            frame.judgement = stream.temporal.update(
                found,
                frame.time_s,
                frame.id,
                frame.settings.threshold,
                frame.settings.hold_off,
                raw,
            )
            frame.confidence = max((finding.confidence for finding in found), default=0.0)
            if frame.mask is not None:
                frame.shown_mask = shown_part(frame)
            for event, track in frame.judgement.events:
                stream.alarms_on += event == "alarm on"
                self.books.event(stream, frame, event, track.id, track.area, track.confidence)
            stream.standing.ai(frame.off)
            if frame.quality != GOOD:
                stream.quality[frame.quality] = stream.quality.get(frame.quality, 0) + 1
        return frames

    def stop(self) -> None:
        """Ask the sources to end; what is on its way is still settled."""
        self.stopping.set()

    def close(self, timeout: float = 10.0) -> None:
        """Wait for the end, finish the recordings, and raise what a stage raised."""
        try:
            self.crew.join(timeout if self.stopping.is_set() else None)
        finally:
            self.crew.abort()
            self.books.close()
            for stream in self.streams:
                stream.standing.link(False, stream.ended or "stopped")
                self.live.update(self.books.status(stream, stream.last))
                for recorder in (stream.overlay, stream.raw):
                    if recorder is not None:
                        recorder.close()
            self.live.close()


def newest_of(frame: Frame) -> int | None:
    """Return the stream whose newest frame this is, None where every frame is kept."""
    return frame.stream.index if frame.stream.source.live else None
