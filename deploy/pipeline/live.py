"""The state of a running pipeline, shared with the page, the window and tests.

Two small thread-safe objects. ``Controls`` goes in: the pipeline reads one immutable ``Settings``
per frame. ``Live`` comes out: the newest annotated picture and the newest ``StreamStatus`` of every
stream. Watchers never slow the pipeline: it stores a reference and goes on, and a watcher that is
late sees the newest picture, not the next one.

Example (a watcher's loop, one thread a watcher):
    >>> seen = 0
    >>> while (view := live.wait(stream=0, newer_than=seen, timeout=1.0)) is not None:
    ...     seen = view.sequence
    ...     send(encode_jpeg(view.rgb), view.status.to_dict())
    >>> live.controls.set(threshold=0.6, hold_off=0, ai=False)
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.status import Settings, StreamStatus


class Controls:
    """The settings of a running pipeline; any thread may read and change them.

    Attributes:
        on_change: Called with the settings that were changed, by name, and who changed them.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._lock = threading.Lock()
        self._settings = settings or Settings()
        self.on_change: Callable[[dict[str, object], str], None] = lambda changes, by: None

    def get(self) -> Settings:
        """Return the current settings (immutable: one frame sees one state of them)."""
        return self._settings

    def set(self, by: str = "", /, **changes: Any) -> Settings:
        """Change some settings and return all of them.

        Args:
            by: Who changes them, such as a browser's address; it is written down.
            **changes: Settings by name.

        Raises:
            ValueError: An unknown name or a value out of range; nothing is changed then.
        """
        known = {field.name for field in dataclasses.fields(Settings)}
        if unknown := set(changes) - known:
            raise ValueError(f"unknown: {sorted(unknown)}; expected some of {sorted(known)}")
        with self._lock:
            before = self._settings
            self._settings = dataclasses.replace(before, **changes)
            new = {key: value for key, value in changes.items() if value != getattr(before, key)}
            if new:
                self.on_change(new, by)
            return self._settings


@dataclass(frozen=True)
class View:
    """One published picture.

    Attributes:
        sequence: Grows by one with every publication of the stream, from 1.
        rgb: Annotated picture, uint8 RGB [H, W, 3], rows may be padded (``rgb.strides``); it is
            never written to again, and must not be written to by its readers.
        frame_id: Id of the frame it was made from; the same id again when only the state changed
            (a lost source shows its last frame greyed, with its age).
        status: The status at that moment.
    """

    sequence: int
    rgb: npt.NDArray[np.uint8]
    frame_id: int
    status: StreamStatus


class Live:
    """The newest view and status of every stream, and the controls.

    Attributes:
        controls: What the pipeline obeys from the next frame on.
        metrics: Returns the text exposition for Prometheus; set by the pipeline.
    """

    def __init__(self, sources: list[str], controls: Controls | None = None) -> None:
        self.controls = controls or Controls()
        self.metrics: Callable[[], bytes] = lambda: b""
        self._changed = threading.Condition()
        self._views: list[View | None] = [None] * len(sources)
        self._status = [StreamStatus(i, source) for i, source in enumerate(sources)]
        self._closed = False

    @property
    def streams(self) -> int:
        """Number of streams."""
        return len(self._status)

    @property
    def closed(self) -> bool:
        """Whether the pipeline has ended; the last views stay readable."""
        return self._closed

    def publish(self, rgb: npt.NDArray[np.uint8], frame_id: int, status: StreamStatus) -> None:
        """Show a picture and its status (pipeline only). ``rgb`` must not be written to again."""
        with self._changed:
            last = self._views[status.stream]
            sequence = last.sequence + 1 if last else 1
            self._views[status.stream] = View(sequence, rgb, frame_id, status)
            self._status[status.stream] = status
            self._changed.notify_all()

    def update(self, status: StreamStatus) -> None:
        """Change a status without a new picture (pipeline only)."""
        with self._changed:
            self._status[status.stream] = status
            self._changed.notify_all()

    def status(self, stream: int = 0) -> StreamStatus:
        """Return a stream's newest status."""
        return self._status[stream]

    def latest(self, stream: int = 0) -> View | None:
        """Return the newest view, or None before the first."""
        return self._views[stream]

    def wait(self, stream: int = 0, newer_than: int = 0, timeout: float = 1.0) -> View | None:
        """Return the newest view with ``sequence > newer_than``.

        Returns None when none came within ``timeout`` seconds or the pipeline has ended.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                view = self._views[stream]
                if view is not None and view.sequence > newer_than:
                    return view
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        """Tell every watcher that the pipeline has ended (pipeline only)."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
