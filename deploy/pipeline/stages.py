"""What becomes of a judged frame: drawn, shown, recorded, settled; and the raw video beside it."""

from __future__ import annotations

import logging

from deploy.options import Options
from deploy.outputs.drawing import draw_mask, draw_status
from deploy.outputs.pixels import to_yuv
from deploy.pipeline.accounting import Books
from deploy.pipeline.channel import Channel
from deploy.pipeline.live import Live
from deploy.pipeline.stream import Frame, Stream

log = logging.getLogger(__name__)


class Outputs:
    """The last stages of the pipeline, and the raw recording's own.

    Args:
        books: Where frames are settled.
        live: Where pictures are shown.
        options: What the run was asked for.
        lines: Whether frames' lines are written.
    """

    def __init__(self, books: Books, live: Live, options: Options, lines: bool) -> None:
        self.books, self.live, self.options, self.lines = books, live, options, lines

    def keep_original(self, stream: Stream, frame: Frame, originals: Channel) -> None:
        """Hand a frame to the raw recording: a file waits for the disk, a live source does not."""
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

    def draw(self, frames: list[Frame]) -> list[Frame]:
        """Draw on the frame and show it."""
        for frame in frames:
            stream = frame.stream
            if frame.shown_mask is not None and frame.judgement.shown:
                draw_mask(frame.rgb, frame.shown_mask, frame.settings.opacity)
            status = self.books.status(stream, frame)
            draw_status(frame.rgb, status, frame.judgement.shown)
            stream.shown(frame)
            frame.status = status
            self.live.publish(frame.rgb, frame.id, status)
            self._check_budget(stream, frame)
        return frames

    def _check_budget(self, stream: Stream, frame: Frame) -> None:
        budget = self.options.budget_ms
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
        """Write the overlay video, compare with the truth, settle the account."""
        for frame in frames:
            stream, written, dice = frame.stream, None, None
            if stream.overlay is not None and not stream.overlay.stopped:
                picture = stream.canvas.to_yuv(frame.rgb)
                written = stream.overlay.write(picture, frame.time_s, frame.connection)
            if stream.score is not None:
                raw = frame.mask.mask if frame.mask else None
                shown = frame.shown_mask
                dice = stream.score.add(frame.id, frame.size, raw, shown, frame.time_s)
            self.books.settle(frame, frame.line(written, dice) if self.lines else {})
        return frames

    def record_raw(self, originals: Channel[Frame]) -> None:
        """Write the raw videos until their channel ends."""
        while (frames := originals.get()) is not None:
            for frame in frames:
                if frame.stream.raw is not None and not frame.stream.raw.stopped:
                    picture = to_yuv(frame.picture, frame.stream.canvas)
                    frame.stream.raw.write(picture, frame.time_s, frame.connection)
