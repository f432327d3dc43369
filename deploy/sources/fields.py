"""Interlaced frames become whole ones: FFmpeg's bwdif, which keeps to the stream's field order.

A frame comes out when the next has come in: interlaced video is shown one frame later.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

AUTO, ON, OFF = "auto", "on", "off"


class Deinterlacer:
    """Passes progressive frames on as they are; from the first interlaced one on, filters.

    Args:
        mode: "auto" (frames that are marked interlaced), "on" (every frame) or "off".
    """

    def __init__(self, mode: str = AUTO) -> None:
        self._mode = mode
        self._graph: Any = None
        self._kind: tuple[int, int, str] = (0, 0, "")

    def __call__(self, pictures: list[av.VideoFrame], last: bool) -> Iterator[av.VideoFrame]:
        """Yield what is ready of the decoded pictures; at the ``last`` call everything."""
        for picture in pictures:
            kind = picture.width, picture.height, picture.format.name
            if self._graph is not None and kind != self._kind:
                yield from self._flushed()
            wanted = self._mode == ON or (self._mode == AUTO and picture.interlaced_frame)
            if self._graph is None and not wanted:
                yield picture
                continue
            if self._graph is None:
                self._open(picture)
            self._graph.push(picture)
            yield from self._pulled()
        if last and self._graph is not None:
            yield from self._flushed()

    def _open(self, picture: av.VideoFrame) -> None:
        from av.filter import Graph

        every = "all" if self._mode == ON else "interlaced"
        graph = Graph()
        graph.link_nodes(
            graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1, 90_000),
            ),
            graph.add("bwdif", f"mode=send_frame:parity=auto:deint={every}"),
            graph.add("buffersink"),
        ).configure()
        self._graph = graph
        self._kind = picture.width, picture.height, picture.format.name

    def _pulled(self) -> Iterator[av.VideoFrame]:
        from av.error import BlockingIOError, EOFError

        while True:
            try:
                yield self._graph.pull()
            except (BlockingIOError, EOFError):
                return

    def _flushed(self) -> Iterator[av.VideoFrame]:
        self._graph.push(None)
        yield from self._pulled()
        self._graph = None
