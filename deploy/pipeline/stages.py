"""The stages of a frame in order, from the decoded picture to its line of results.

    decode -> preprocess -> infer -> postprocess -> temporal -> draw -> record

Every stage is a method that fills in its part of a :class:`Frame` and hands it on; ``pipeline.py``
runs each in a thread of its own, with a bounded queue in between. A mask is only ever drawn on its
own frame, because it never leaves it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from deploy.analysis.quality import GOOD, QualityGate
from deploy.analysis.regions import foreground, regions, shown_part
from deploy.engine.device import choose
from deploy.engine.supervisor import EngineOff, EngineSupervisor
from deploy.options import Options
from deploy.outputs.drawing import draw_mask, draw_place, draw_status
from deploy.outputs.pixels import black, rgb_to_yuv, to_rgb, to_yuv
from deploy.pipeline.accounting import END, FrameAccounting, expected
from deploy.pipeline.channel import Aborted, Channel
from deploy.pipeline.live import Live
from deploy.pipeline.placing import on_frame, visible
from deploy.pipeline.stream import Frame, Stream
from deploy.sources.decoding import describe
from deploy.sources.source import Arrival

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)


class Stages:
    """What is done to the frames of all streams: one method a stage, in their order.

    Args:
        supervisor: The engine.
        options: What the run was asked for.
        live: Where pictures are shown, and settings are read for each frame.
        accounting: Where every frame is finished.
        stopping: Set when the sources shall end.
        failed: Set when a stage has failed.
    """

    def __init__(
        self,
        supervisor: EngineSupervisor,
        options: Options,
        live: Live,
        accounting: FrameAccounting,
        stopping: threading.Event,
        failed: threading.Event,
    ) -> None:
        self.supervisor, self.options, self.live = supervisor, options, live
        self.accounting, self.stopping, self.failed = accounting, stopping, failed
        self.processor = choose(supervisor.convention, supervisor.device, supervisor.classes)
        self._quality = QualityGate() if options.quality else None
        self._expected_ms = 0.0  # smoothed time of one inference

    def decode(self, stream: Stream, decoded: Channel[Frame], originals: Channel[Frame]) -> None:
        """Read a source to its end; number its frames, and queue them for the raw recording too."""
        try:
            self._read(stream, decoded, originals)
        except Aborted:
            raise
        except Exception as error:  # of this source; the other streams go on
            stream.faults["source"] = f"source stopped: {describe(error)}"
            stream.ended = describe(error)
            log.error("%s", describe(error), exc_info=None if expected(error) else error)

    def _read(self, stream: Stream, decoded: Channel[Frame], originals: Channel[Frame]) -> None:
        arrivals = stream.source.frames(self.stopping, partial(self.accounting.link, stream))
        with contextlib.closing(arrivals):
            while self._may_come(stream):
                began = time.perf_counter()
                arrival = next(arrivals, None)
                if arrival is None:
                    break
                ms = (time.perf_counter() - began) * 1e3
                stream.timing.stages["decode"].add(ms)
                frame = self._arrive(stream, arrival, ms)
                if frame is not None:
                    self._keep_original(frame, originals)
                    decoded.put(frame)
                if self._ending() or stream.counter.taken == self.options.frames:
                    break
        stream.ended = "stopped" if self.stopping.is_set() else END

    def _ending(self) -> bool:
        return self.stopping.is_set() or self.failed.is_set()

    def _may_come(self, stream: Stream) -> bool:
        """Wait until a file has fewer frames in flight than allowed; False when the run stops."""
        while not stream.source.live and not stream.slots.acquire(timeout=0.1):
            if self._ending():
                return False
        return True

    def _arrive(self, stream: Stream, arrival: Arrival, ms: float) -> Frame | None:
        """Count an arrival, decoded in ``ms``; None where there is no picture to go on with."""
        frame = Frame(
            stream.counter.take(),
            stream,
            arrival.picture,
            arrival.time,
            time.monotonic(),
            arrival.connection,
            arrival.error,
            arrival.aspect,
            arrival.still,
            ms={"decode": ms},
        )
        if arrival.picture is None:
            if stream.warn("frames that cannot be decoded"):
                log.warning("%s: frame %d: %s", stream.source.name, frame.id, arrival.error)
            self.accounting.fail(frame)
            return None
        return frame

    def _keep_original(self, frame: Frame, originals: Channel[Frame]) -> None:
        """Queue a frame for the raw recording; only a file waits when the disk is slow."""
        stream = frame.stream
        if stream.raw is None or stream.raw.stopped:
            return
        if not stream.source.live:
            originals.put(frame)
        elif not originals.offer(frame):
            stream.raw_missed += 1
            if stream.warn("frames missing from the raw video: the disk is too slow"):
                log.warning("%s: the raw video misses frames", stream.source.name)
            return
        frame.raw = stream.raw_offered
        stream.raw_offered += 1

    def record_raw(self, originals: Channel[Frame]) -> None:
        """Write the raw videos, as they were decoded, until their channel ends."""
        while (frames := originals.get()) is not None:
            for frame in frames:
                raw = frame.stream.raw
                if raw is None or raw.stopped:
                    continue
                try:
                    picture = self._original(frame)
                except Exception as error:  # black in its place: the numbers of the others stay
                    frame.stream.missing("raw", frame, error)
                    picture = black(frame.decoded)
                raw.write(picture, frame.time_s, frame.connection, frame.aspect)

    def _original(self, frame: Frame) -> av.VideoFrame:
        if not self.options.hide_outside:
            return to_yuv(frame.decoded)
        rgb = to_rgb(frame.decoded)
        tracker = frame.stream.raw_picture
        visible(tracker, tracker(rgb, frame.time_s)).hide_rest(rgb)
        return rgb_to_yuv(rgb)

    def preprocess(self, frames: list[Frame]) -> list[Frame]:
        """Convert to uint8 RGB [H, W, 3], measure the quality, make the input float32 [3, h, w]."""
        for frame in frames:
            stream = frame.stream
            frame.rgb = to_rgb(frame.decoded)
            frame.settings = self.live.controls.get()
            frame.place = stream.picture(frame.rgb, frame.time_s)
            self.accounting.place(frame)
            inside = frame.place.crop(frame.rgb)
            if not frame.settings.ai:
                frame.off = "turned off"
            elif self._quality is not None:
                frame.quality = "corrupt" if frame.error else self._quality(inside)
            if not frame.off and frame.quality == GOOD:
                frame.input = self.processor.prepare(inside)
            if self.options.hide_outside:
                frame.visible = visible(stream.picture, frame.place)
                frame.visible.hide_rest(frame.rgb)
            # Not before: one that fails shows nothing new.
            stream.state.arrival(frame.arrived, frame.still)
        return frames

    def infer(self, frames: list[Frame]) -> list[Frame]:
        """Run the engine on one batch over all streams: logits [K, h, w] a frame, or the reason."""
        frames = [frame for frame in frames if not self._too_late(frame)]
        asked = [frame for frame in frames if frame.input is not None]
        if not asked:
            return frames
        batch = self.processor.stack([frame.input for frame in asked if frame.input is not None])
        began = time.perf_counter()
        try:
            try:
                answers = self.supervisor.infer(batch)
            except EngineOff:
                # A file can wait for the engine to come back; a live picture cannot.
                if any(frame.stream.source.live for frame in asked) or not self.supervisor.wait():
                    raise
                answers = self.supervisor.infer(batch)
        except EngineOff as error:
            for frame in asked:
                frame.outcome, frame.off, frame.input = "failed", str(error), None
                if frame.stream.warn("frames without an answer from the engine"):
                    log.error("%s: AI-OFF: %s", frame.stream.source.name, error)
            return frames
        ms = (time.perf_counter() - began) * 1e3
        self._expected_ms = ms if not self._expected_ms else 0.9 * self._expected_ms + 0.1 * ms
        for frame, answer in zip(asked, answers, strict=True):
            frame.answer, frame.input = answer, None
        return frames

    def _too_late(self, frame: Frame) -> bool:
        """Drop a live frame that would miss the latency budget; return whether it was dropped."""
        budget = self.options.budget_ms
        if budget is None or not frame.stream.source.live or self._expected_ms > budget:
            return False  # dropping helps only where a fresh frame could keep the budget
        late = (time.monotonic() - frame.arrived) * 1e3 + self._expected_ms > budget
        if late:
            self.accounting.drop(frame, "over budget")
        return late

    def postprocess(self, frames: list[Frame]) -> list[Frame]:
        """Make masks uint8 [H, W] at the picture's size, and copy the logits to the CPU."""
        for frame in frames:
            if frame.answer is not None:
                frame.mask, frame.logits = self.processor.finish(
                    frame.answer, frame.inside, frame.settings.threshold
                )
                frame.answer = None
        return frames

    def track(self, frames: list[Frame]) -> list[Frame]:
        """Track the regions; those past the hold-off and large enough are shown."""
        for frame in frames:
            stream, settings = frame.stream, frame.settings
            found, segmented = [], None
            if frame.mask is not None and frame.logits is not None:
                found = regions(
                    frame.mask,
                    frame.logits,
                    frame.inside,
                    settings.threshold,
                    self.supervisor.convention,
                    self.options.min_area,
                    stream.labels,
                )
                segmented = foreground(frame.logits) > 0
                found = on_frame(frame, found)
            frame.tracking = stream.temporal.update(
                found, frame.time_s, frame.id, settings.threshold, settings.hold_off, segmented
            )
            frame.confidence = max((region.confidence for region in found), default=0.0)
            if frame.mask is not None:
                shown = [track.box for track in frame.tracking.shown]
                frame.shown_mask = shown_part(frame.mask, shown)
            for event, track in frame.tracking.events:
                stream.alarms_on += event == "alarm on"
                self.accounting.event(stream, frame, event, track.id, track.area, track.confidence)
            stream.state.ai(frame.off)
            if frame.quality != GOOD:
                stream.quality[frame.quality] = stream.quality.get(frame.quality, 0) + 1
        return frames

    def draw(self, frames: list[Frame]) -> list[Frame]:
        """Draw the shown mask, the tracks and the status on the frame, and publish it."""
        for frame in frames:
            stream = frame.stream
            if frame.shown_mask is not None and frame.tracking.shown:
                opacity = frame.settings.opacity
                draw_mask(frame.rgb, frame.shown_mask, opacity, stream.labels)
            frame.status = self.accounting.status(stream, frame)
            draw_place(frame.rgb, frame.place)
            draw_status(frame.rgb, frame.status, frame.tracking.shown)
            stream.shown(frame)
            self.live.publish(frame.rgb, frame.id, frame.status)
            self._check_budget(frame)
        return frames

    def _check_budget(self, frame: Frame) -> None:
        budget, stream = self.options.budget_ms, frame.stream
        if budget is not None and frame.latency_ms > budget:
            stream.timing.over_budget += 1
            if stream.warn("frames over the latency budget"):
                log.warning(
                    "%s: frame %d was shown after %.0f ms, budget %.0f ms",
                    stream.source.name,
                    frame.id,
                    frame.latency_ms,
                    budget,
                )

    def record(self, frames: list[Frame]) -> list[Frame]:
        """Write the overlay video, compare with the reference, write the line, finish the frame."""
        for frame in frames:
            stream, written, dice = frame.stream, None, None
            if stream.overlay is not None and not stream.overlay.stopped:
                try:
                    picture = rgb_to_yuv(frame.rgb)
                    written = stream.overlay.write(
                        picture, frame.time_s, frame.connection, frame.aspect
                    )
                except Exception as error:
                    stream.missing("overlay", frame, error)
            if stream.score is not None:
                raw = frame.mask.mask if frame.mask else None
                masks = raw, frame.shown_mask
                network = frame.logits, frame.place
                try:
                    dice = stream.score.add(frame.id, frame.size, *masks, frame.time_s, *network)
                except Exception as error:
                    stream.score = None
                    stream.faults["truth"] = f"comparison with the truth stopped: {describe(error)}"
                    log.error("%s: %s", stream.source.name, stream.faults["truth"])
            self.accounting.finish(frame, written, dice)
        return frames
