"""Every option of the runner, once: the command line and ``--config`` YAML both end here."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from deploy.status import MAX_HOLD_OFF, Settings
from medisseg.arguments import Parser
from medisseg.errors import UserError
from medisseg.picture import FULL, parse_picture
from medisseg.schema import Json, build, not_one_of
from medisseg.text import without_password
from medisseg.untrusted import read_yaml

Value = TypeVar("Value")
PIXELS = ("rgb24", "bgr24", "yuv420p", "nv12", "gray")
VIDEOS = ("both", "overlay", "raw", "none")
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium")
EXAMPLE = """examples:
  medisseg run exam.mp4 --model runs/demo/engine --out runs/exam
  medisseg run rtsp://camera/stream --model edge-polyp --serve 127.0.0.1:8080
  medisseg run 0 --model engine --budget-ms 80 --hold-off 3
  medisseg run replay runs/exam
  medisseg run compare runs/exam-fp32 runs/exam-fp16
  medisseg run chaos"""


def option(default: Value, text: str, least: float | None = None) -> Value:
    """Return a dataclass field that carries its help text and limits."""
    return field(default=default, metadata={"help": text, "least": least})


@dataclass(frozen=True)
class Options:
    """The runner's options; ``help`` of every field is what ``--help`` prints."""

    sources: tuple[str, ...] = ()
    model: str = option(
        "", "bundle, checkpoint or its name, or a Triton server's grpc://HOST:8001/NAME"
    )
    out: Path | None = option(None, "folder for all that is written; nothing is written without")
    truth: Path | None = option(None, "folder of masks, one a frame in natural order: reports Dice")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    backend: str = option("auto", "engine's backend (auto: what it was built for)")
    trusted_key: Path | None = option(None, "public key of who must have signed the bundle")
    threads: int | None = option(None, "CPU threads of the engine (all cores)", least=1)
    precision: str = option("auto", "engine's precision, where it can choose")
    realtime: bool = option(False, "play files at their own rate and keep only the newest frame")
    threshold: float | None = option(None, "probability above which a pixel is polyp (engine's)")
    opacity: float = option(0.4, "opacity of the overlay, 0 to 1")
    hold_off: int = option(3, f"frames for which a new alarm is held back, 0 to {MAX_HOLD_OFF}")
    picture: str = option(
        "auto",
        "part of the frame that is segmented: auto (the endoscopic picture on a processor's "
        "screen), full, or x,y,w,h in pixels",
    )
    hide_outside: bool = option(
        False, "black out what lies outside the picture (names, dates) in videos and on the page"
    )
    deinterlace: str = option("auto", "auto (frames that are marked interlaced), on, or off")
    quality: bool = option(True, "show blurred, dark, saturated and out-of-body frames as such")
    min_area: float = option(0.0005, "smallest region that counts, as a share of the picture")
    budget_ms: float | None = option(None, "latency to keep: warn above, drop late frames", least=1)
    too_slow_ms: float = option(1000.0, "live: without an answer for so long, AI-OFF", least=1)
    hang_s: float = option(30.0, "an engine without an answer for so long is replaced", least=0.1)
    stale_s: float = option(0.5, "live: without a frame for so long, STALE", least=0.05)
    timeout_s: float = option(3.0, "live: without data for so long, OFFLINE", least=0.1)
    duration: float | None = option(None, "stop after so many seconds", least=0.01)
    frames: int | None = option(None, "stop each source after so many frames", least=1)
    serve: str | None = option(None, "HOST:PORT of the live page (needs a token off loopback)")
    token: str | None = option(None, "token that the live page demands")
    host_name: str | None = option(
        None, "further names, with commas, under which the live page is opened (proxy, DNS)"
    )
    window: str = option("auto", "auto (when there is a display), on, or off")
    metrics: Path | None = option(None, "file kept up to date for Prometheus' textfile collector")
    record: str = option("both", "videos written into --out: " + ", ".join(VIDEOS))
    crf: int = option(20, "quality of the videos, 0 (lossless) to 51")
    preset: str = option("ultrafast", "x264 preset: " + ", ".join(PRESETS))
    part_s: float = option(600.0, "length of one part of a recording in seconds", least=1)
    min_free_mb: float = option(64.0, "stop recording when the disk has less left", least=0)
    input_size: str | None = option(None, "HxW of raw frames on standard input")
    input_format: str = option("rgb24", "pixels on standard input: " + ", ".join(PIXELS))
    input_fps: float = option(25.0, "frames a second of standard input and folders", least=0.001)
    follow: bool = option(False, "read on where a file that another program writes still grows")
    camera_size: str | None = option(None, "HxW to ask a camera for, such as 1080x1920")
    camera_fps: float | None = option(None, "frames a second to ask a camera for", least=1)
    camera_format: str | None = option(None, "pixels to ask a camera for: MJPG, YUYV, ... (FOURCC)")

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value, least = getattr(self, item.name), item.metadata.get("least")
            if least is not None and value is not None and not value >= least:
                raise UserError(f"{flag(item.name)} is {value}; expected {least} or more")
        for name, allowed in (
            ("window", ("auto", "on", "off")),
            ("deinterlace", ("auto", "on", "off")),
            ("record", VIDEOS),
            ("preset", PRESETS),
            ("input_format", PIXELS),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(not_one_of(flag(name), getattr(self, name), allowed))
        if not 0 <= self.min_area < 1:
            raise UserError(f"--min-area is {self.min_area}; expected a share of the frame, 0 to 1")
        if not 0 <= self.crf <= 51:
            raise UserError(f"--crf is {self.crf}; expected 0 to 51")
        self.settings(0.5)
        self.size("input_size")
        self.size("camera_size")
        if self.camera_format and not re.fullmatch(r"[ -~]{4}", self.camera_format):
            raise UserError(
                f"--camera-format is {self.camera_format!r}; expected four characters, such as MJPG"
            )
        if parse_picture(self.picture) == FULL and self.hide_outside:
            raise UserError(
                "--picture full and --hide-outside: nothing lies outside; choose auto or x,y,w,h"
            )
        if not self.sources:
            raise UserError(f"no source given; for example: {EXAMPLE.splitlines()[1].strip()}")
        if not self.model:
            raise UserError(
                "no --model given: a bundle, a checkpoint, its name, or a server's address"
            )
        if self.truth is not None and len(self.sources) > 1:
            raise UserError(f"--truth goes with one source; got {len(self.sources)}")

    def settings(self, engine_threshold: float) -> Settings:
        """Return what the live controls start from."""
        threshold = engine_threshold if self.threshold is None else self.threshold
        try:
            return Settings(threshold, self.opacity, self.hold_off)
        except ValueError as error:
            raise UserError(f"--{str(error).replace('hold_off', 'hold-off', 1)}") from error

    def size(self, name: str) -> tuple[int, int] | None:
        """Return (height, width) that an option of this name gives, None where it is not given."""
        value = getattr(self, name)
        if value is None:
            return None
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
        if not match:
            raise UserError(f"{flag(name)} is {value!r}; expected HxW, such as 480x640")
        return int(match[1]), int(match[2])

    def to_dict(self) -> dict[str, object]:
        """Return the options as JSON-ready values, without the token."""
        shown = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(self).items()
        }
        shown["sources"] = [without_password(source) for source in self.sources]
        return {key: value for key, value in shown.items() if key != "token"}


