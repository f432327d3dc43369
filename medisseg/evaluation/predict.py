"""Segment images that nobody has labelled: masks, overlays and probabilities as files.

A mask has the size of its image as it is looked at: an EXIF rotation is applied before.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medisseg.data.layout import LITTER, MASK_FOLDER, find_images, natural
from medisseg.data.reading import (
    IMAGE_SUFFIXES,
    Range,
    frames_of,
    is_image,
    read_image,
    value_range,
)
from medisseg.errors import UserError
from medisseg.evaluation.pictures import class_color, overlay
from medisseg.files import in_utf8, replacing
from medisseg.labels import Label
from medisseg.picture import Picture
from medisseg.predictor import Prediction, Predictor


@dataclass(frozen=True)
class Job:
    """One image to segment: its file, and the name (folders kept, no suffix) of what is written.

    ``frame`` is its place in a file that holds several.
    """

    image: Path
    name: Path
    frame: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the mask's size, each class's pixels and the picture, or the error."""

    job: Job
    height: int = 0
    width: int = 0
    pixels: tuple[int, ...] = ()
    picture: Picture | None = None
    error: str = ""


def find_jobs(inputs: Sequence[str], out: Path) -> list[Job]:
    """Return the images that files, folders (searched below) and globs name, each once.

    An image below a folder keeps its place below that folder; any other keeps its name alone. A
    folder is searched as a data folder is: its masks and litter are left out, at any depth.

    Raises:
        UserError: An input that is nothing, a folder without images, two images that would be
            written to the same mask, or a mask that would replace an image.
    """
    jobs: dict[Path, Job] = {}
    for text in inputs:
        found = [one for job in _expand(text) for one in _frames(job)]
        if not found:
            kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
            raise UserError(f"no images in {text}; expected files of {kinds}")
        for job in found:
            other = jobs.setdefault(job.name, job)
            if other.image.resolve() != job.image.resolve():
                raise UserError(
                    f"{other.image} and {job.image} would both be written to "
                    f"{out / 'masks' / job.name}.png; predict them to two --out folders"
                )
    masks = {(out / "masks" / f"{name}.png").resolve() for name in jobs}
    for job in jobs.values():
        if job.image.resolve() in masks:
            raise UserError(f"{job.image} would be replaced by a mask; choose another --out")
    return list(jobs.values())


def _expand(text: str) -> list[Job]:
    path = in_utf8(Path(text))
    if path.is_dir():
        top = _images(path)
        return [Job(p, p.relative_to(top).with_suffix("")) for p in find_images(top)]
    if path.is_file():
        return [Job(path, Path(path.stem))]
    if not glob.has_magic(text):
        raise UserError(f"{text} does not exist; expected an image, a folder or a glob")
    files = sorted((Path(name) for name in glob.glob(text, recursive=True)), key=_by_name)
    return [Job(in_utf8(p), Path(p.stem)) for p in files if p.is_file() and _is_image(p)]


def _frames(job: Job) -> list[Job]:
    """Return a job for every image of a file."""
    count = frames_of(job.image)
    if count == 1:
        return [job]
    name = job.name.as_posix()
    return [Job(job.image, Path(f"{name}_slice{k:03}"), k) for k in range(count)]


def _by_name(path: Path) -> list[tuple[int, str]]:
    return natural(path.as_posix())


def _is_image(path: Path) -> bool:
    return is_image(path) and not LITTER.search(path.name)


def _images(folder: Path) -> Path:
    """Return a data folder's ``images``, so that its masks are not segmented, else the folder."""
    inside = [part.name for part in folder.iterdir() if part.is_dir()]
    labelled = "images" in inside and any(MASK_FOLDER.search(name) for name in inside)
    return folder / "images" if labelled else folder


