"""Write a phantom as a data folder: stills with masks, lists, and a video with its masks."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.phantom.camera import Exposure, develop, expose, gain, smear
from medisseg.phantom.scenes import KINDS, Shot, make_passage, make_still
from medisseg.progress import bars
from medisseg.schema import Json
from medisseg.video import add_h264

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream
    from rich.progress import Progress

STILLS, MOVES, SENSOR = 1, 2, 3  # streams of random numbers
MANIFEST = "phantom.json"
PASSAGE = 60  # frames, about
SHUTTER = 0.45
VALIDATION = 6  # every so many stills one is for validation
Picture = npt.NDArray[np.uint8]
Item = TypeVar("Item")
Result = TypeVar("Result")


def write(
    out: Path,
    frames: int,
    images: int,
    seed: int,
    size: tuple[int, int] = (256, 256),
    fps: int = 25,
) -> None:
    """Write ``images`` stills and a video of ``frames`` frames to the folder ``out``.

    Written: ``images/*.jpg``, ``masks/*.png`` (0 and 255), ``train.txt``, ``val.txt``, and
    ``video.mp4``, ``video-masks/000000.png`` and on, and ``phantom.json``: what is where.
    The same arguments give the same files. Scenes of the lists and of the video are different.

    Args:
        out: Folder that does not exist, is empty, or holds an earlier phantom, which is replaced.
        frames, images: How many; at least one of them positive.
        seed: Not negative.
        size: Height and width in pixels, even, at least 64.
        fps: Frames a second of the video.

    Raises:
        UserError: On any other input, and where the folder cannot be written.
    """
    manifest: Json = {
        "seed": seed,
        "size": list(size),
        "fps": fps,
        "images": {},
        "passages": [],
    }
    try:
        _check(out, frames, images, seed, size, fps)
        with replacing(out) as temporary, bars() as bar:
            temporary.mkdir()
            if images:
                _write_stills(temporary, images, seed, size, manifest, bar)
            if frames:
                _write_video(temporary, frames, seed, size, fps, manifest, bar)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror}; name a folder that can be made"
        ) from error


def _check(out: Path, frames: int, images: int, seed: int, size: tuple[int, int], fps: int) -> None:
    if frames < 0 or images < 0 or not frames + images:
        raise UserError(
            f"got {frames} frames and {images} images; a phantom needs at least one of them, "
            "e.g. --frames 200 --images 240"
        )
    if seed < 0 or not 1 <= fps <= 240:
        raise UserError(f"got seed {seed} and {fps} fps; expected seed >= 0 and 1 to 240 fps")
    if min(size) < 64 or size[0] % 2 or size[1] % 2 or max(size) > 8192:
        raise UserError(
            f"got size {size[0]}x{size[1]}; expected even HEIGHTxWIDTH from 64 to 8192, "
            "e.g. --size 256x256"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UserError(
            f"{out} already holds something that is no phantom; name a new or empty folder"
        )


def _in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map over threads, in order, with only a few items begun before they are asked for."""
    workers = min(os.cpu_count() or 1, 8)
    pool = ThreadPoolExecutor(workers)
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > workers:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _save(path: Path, picture: Picture) -> None:
    """Write RGB [H, W, 3] as JPEG or a mask [H, W] of 0 and 1 as PNG of 0 and 255."""
    import cv2

    if picture.ndim == 3:
        ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    else:
        ok, data = cv2.imencode(".png", picture * np.uint8(255))
    assert ok
    path.write_bytes(data.tobytes())


def still_kind(index: int) -> str | None:
    """Return the kind of polyp on still ``index``: in turn, and none on every twelfth."""
    return None if index % 12 == 7 else KINDS[(index + index // 12) % len(KINDS)]


def _write_stills(
    out: Path,
    count: int,
    seed: int,
    size: tuple[int, int],
    manifest: Json,
    bar: Progress,
) -> None:
    for name in ("images", "masks"):
        (out / name).mkdir()

    def still(index: int) -> tuple[Picture, Picture]:
        rng = np.random.default_rng([seed, STILLS, index])
        shot = make_still(rng, still_kind(index))
        light = expose(shot.scene, shot.tissue, shot.pose, shot.optics, size)
        amplification = gain(light, shot.optics)
        return develop(light.body, light.shine, amplification, shot.optics, rng), light.mask

    names = [f"phantom-{index:04d}" for index in range(count)]
    for index, (image, mask) in enumerate(
        bar.track(_in_order(still, range(count)), count, description="images")
    ):
        _save(out / "images" / f"{names[index]}.jpg", image)
        _save(out / "masks" / f"{names[index]}.png", mask)
        manifest["images"][names[index]] = still_kind(index)
    held = [i for i in range(count) if i % VALIDATION == VALIDATION // 2] or [count - 1]
    if count == 1:
        held = []
    for list_name, chosen in (("val", held), ("train", sorted(set(range(count)) - set(held)))):
        (out / f"{list_name}.txt").write_text("".join(f"{names[i]}\n" for i in chosen))


def plan_passages(frames: int) -> list[tuple[int, str | None]]:
    """Return length and kind of polyp of the video's passages.

    About one frame in twenty belongs to a first passage through healthy colon.
    """
    healthy = frames // 20 + 1 if frames > 3 else 0
    rest = frames - healthy
    count = max(round(rest / PASSAGE), min(rest // 8, len(KINDS)), 1)
    bounds = np.linspace(0, rest, count + 1).round().astype(int)
    plan: list[tuple[int, str | None]] = [(healthy, None)] if healthy else []
    return plan + [(int(n), KINDS[i % len(KINDS)]) for i, n in enumerate(np.diff(bounds))]


def _shots(frames: int, seed: int, manifest: Json) -> Iterator[Shot]:
    start = 0
    for index, (count, kind) in enumerate(plan_passages(frames)):
        manifest["passages"].append({"start": start, "frames": count, "kind": kind})
        yield from make_passage(np.random.default_rng([seed, MOVES, index]), count, kind)
        start += count


def _write_video(
    out: Path,
    count: int,
    seed: int,
    size: tuple[int, int],
    fps: int,
    manifest: Json,
    bar: Progress,
) -> None:
    import av

    def frame(shot: Shot) -> tuple[Shot, Exposure, float]:
        light = expose(shot.scene, shot.tissue, shot.pose, shot.optics, size)
        amplification = gain(light, shot.optics)
        if shot.before is not None:
            light.body, light.shine = smear(light, shot.pose, shot.before, shot.optics, SHUTTER)
        return shot, light, amplification

    (out / "video-masks").mkdir()
    exposed = _in_order(frame, _shots(count, seed, manifest))
    level = 1.0
    with av.open(str(out / "video.mp4"), "w") as container:
        stream = _open_stream(container, size, fps)
        for index, (shot, light, amplification) in enumerate(
            bar.track(exposed, count, description="video")
        ):
            # The automatic exposure follows within about a quarter of a second.
            level = amplification if shot.first else level + 0.15 * (amplification - level)
            rng = np.random.default_rng([seed, SENSOR, index])
            picture = develop(light.body, light.shine, level, shot.optics, rng)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            _save(out / "video-masks" / f"{index:06d}.png", light.mask)
        container.mux(stream.encode(None))


def _open_stream(container: OutputContainer, size: tuple[int, int], fps: int) -> VideoStream:
    # The same bytes every time: x264 divides the work by the number of its threads, and its
    # macroblock tree depended on where its buffers lay (7 files in 16 runs at 80x64).
    return add_h264(container, size, fps, crf="15", preset="fast", threads="1", mbtree="0")
