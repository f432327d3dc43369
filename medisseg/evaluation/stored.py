"""Masks that another system left in a folder, scored as a network of ours is.

Whatever made them (a commercial detector, SAM 3, an official release): one file an image, named as
it. For one class, files of 0 and 1 are masks and all others grey values of a probability; for
several classes, files of class indices. The value range is decided once for the whole folder.
Of slices of volumes a NIfTI file a case will do, too, on the voxels of its image.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.convention import InputConvention
from medisseg.data.folder import Sample, resize_mask
from medisseg.data.medical import nifti_volume
from medisseg.data.reading import IMAGE_SUFFIXES, BadFile, open_picture
from medisseg.data.volumes import SLICE
from medisseg.errors import UserError
from medisseg.evaluation.evaluate import Evaluation, Row, score
from medisseg.evaluation.volumes import VolumeScores
from medisseg.picture import Picture
from medisseg.predictor import Logits, Prediction

ENDINGS = re.compile(
    r"[_-](pred|prediction|predicted|mask|seg|segmentation|output|out|result|prob)$", re.I
)
NIFTI = re.compile(r"\.nii(\.gz)?$", re.I)
# Probabilities of 8-bit files are multiples of 1 / 255; certainty is given a finite logit.
CERTAIN = 1e-4


class StoredMasks:
    """Another system's masks of a data folder's images.

    Args:
        folder: Image files, at any depth, named as the images (or ``NAME_pred``, ``NAME_mask``).
        classes: 1, or the number of classes with the background.
        size: The protocol's resolution (height, width), at which "network" scores are taken.
        threshold: Probability above which a pixel is foreground.

    Raises:
        UserError: No such folder, no images in it, or a threshold or size that is none.

    Example:
        >>> stored = StoredMasks("sam3-on-kvasir", size=(256, 256))
        >>> stored.evaluate(SegmentationFolder("kvasir-seg", "val")).summary()["mdsc"]
    """

    def __init__(
        self,
        folder: str | Path,
        classes: int = 1,
        size: tuple[int, int] = (256, 256),
        threshold: float = 0.5,
    ) -> None:
        self.folder, self.classes, self.threshold = Path(folder), classes, threshold
        try:
            self.convention = InputConvention(size=size)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not 0 < threshold < 1:
            raise UserError(f"threshold is {threshold}; expected a probability within (0, 1)")
        self.name = f"masks in {self.folder.name}"
        if not self.folder.is_dir():
            raise UserError(f"{folder} is no folder of masks")
        found = [
            path
            for path in sorted(self.folder.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
        ]
        volumes = sorted(p for p in self.folder.rglob("*") if NIFTI.search(p.name))
        self.files, self.volumes = _by_name(found), _by_name(volumes)
        self._volume: tuple[Path, npt.NDArray[np.float32]] | None = None  # the last one read
        if not found and not volumes:
            raise UserError(f"{folder} holds no masks; expected files {', '.join(IMAGE_SUFFIXES)}")

    def check(self, names: Sequence[str]) -> None:
        """Refuse a folder that lacks an image's mask: a missing mask is no empty one.

        Raises:
            UserError: Masks are missing (the first is named, with the file that is nearest), or one
            file would be that of two images, or two files that of one.
        """
        sources = {name: self._source(name) for name in names}
        missing = [name for name, source in sources.items() if source is None]
        if missing:
            near = difflib.get_close_matches(missing[0], self.files, n=1)
            hint = f" (nearest: {self.files[near[0]][0].name})" if near else ""
            raise UserError(
                f"{self.folder} has no mask of {len(missing)} of {len(names)} images, such as "
                f"{missing[0]}{hint}; give one file an image, or the split that was predicted"
            )
        of: dict[object, str] = {}
        for name, source in sources.items():
            if (other := of.setdefault(source, name)) != name:
                assert source is not None
                raise UserError(
                    f"{source[0]} would be the mask of {other} and of {name}; expected one file an "
                    "image, in folders as the images'"
                )

    @cached_property
    def top(self) -> float:
        """The value that means certainty: 1, 255 or 65535, by the folder's largest value."""
        reads = ((_read, self.files), (nifti_volume, self.volumes))
        largest = max(
            int(read(path).max())
            for read, table in reads
            for path in dict.fromkeys(path for paths in table.values() for path in paths)
        )
        return 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0

    def _source(self, name: str) -> tuple[Path, int | None] | None:
        """Return the file that an image's mask is in, and its place in a volume."""
        folders, _, short = name.rpartition("/")
        if short in self.files:
            return self._one(name, folders, self.files[short]), None
        match = SLICE.match(short)
        if match is None or match["case"] not in self.volumes:
            return None
        return self._one(name, folders, self.volumes[match["case"]]), int(match["number"])

    def _one(self, name: str, folders: str, paths: Sequence[Path]) -> Path:
        """Return the file of an image: of several, the one in folders named as the image's."""
        wanted = folders.split("/")[::-1] if folders else []

        def agreeing(path: Path) -> int:
            there = iter(path.relative_to(self.folder).parent.parts[::-1])
            return sum(part in there for part in wanted)  # the iterator moves on: in their order

        most = max(map(agreeing, paths))
        left = [path for path in paths if agreeing(path) == most]
        if len(left) > 1:
            one, two = (path.relative_to(self.folder) for path in left[:2])
            raise UserError(
                f"{self.folder} has {len(left)} masks of {name}: {one} and {two}; expected one "
                "file an image, or folders as the images'"
            )
        return left[0]

    def _values(self, name: str) -> tuple[Path, npt.NDArray[np.number]]:
        source = self._source(name)
        if source is None:
            raise UserError(f"{self.folder} has no mask of {name}")
        path, place = source
        if place is None:
            return path, _read(path)
        if self._volume is None or self._volume[0] != path:
            self._volume = path, nifti_volume(path)
        volume = self._volume[1]
        if place >= len(volume):
            raise BadFile(f"{path} has {len(volume)} slices, but {name} is one of its image")
        return path, volume[place]

    def predict(self, sample: Sample) -> Prediction:
        """Return the stored mask of an image at the image's size, as logits [K, H, W].

        Raises:
            UserError: Not readable, of another shape, or of a class that is none.
        """
        path, values = self._values(sample.name)
        height, width = sample.mask.shape
        if abs(values.shape[0] * width - values.shape[1] * height) > max(values.shape) * 2:
            raise BadFile(
                f"{path} is {values.shape[1]} x {values.shape[0]}, its image {width} x {height}; "
                "expected the same shape, at any size"
            )
        if self.classes > 1:
            if values.max() >= self.classes:
                raise BadFile(
                    f"{path} holds class {values.max()}; expected indices 0 to {self.classes - 1}"
                )
            maps = np.stack([values == index for index in range(self.classes)]).astype(np.float32)
            return Prediction(resize(maps, (height, width)), self.threshold)
        stated = resize(values[None].astype(np.float32) / self.top, (height, width))
        kept = np.clip(stated, CERTAIN, 1 - CERTAIN)
        return Prediction(np.log(kept / (1 - kept)).astype(np.float32), self.threshold)

    def evaluate(
        self,
        samples: Sequence[Sample],
        groups: Mapping[str, str] | None = None,
        seed: int = 0,
        advance: Callable[[int], object] = lambda images: None,
        volumes: VolumeScores | None = None,
    ) -> Evaluation:
        """Score every sample's stored mask; as :func:`medisseg.evaluation.evaluate.evaluate`."""

        def rows() -> Iterator[Row]:
            for sample in samples:
                native = self.predict(sample)
                small = self._at_network(native)
                one = _Answer(self.convention, self.classes, self.threshold, native)
                group = (groups or {}).get(sample.name, "")
                yield score(one, sample, small, group, volumes=volumes)
                advance(1)

        return Evaluation(tuple(rows()), seed, volumes)

    def _at_network(self, native: Prediction) -> Logits:
        """Return logits at the protocol's resolution; a hard mask is resized as references are."""
        if self.classes == 1 and len(np.unique(native.logits)) > 2:
            return resize(native.logits, self.convention.size)
        small = resize_mask(native.mask, self.convention)
        sure = np.float32(np.log(1 / CERTAIN - 1))
        if self.classes == 1:
            return np.where(small > 0, sure, -sure)[None]
        return np.stack([np.where(small == k, sure, 0) for k in range(self.classes)])