def predict(
    predictor: Predictor,
    jobs: Sequence[Job],
    out: Path,
    overlays: bool = False,
    probabilities: bool = False,
    batch: int = 8,
    advance: Callable[[int], object] = lambda images: None,
) -> list[Outcome]:
    """Segment images and write the results; an unreadable one is reported, the others are done.

    Every file is whole or absent, and an image's mask is written last: where there is a mask, the
    overlay and the probabilities are there too.

    Returns:
        What became of each job, in order.
    """
    outcomes = []
    scale = value_range(list(dict.fromkeys(job.image for job in jobs)))
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        read = [(job, *_read(job, scale, predictor)) for job in part]
        images = [place.crop(image) for _, image, place, _ in read if image is not None]
        logits = iter(predictor.logits(images) if images else ())
        for job, image, picture, error in read:
            if image is None:
                outcomes.append(Outcome(job, error=error))
                continue
            prediction = predictor.restore(next(logits), image.shape[:2], picture)
            _write(prediction, image, job.name, out, overlays, probabilities, predictor.labels)
            height, width = prediction.mask.shape
            pixels = np.bincount(prediction.mask.ravel(), minlength=max(2, predictor.classes))
            outcomes.append(Outcome(job, height, width, tuple(pixels[1:].tolist()), picture))
        advance(len(part))
    return outcomes


def _read(
    job: Job, scale: Range | None, predictor: Predictor
) -> tuple[npt.NDArray[np.uint8] | None, Picture, str]:
    """Return an image and the part of it to segment, or None and the error."""
    try:
        image = read_image(job.image, scale, job.frame)
        return image, predictor.find_picture(image), ""
    except UserError as error:
        text = str(error)
        named = text if str(job.image) in text else f"{job.image}: {text}"
        return None, Picture(0, 0, 0, 0), named


def _write(
    prediction: Prediction,
    image: npt.NDArray[np.uint8],
    name: Path,
    out: Path,
    overlays: bool,
    probabilities: bool,
    labels: Sequence[Label],
) -> None:
    if overlays:
        drawn = overlay(image, prediction.mask, labels)
        save(Image.fromarray(drawn), out / "overlays" / f"{name}.jpg")
    if probabilities:
        values = prediction.probability
        for index, plane in enumerate(values if values.ndim == 3 else values[None]):
            ending = f"-{index}" if values.ndim == 3 else ""
            scaled = np.rint(plane * 65535).astype(np.uint16)
            save(Image.fromarray(scaled), out / "probabilities" / f"{name}{ending}.png")
    picture = mask_picture(prediction.mask, len(prediction.logits), labels)
    save(picture, out / "masks" / f"{name}.png")


def mask_picture(
    mask: npt.NDArray[np.uint8], classes: int, labels: Sequence[Label] = ()
) -> Image.Image:
    """Return class indices [H, W] as they are stored: 0 and 255 for one class, else a palette."""
    if classes == 1:
        return Image.fromarray(mask * np.uint8(255))
    picture = Image.fromarray(mask)
    colors = [(0, 0, 0), *(class_color(index, labels) for index in range(1, 256))]
    picture.putpalette(np.array(colors, np.uint8).tobytes())
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all; the suffix says the format."""
    kind = {".jpg": "JPEG", ".png": "PNG"}[path.suffix]
    with replacing(path) as temporary:
        picture.save(temporary, kind, **({"quality": 92} if kind == "JPEG" else {}))


def write_list(outcomes: Sequence[Outcome], out: Path, labels: Sequence[Label] = ()) -> None:
    """Write ``predictions.csv``: image, mask, size and foreground, or the error of a failure; of
    several classes the share of each; the part that was segmented."""
    several = labels if len(labels) > 1 else ()
    with replacing(out / "predictions.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["image", "mask", "height", "width", "foreground", "share", "error"]
            + [*(f"share {label.name}" for label in several), "picture"]
        )
        for item in outcomes:
            size = item.height * item.width
            mask = "" if item.error else f"masks/{item.job.name.as_posix()}.png"
            found = sum(item.pixels)
            share = f"{found / size:.6f}" if size else ""
            measured = [item.height, item.width, found] if size else ["", "", ""]
            each = [f"{count / size:.6f}" for count in item.pixels] if size else [""] * len(several)
            picture = ",".join(map(str, item.picture.to_list())) if item.picture else ""
            shares = each[: len(several)]
            writer.writerow([item.job.image, mask, *measured, share, item.error, *shares, picture])
