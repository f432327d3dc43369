"""Threads and queues: each stage of ``stages.py`` in a thread behind a bounded queue.

Up to the engine, live streams keep their newest frame only: what is displaced is counted and
written down as dropped. Of a file only a few frames are on their way at once: queues that fill up
would add their length to the latency and nothing to the rate.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from deploy.engine.device import CpuProcessor
from deploy.engine.supervisor import EngineSupervisor
from deploy.options import Options
from deploy.outputs.drawing import draw_mask, draw_tag
from deploy.outputs.results import Results
from deploy.pipeline.accounting import FrameAccounting
from deploy.pipeline.channel import Channel, ThreadGroup
from deploy.pipeline.live import Live
from deploy.pipeline.stages import Stages
from deploy.pipeline.stream import Frame, Stream
from medisseg.picture_search import look

# Frames: the first second of a network stream comes at once, before the encoder is open. A disk
# that stalls longer costs raw frames of a live source, counted.
RAW_QUEUE = 32


class Pipeline:
    """Runs streams through an engine until they end or :meth:`stop` is called.

    Args:
        streams: What to read, with their recorders and scores where wanted.
        supervisor: The engine.
        options: What the run was asked for.
        live: Where pictures and status go, and settings come from.
        results: Where lines and events go; None writes none.
    """

    def __init__(
        self,
        streams: list[Stream],
        supervisor: EngineSupervisor,
        options: Options,
        live: Live,
        results: Results | None = None,
    ) -> None:
        self.streams, self.supervisor, self.live = streams, supervisor, live
        self.threads = ThreadGroup()
        self.stopping = threading.Event()
        for stream in streams:
            stream.labels = supervisor.labels
        self.accounting = FrameAccounting(streams, supervisor, live, results)
        self.stages = Stages(
            supervisor, options, live, self.accounting, self.stopping, self.threads.failed
        )
        self._warm_up()

    def _warm_up(self) -> None:
        """Load the libraries that the stages use, before the first frame waits for them."""
        import cv2  # noqa: F401

        empty = np.zeros((64, 64, 3), np.uint8)
        look(empty)
        CpuProcessor(self.supervisor.convention).prepare(empty)
        draw_mask(empty, np.zeros((64, 64), np.uint8), 0.5)
        draw_tag(empty, "font")  # OpenCV loads it at the first word: 0.1 s

    def start(self) -> None:
        """Start the threads; returns at once."""
        stages, count = self.stages, len(self.streams)
        drop = partial(self.accounting.drop, reason="newer frame")
        decoded = self._channel(count, newest_of, drop, producers=count)
        originals = self._channel(RAW_QUEUE, producers=count)
        prepared = self._channel(count, newest_of, drop)
        answered, masked, tracked, drawn = (self._channel(1) for _ in range(4))
        for stream in self.streams:
            work = partial(stages.decode, stream, decoded, originals)
            self.threads.start(f"decode {stream.index}", work, decoded, originals)
        batch = min(count, self.supervisor.max_batch)
        self._stage("preprocess", stages.preprocess, decoded, prepared)
        self._stage("infer", stages.infer, prepared, answered, batch)
        self._stage("postprocess", stages.postprocess, answered, masked)
        self._stage("temporal", stages.track, masked, tracked)
        self._stage("draw", stages.draw, tracked, drawn)
        self._stage("record", stages.record, drawn, None)
        self.threads.start("record raw", partial(stages.record_raw, originals))
        self.accounting.start()

    def _channel(
        self,
        capacity: int,
        newest_of: Callable[[Frame], int | None] = lambda frame: None,
        on_drop: Callable[[Frame], None] = lambda frame: None,
        producers: int = 1,
    ) -> Channel[Frame]:
        return self.threads.watch(Channel(capacity, producers, newest_of, on_drop))

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
                try:
                    frames = function(frames)
                except Exception as error:  # a fault of these frames: the next ones go on
                    for frame in frames:
                        self.accounting.broke(frame, name, error)
                    continue
                ms = (time.perf_counter() - began) * 1e3
                for frame in frames:
                    frame.ms[name] = ms
                    frame.stream.timing.stages[name].add(ms)
                    if outlet is not None:
                        outlet.put(frame)

        self.threads.start(name, work, *([] if outlet is None else [outlet]))

    def stop(self) -> None:
        """Ask the sources to end; what is on its way is still finished."""
        self.stopping.set()

    def close(self, timeout: float = 10.0) -> None:
        """Wait for the end, finish the recordings, and raise what a stage raised."""
        try:
            self.threads.join(timeout if self.stopping.is_set() else None)
        finally:
            self.threads.abort()
            self.accounting.close()
            for stream in self.streams:
                stream.state.link(False, stream.ended or "stopped")
                self.live.update(self.accounting.status(stream, stream.last))
                for recorder in (stream.overlay, stream.raw):
                    if recorder is not None:
                        recorder.close()
            self.live.close()


def newest_of(frame: Frame) -> int | None:
    """Return the stream's number of a live frame; None for a file, whose frames are all kept."""
    return frame.stream.index if frame.stream.source.live else None