@dataclass(frozen=True)
class _Answer:
    """One image's stored mask behind what :func:`score` asks of a predictor."""

    convention: InputConvention
    classes: int
    threshold: float
    native: Prediction

    def restore(
        self, logits: Logits, frame_size: tuple[int, ...], picture: Picture | None = None
    ) -> Prediction:
        """Return the mask as it was stored, whatever was made of it at the network's size."""
        return self.native


def _by_name(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Return every image's name, its file's with or without such as ``_pred``, with its files."""
    table: dict[str, list[Path]] = {}
    shortened: set[str] = set()  # a file of an image's very name goes before NAME_pred
    for path in paths:
        name = NIFTI.sub("", path.name) if NIFTI.search(path.name) else path.stem
        table.setdefault(name, []).append(path)
    for name, exact in list(table.items()):
        if (short := ENDINGS.sub("", name)) not in table or short in shortened:
            table.setdefault(short, []).extend(exact)
            shortened.add(short)
    return table


def resize(maps: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize maps [K, h, w] bilinearly (half-pixel centres) to (height, width)."""
    import cv2

    if maps.shape[1:] == size:
        return maps
    return np.stack([cv2.resize(m, size[::-1], interpolation=cv2.INTER_LINEAR) for m in maps])


def _read(path: Path) -> npt.NDArray[np.integer]:
    """Return a file's values [H, W]: grey, palette indices, or the first of equal channels."""
    from PIL import Image

    try:
        with open_picture(path) as image:
            values = np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadFile(f"{path} is not a readable mask: {error}") from error
    if values.ndim == 3:
        if np.any(values[..., :1] != values[..., : min(3, values.shape[2])]):
            raise BadFile(f"{path} has colours; expected grey values or class indices")
        values = values[..., 0]
    return values.astype(np.uint8) if values.dtype == np.bool_ else values