def flag(name: str) -> str:
    """Return the command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def parse(argv: Sequence[str] | None) -> Options:
    """Read the command line, on top of ``--config`` where given.

    Raises:
        UserError: An unknown key (answered with the nearest), a wrong kind or value.
    """
    parser = Parser(
        prog="medisseg run",
        allow_abbrev=False,
        description="Segment polyps in a video, live or recorded.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="file, folder or glob of images, webcam number, rtsp:// rtmp:// http(s):// udp:// "
        "address, or - (raw frames on standard input); several for several streams",
    )
    parser.add_argument("--config", type=Path, help="YAML file with these options as keys")
    for item in dataclasses.fields(Options):
        if item.name != "sources":
            _add(parser, item)
    # Intermixed: sources may stand before and after options.
    given = vars(
        parser.parse_intermixed_args(argv)
    )  # without what was not given: argparse.SUPPRESS
    config = given.pop("config", None)
    if not given["sources"]:
        del given["sources"]
    if config is None:
        return Options(**given | {"sources": tuple(given.get("sources", ()))})
    return build(Options, _read(config) | given, str(config))


def _add(parser: argparse.ArgumentParser, item: dataclasses.Field[object]) -> None:
    kind = _kind(item)
    default = "" if item.default in (None, "") else f" ({item.default})"
    if kind is bool:
        text = item.metadata["help"] + (" (on)" if item.default else " (off)")
        parser.add_argument(
            flag(item.name),
            action=argparse.BooleanOptionalAction,
            help=text,
            default=argparse.SUPPRESS,
        )
        return
    text = (item.metadata["help"] + default).replace("%", "%%")
    parser.add_argument(
        flag(item.name),
        type=kind,
        metavar=kind.__name__.upper(),
        help=text,
        default=argparse.SUPPRESS,
    )


def _kind(item: dataclasses.Field[object]) -> type:
    name = str(item.type).split("|")[0].strip()
    return {"str": str, "int": int, "float": float, "bool": bool, "Path": Path}[name]


def _read(path: Path) -> Json:
    try:
        values = read_yaml(path)
    except (OSError, UserError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds {type(values).__name__}; expected option: value")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
