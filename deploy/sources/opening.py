"""Opening of sources by their names on the command line."""

from __future__ import annotations

import glob
import re
import stat
from pathlib import Path

from deploy.options import Options
from deploy.sources.files import VIDEOS, ChainSource, FileSource
from deploy.sources.images import ImagesSource
from deploy.sources.live import CameraSource, NetworkSource
from deploy.sources.pipes import FollowSource, PipeSource, RawSource
from deploy.sources.source import IMAGES, Source, holds_image, is_image, natural_order
from medisseg.errors import UserError
from medisseg.text import without_password

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "rtp")


def open_source(given: str, options: Options) -> Source:
    """Return the source that a word on the command line names; files are checked at once.

    Raises:
        UserError: Nothing there, or nothing in it that is a video.
    """
    scheme = given.split("://", 1)[0].lower() if "://" in given else ""
    camera = re.fullmatch(r"\d{1,3}|/dev/video\d{1,3}", given)
    growing = not (camera or scheme or given == "-")
    if options.follow and not (growing and Path(given).is_file()):
        raise UserError(f"--follow goes with a file that grows; got {without_password(given)}")
    if given == "-":
        return RawSource(options)
    if camera and (given.startswith("/dev/") or not Path(given).exists()):
        return CameraSource(
            int(given) if given.isdigit() else given,
            options.size("camera_size"),
            options.camera_fps,
            options.camera_format,
        )
    if scheme in SCHEMES:
        return NetworkSource(given, options.timeout_s, options.deinterlace)
    if scheme == "srt":
        raise UserError(
            f"{without_password(given)}: this FFmpeg has no SRT. Let ffmpeg bring it: ffmpeg -i "
            "'srt://HOST:PORT' -c copy -f mpegts udp://127.0.0.1:PORT2, and open "
            "udp://127.0.0.1:PORT2"
        )
    if scheme:
        raise UserError(
            f"{without_password(given)}: unknown address; expected one of {', '.join(SCHEMES)}://"
        )
    return _open_path(given, options)


def _open_path(given: str, options: Options) -> Source:
    path, more = Path(given), (options.realtime, options.deinterlace)
    if path.is_dir():
        return _open_all(given, list(path.iterdir()), options)
    if not path.exists():
        matches = [Path(match) for match in glob.glob(given)]
        if not matches:
            shown = f"***@{given.rpartition('@')[2]}" if "@" in given else given  # a login, perhaps
            raise UserError(f"{without_password(shown)}: no such file, folder or camera")
        return _open_all(given, matches, options)
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode):
        return PipeSource(path, *more)
    if not stat.S_ISREG(mode):
        raise UserError(f"{given} is a device; expected a file, a folder or /dev/videoN")
    if options.follow:
        return FollowSource(path, *more, options.timeout_s)
    if holds_image(path):
        return _images(given, [path], options)
    return FileSource(path, *more)


def _open_all(given: str, found: list[Path], options: Options) -> Source:
    """Return the images, or the videos, among some files."""
    files = [file for file in found if file.is_file()]
    images = [file for file in files if is_image(file)]
    videos = [
        file for file in files if file.suffix.lower() in VIDEOS and not file.name.startswith(".")
    ]
    if images and videos:
        raise UserError(
            f"{given} holds {len(images)} images and {len(videos)} videos; choose one kind, such "
            f"as '{given.rstrip('/')}/*{videos[0].suffix}'"
        )
    if images:
        return _images(given, images, options)
    if videos:
        return ChainSource(given, natural_order(videos), options.realtime, options.deinterlace)
    raise UserError(
        f"{given} holds no images and no videos; expected some of {', '.join((*IMAGES, *VIDEOS))}"
    )


def _images(given: str, paths: list[Path], options: Options) -> Source:
    ordered = natural_order(paths)
    return ImagesSource(given, ordered, options.input_fps, options.realtime, options.deinterlace)
