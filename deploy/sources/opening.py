"""From a word on the command line to the source that it names."""

from __future__ import annotations

import glob
import re
import stat
from pathlib import Path

from deploy.options import Options
from deploy.sources.files import FileSource, FolderSource, PipeSource, RawSource
from deploy.sources.live import CameraSource, NetworkSource
from deploy.sources.source import IMAGES, Source, is_image, natural_order
from medisseg.errors import UserError
from medisseg.text import without_password

SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "rtp")


def open_source(given: str, options: Options) -> Source:
    """Return the source that a word on the command line names; files are checked at once.

    Raises:
        UserError: Nothing there, or nothing in it that is a video.
    """
    if given == "-":
        return RawSource(options)
    if re.fullmatch(r"\d{1,3}", given) and not Path(given).exists():
        return CameraSource(int(given))
    scheme = given.split("://", 1)[0].lower() if "://" in given else ""
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
    path = Path(given)
    if path.is_dir():
        found = [file for file in path.iterdir() if is_image(file)]
    elif path.exists():
        if stat.S_ISFIFO(path.stat().st_mode):
            return PipeSource(path, options.realtime, options.deinterlace)
        if path.suffix.lower() not in IMAGES:
            return FileSource(path, options.realtime, options.deinterlace)
        found = [path]
    else:
        matches = [Path(match) for match in glob.glob(given)]
        found = [file for file in matches if is_image(file)]
        if not matches:
            shown = f"***@{given.rpartition('@')[2]}" if "@" in given else given  # a login, perhaps
            raise UserError(f"{shown}: no such file, folder or camera")
    if not found:
        raise UserError(f"{given} holds no images; expected some of {', '.join(IMAGES)}")
    return FolderSource(given, natural_order(found), options.input_fps, options.realtime)
