"""FFmpeg's filters between decoder and pipeline: deinterlacing, and HDR to SDR.

Each filter opens at the first frame that needs it and anew when the frames change; before, frames
pass as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

    from deploy.sources.source import Notes

AUTO, ON, OFF = "auto", "on", "off"
# A frame comes out of bwdif when the next has come in: interlaced video is shown one frame later.
# Parity "auto" is the field order that the stream says.
DEINTERLACE = ("bwdif", "mode=send_frame:parity=auto:deint={frames}")
# swscale maps tones perceptually. The first frame waits for its table: 5 s on one core.
SDR = (
    "scale",
    "out_color_matrix=bt709:out_primaries=bt709:out_transfer=bt709:out_range=tv:intent=perceptual",
)
HDR_CURVES = {16: "PQ", 18: "HLG"}  # transfer characteristics of ISO/IEC 23091-2


class Filter:
    """A chain of FFmpeg's filters for frames of one size and format."""

    def __init__(self, picture: av.VideoFrame, *chain: tuple[str, str]) -> None:
        from av.filter import Graph

        self.kind = kind_of(picture)
        self._graph: Any = Graph()
        source = self._graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=picture.time_base or Fraction(1, 90_000),
        )
        nodes = [self._graph.add(*link) for link in chain]
        self._graph.link_nodes(source, *nodes, self._graph.add("buffersink")).configure()

    def __call__(self, picture: av.VideoFrame | None) -> Iterator[av.VideoFrame]:
        """Put a frame in, or None at the end, and yield what comes out."""
        from av.error import BlockingIOError, EOFError

        self._graph.push(picture)
        while True:
            try:
                yield self._graph.pull()
            except (BlockingIOError, EOFError):
                return


def kind_of(picture: av.VideoFrame) -> tuple[object, ...]:
    """Return the size, format and colours that a filter graph is built for."""
    color = picture.colorspace, picture.color_range, picture.color_trc, picture.color_primaries
    return picture.width, picture.height, picture.format.name, *map(int, color)


class Deinterlacer:
    """Passes progressive frames on as they are; from the first interlaced one on, filters.

    Args:
        mode: "auto" (frames that are marked interlaced), "on" (every frame) or "off".
        notes: Where it is said.
    """

    def __init__(self, mode: str, notes: Notes) -> None:
        self._mode, self._notes = mode, notes
        self._filter: Filter | None = None

    def __call__(self, pictures: Iterable[av.VideoFrame], last: bool) -> Iterator[av.VideoFrame]:
        """Yield the frames that are ready; at the ``last`` call all that remain."""
        for picture in pictures:
            if self._filter is not None and kind_of(picture) != self._filter.kind:
                yield from self._flushed()
            wanted = self._mode == ON or (self._mode == AUTO and picture.interlaced_frame)
            if self._filter is None and wanted:
                self._open(picture)
            if self._filter is None:
                yield picture
            else:
                yield from self._filter(picture)
        if last:
            yield from self._flushed()

    def _open(self, picture: av.VideoFrame) -> None:
        name, options = DEINTERLACE
        every = "all" if self._mode == ON else "interlaced"
        try:
            self._filter = Filter(picture, (name, options.format(frames=every)))
        except (OSError, ValueError) as error:  # fewer lines than two fields need
            self._notes(f"cannot be deinterlaced ({error})")
            self._mode = OFF

    def _flushed(self) -> Iterator[av.VideoFrame]:
        if self._filter is not None:
            last, self._filter = self._filter, None
            yield from last(None)


class ToneMapper:
    """Maps frames of HDR (PQ, HLG) to BT.709, which screens, recordings and the network expect.

    Args:
        notes: Where it is said.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._filter: Filter | None = None

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Return a frame that is not HDR."""
        curve = HDR_CURVES.get(int(picture.color_trc))
        if curve is None:
            return picture
        if self._filter is None or self._filter.kind != kind_of(picture):
            self._notes(f"HDR ({curve}): its tones are mapped to BT.709")
            self._filter = Filter(picture, SDR, ("format", "pix_fmts=yuv420p"))
        mapped, *_ = self._filter(picture)
        return mapped
