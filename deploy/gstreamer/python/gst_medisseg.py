"""GStreamer element ``medisseg``: segments RGB video within a pipeline of your own.

    export GST_PLUGIN_PATH=$PWD/deploy/gstreamer
    gst-launch-1.0 filesrc location=exam.mp4 ! decodebin ! videoconvert ! \\
      medisseg model=edge-polyp ! videoconvert ! autovideosink

GStreamer's Python plugin loader runs this file in the system's Python; our packages are those of
the environment in ``MEDISSEG_VENV`` or ``VIRTUAL_ENV``, else of ``.venv`` in the checkout, which
must be of the same Python version.

The engine works behind the runner's guard: a frame without an answer goes on as it came, with a
message on the bus that says why, and never with another frame's mask.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gi

gi.require_version("GstBase", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, GObject, Gst, GstBase, GstVideo  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
LEAST_AREA = 0.0005  # of a region, as a share of the frame: the runner's
OUTPUTS = ("overlay", "mask", "metadata")
SIZES = "width=[1,16384], height=[1,16384], framerate=[0/1,2147483647/1]"
RGB, GRAY = (f"video/x-raw, format={form}, {SIZES}" for form in ("RGB", "GRAY8"))


def add_packages() -> None:
    """Put the checkout and its environment's packages on the path.

    Raises:
        RuntimeError: There is no environment for this Python.
    """
    given = os.environ.get("MEDISSEG_VENV") or os.environ.get("VIRTUAL_ENV")
    venv = Path(given) if given else ROOT / ".venv"
    version = f"python{sysconfig.get_python_version()}"
    packages = venv / "lib" / version / "site-packages"
    if not given and ROOT.name == "site-packages":  # installed: beside this file
        packages = ROOT
    if not packages.is_dir():
        raise RuntimeError(
            f"no environment for {version} in {venv}; name one: MEDISSEG_VENV=/opt/medisseg"
        )
    import site

    site.addsitedir(str(packages))  # its .pth files count, too
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def _property(kind: Any, default: Any, text: str, *limits: Any) -> GObject.Property:
    more = dict(zip(("minimum", "maximum"), limits, strict=False))
    return GObject.Property(type=kind, default=default, nick=text, blurb=text, **more)


class MedisSeg(GstBase.BaseTransform):
    """The element. With ``output=mask`` it gives GRAY8 (255: polyp; of a network with several
    classes their indices), else RGB."""

    __gstmetadata__ = (
        "Med-DisSeg", "Filter/Analyzer/Video", "Segments polyps in endoscopic video", "Med-DisSeg",
    )  # fmt: skip
    __gsttemplates__ = (
        Gst.PadTemplate.new(
            "sink", Gst.PadDirection.SINK, Gst.PadPresence.ALWAYS, Gst.Caps.from_string(RGB)
        ),
        Gst.PadTemplate.new(
            "src", Gst.PadDirection.SRC, Gst.PadPresence.ALWAYS,
            Gst.Caps.from_string(f"{RGB}; {GRAY}"),
        ),
    )  # fmt: skip
    model = _property(str, "edge-polyp", "bundle, checkpoint, its name, or a server's address")
    threshold = _property(float, 0.0, "probability above which a pixel is polyp (0: the model's)",
                          0.0, 1.0)  # fmt: skip
    opacity = _property(float, 0.4, "of the overlay", 0.0, 1.0)
    output = _property(str, "overlay", "overlay, mask (a GRAY8 stream) or metadata alone")
    too_slow_ms = _property(float, 0.0, "after so long a frame goes on raw (0: 30 s)", 0.0, 1e6)

    def __init__(self) -> None:
        super().__init__()
        self._supervisor: Any = None
        self._processor: Any = None
        self._video: GstVideo.VideoInfo | None = None
        self._off = ""

    def do_start(self) -> bool:
        """Open the engine; an error on the bus where it cannot be opened."""
        try:
            if self.output not in OUTPUTS:
                raise ValueError(f"output is {self.output!r}; expected one of {', '.join(OUTPUTS)}")
            add_packages()
            from deploy.engine import device
            from deploy.engine.supervisor import EngineSupervisor
            from export.runtime import load_engine

            patience = self.too_slow_ms / 1e3 if self.too_slow_ms else None
            self._supervisor = EngineSupervisor(lambda: load_engine(self.model), patience)
            engine = self._supervisor
            self._processor = device.choose(engine.convention, engine.device, engine.classes)
        except Exception as error:  # whatever keeps the model from opening is said on the bus
            self._fail(f"medisseg: {error}")
            return False
        return True

    def do_stop(self) -> bool:
        """Close the engine."""
        if self._supervisor is not None:
            self._supervisor.close()
        self._supervisor = self._processor = None
        return True

    def do_transform_caps(
        self, direction: Gst.PadDirection, caps: Gst.Caps, wanted: Gst.Caps | None
    ) -> Gst.Caps:
        """RGB goes in; what comes out is RGB, or GRAY8 with ``output=mask``."""
        made = Gst.Caps.new_empty()
        to = "GRAY8" if direction == Gst.PadDirection.SINK and self.output == "mask" else "RGB"
        for i in range(caps.get_size()):
            structure = caps.get_structure(i).copy()
            structure.set_value("format", to)
            made.append_structure(structure)
        return made.intersect(wanted) if wanted is not None else made

    def do_set_caps(self, given: Gst.Caps, made: Gst.Caps) -> bool:
        """Take note of the frames' size."""
        self._video = GstVideo.VideoInfo.new_from_caps(given)
        self.set_in_place(self.output != "mask")
        self.set_passthrough(False)
        return True

    def do_get_unit_size(self, caps: Gst.Caps) -> tuple[bool, int]:
        """Return the bytes of a frame."""
        return True, GstVideo.VideoInfo.new_from_caps(caps).size

    def do_transform_ip(self, buffer: Gst.Buffer) -> Gst.FlowReturn:
        """Draw the mask onto a frame, and attach its regions."""
        return self._guarded(lambda: self._in_place(buffer))

    def do_transform(self, given: Gst.Buffer, made: Gst.Buffer) -> Gst.FlowReturn:
        """Write a frame's mask into a buffer of its own, and attach its regions."""
        return self._guarded(lambda: self._as_mask(given, made))

    def _in_place(self, buffer: Gst.Buffer) -> None:
        from deploy.outputs.drawing import draw_mask

        access = Gst.MapFlags.READ | Gst.MapFlags.WRITE
        with buffer.map(access) as mapped:
            rgb = self._pixels(mapped.data, 3)
            mask, found = self._segment(rgb)
            if mask is not None and self.output == "overlay":
                draw_mask(rgb, mask.mask, self.opacity, self._supervisor.labels)
            del rgb
        self._attach(buffer, mask, found)

    def _as_mask(self, given: Gst.Buffer, made: Gst.Buffer) -> None:
        with given.map(Gst.MapFlags.READ) as mapped:
            mask, found = self._segment(self._pixels(mapped.data, 3).copy())
        with made.map(Gst.MapFlags.WRITE) as mapped:
            pixels = self._pixels(mapped.data, 1)[..., 0]
            several = len(self._supervisor.labels) > 1
            pixels[:] = 0 if mask is None else mask.mask * (1 if several else 255)
        if mask is None:  # black, and marked as holding nothing
            made.set_flags(Gst.BufferFlags.GAP)
        self._attach(made, mask, found)

    def _pixels(self, memory: Any, channels: int) -> Any:
        """Return a view [H, W, channels] of a buffer, whose rows are padded to 4 bytes."""
        import numpy as np

        assert self._video is not None
        height, width = self._video.height, self._video.width
        row = (width * channels + 3) // 4 * 4
        flat = np.frombuffer(memory, np.uint8)[: height * row].reshape(height, row)
        return flat[:, : width * channels].reshape(height, width, channels)

    def _segment(self, rgb: Any) -> tuple[Any, list[Any]]:
        """Return the frame's mask and its regions; None and none without an answer."""
        import numpy as np

        from deploy.analysis.regions import regions
        from deploy.engine.supervisor import EngineOff

        engine, size = self._supervisor, rgb.shape[:2]
        prepared = self._processor.prepare(np.ascontiguousarray(rgb))
        try:
            answer = engine.infer(self._processor.stack([prepared]))[0]
        except EngineOff as error:
            self._say(str(error))
            return None, []
        self._say("")
        threshold = self.threshold or engine.threshold
        mask, logits = self._processor.finish(answer, size, threshold)
        found = regions(mask, logits, size, threshold, engine.convention, LEAST_AREA, engine.labels)
        return mask, found

    def _attach(self, buffer: Gst.Buffer, mask: Any, found: list[Any]) -> None:
        """Attach each region as GstVideoRegionOfInterestMeta: box, class, and its mask in it."""
        import numpy as np

        from deploy.analysis.regions import shown_part
        from kernels.frames import encode_rle

        for number, region in enumerate(found):
            x, y, width, height = region.box
            name = region.label.name if region.label else "polyp"
            meta = GstVideo.buffer_add_video_region_of_interest_meta(
                buffer, name, x, y, width, height
            )
            meta.id = number
            part = shown_part(mask, [region.box])[y : y + height, x : x + width]
            counts = encode_rle(np.ascontiguousarray(part > 0, np.uint8))["counts"]
            values = Gst.Structure.new_empty("segmentation")
            values.set_value("area", region.area)
            values.set_value("confidence", region.confidence)
            values.set_value("counts", " ".join(map(str, counts)))
            meta.add_param(values)

    def _say(self, reason: str) -> None:
        """Post a message when the engine stops answering, and when it answers again."""
        if reason and not self._off:
            self._post(Gst.Message.new_warning, f"AI-OFF: {reason}")
        elif self._off and not reason:
            self._post(Gst.Message.new_info, "AI is back")
        self._off = reason

    def _guarded(self, work: Callable[[], None]) -> Gst.FlowReturn:
        try:
            work()
        except Exception as error:  # across C, where nobody would see it
            self._fail(f"medisseg: {type(error).__name__}: {error}")
            return Gst.FlowReturn.ERROR
        return Gst.FlowReturn.OK

    def _fail(self, text: str) -> None:
        self._post(Gst.Message.new_error, text)

    def _post(self, kind: Callable[..., Gst.Message], text: str) -> None:
        error = GLib.Error.new_literal(Gst.LibraryError.quark(), text, Gst.LibraryError.FAILED)
        self.post_message(kind(self, error, ""))


GObject.type_register(MedisSeg)
__gstelementfactory__ = ("medisseg", Gst.Rank.NONE, MedisSeg)
