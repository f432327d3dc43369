"""A folder of images and masks, as people have them, as a sequence of samples.

Found: ``images`` and ``masks`` (and the names other sets use for them), several such pairs, or
images and masks side by side; masks named as their image, with or without a usual suffix.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medisseg.convention import InputConvention
from medisseg.data import splits
from medisseg.data.reading import IMAGE_SUFFIXES, BadFile, read_image, read_mask
from medisseg.data.volumes import Slice, find_slices, read_slice
from medisseg.errors import UserError

MASK_ENDINGS = re.compile(
    r"[_-](segmentation|mask|masks|anno|annotation|gt|groundtruth|label|labels|seg)$", re.I
)
MASK_FOLDER = re.compile(
    r"mask|label|annot|ground.?truth|segmentation|^(gt|seg|anno)$|_(gt|seg)$", re.I
)
IMAGE_FOLDER = re.compile(r"images?|imgs?|original|data|jpegimages", re.I)
# Files that sets ship among the images and that are neither image nor mask.
IGNORED = re.compile(r"_superpixels$|^\.", re.I)
SHOWN = 5


@dataclass(frozen=True)
class Sample:
    """One labelled image: uint8 RGB [H, W, 3], class indices uint8 [H, W], and its name."""

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    name: str


@dataclass(frozen=True)
class Files:
    """Where a name's image and mask are, or which slice of a volume it is."""

    image: Path
    mask: Path | None
    slice: Slice | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is a mask."""
        return self.mask is not None or self.slice is not None


class SegmentationFolder(Sequence[Sample]):
    """The samples of one split of a data folder, read when they are asked for.

    Args:
        root: Data folder.
        split: Name of a list (``val`` finds ``val.txt``), path of a list, "all", or names
            themselves. Without any list in the folder, train, val and test are a seeded split.
        classes: 1 (mask values 0 and 1) or the number of classes, background included.
        labels: "auto", or "classes" to keep indices also for one class.
        seed: Of the seeded split.
        groups: Table of sequences or patients that a seeded split keeps together.

    Raises:
        UserError: No images, masks missing, an unknown split or an empty one.

    Example:
        >>> folder = SegmentationFolder("kvasir-seg", "val")
        >>> folder[0].mask.max(), len(folder)
        (1, 120)
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Sequence[str] = "all",
        *,
        classes: int = 1,
        labels: str = "auto",
        seed: int = 0,
        groups: str | None = None,
    ) -> None:
        self.root = Path(root)
        self.classes = classes
        self.indices = labels == "classes"
        self.files = find_files(self.root)
        if isinstance(split, str):
            names = splits.names(self.root, split, self.images(), seed=seed, groups=groups)
        else:
            names = list(split)
        self.names = tuple(names)
        self._check(split if isinstance(split, str) else "names")

    def _check(self, split: str) -> None:
        if not self.names:
            raise UserError(f"split {split!r} of {self.root} is empty; expected at least one image")
        unknown = [name for name in self.names if name not in self.files]
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.files, n=1)
            raise UserError(
                f"{listed(unknown)} of split {split!r}: no such image in {self.root}"
                + (f"; the nearest is {near[0]}" if near else "")
            )
        bare = [name for name in self.names if not self.files[name].labelled]
        if bare:
            raise UserError(
                f"{self.root}: no mask for {listed(bare)} ({len(bare)} of {len(self.names)}); "
                "expected the image's name, optionally with _mask, _segmentation or _anno"
            )

    def images(self) -> dict[str, Path]:
        """Return every image of the folder, of whatever split, by name."""
        return {name: files.image for name, files in self.files.items()}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        name = self.names[index]
        files = self.files[name]
        if files.slice is not None:
            return Sample(*read_slice(files.slice, self.classes), name)
        assert files.mask is not None
        image = read_image(files.image)
        mask = read_mask(files.mask, self.classes, self.indices)
        if image.shape[:2] != mask.shape:
            raise BadFile(
                f"{files.mask} is {mask.shape[1]}x{mask.shape[0]} but its image "
                f"{image.shape[1]}x{image.shape[0]}; both must have the same size"
            )
        return Sample(image, mask, name)


def load(
    folder: Sequence[Sample], convention: InputConvention, threads: int = 2
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Decode and resize a whole folder once.

    Returns:
        Images uint8 RGB [N, 3, h, w] at the convention's size (not yet normalised) and class
        indices uint8 [N, h, w].

    Raises:
        UserError: Some files cannot be used; names the first ones and how many.
    """
    plain = InputConvention(
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=convention.size, resize=convention.resize
    )
    height, width = convention.size
    images = np.empty((len(folder), 3, height, width), np.uint8)
    masks = np.empty((len(folder), height, width), np.uint8)

    def read(index: int) -> str | None:
        try:
            sample = folder[index]
        except BadFile as error:
            return str(error)
        images[index] = np.rint(np.clip(plain.preprocess(sample.image), 0, 1) * 255)
        masks[index] = resize_mask(sample.mask, convention)
        return None

    with ThreadPoolExecutor(threads) as pool:
        bad = [message for message in pool.map(read, range(len(folder))) if message]
    if bad:
        more = f" (and {len(bad) - 1} more of {len(folder)})" if len(bad) > 1 else ""
        raise UserError(bad[0] + more)
    return images, masks


def resize_mask(mask: npt.NDArray[np.uint8], convention: InputConvention) -> npt.NDArray[np.uint8]:
    """Bring class indices [H, W] to the network's size as its images are: nearest, [h, w]."""
    top, left, height, width = convention.content(mask.shape)
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.int64)
    resized = np.zeros(convention.size, np.uint8)
    resized[top : top + height, left : left + width] = mask[rows[:, None], columns]
    return resized


def find_files(root: Path) -> dict[str, Files]:
    """Return every image below ``root`` by name, with its mask where there is one.

    Without images, the slices of the volumes below it.

    A name is the file's stem; where two folders (``train`` and ``test``, say) have files of one
    stem, it is the folders that tell them apart and the stem: ``train/17``.

    Raises:
        UserError: No such folder, no images in it, or two images of one name in one folder.
    """
    if not root.is_dir():
        raise UserError(f"no data folder {root}; expected a folder with images/ and masks/")
    images, masks = _candidates(root)
    if not images and (slices := find_slices(root)):
        return {name: Files(part.path, None, part) for name, part in slices.items()}
    if not images:
        kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise UserError(f"no images in {root}; expected images/ and masks/ with files of {kinds}")
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in masks:
        by_stem[path.stem].append(path)
        if (bare := MASK_ENDINGS.sub("", path.stem)) != path.stem:
            by_stem[bare].append(path)
    stems = Counter(path.stem for path in images)
    found: dict[str, Files] = {}
    for path in sorted(images, key=lambda file: natural(file.relative_to(root).as_posix())):
        name = path.stem if stems[path.stem] == 1 else _qualified(path, root)
        if name in found:
            raise UserError(
                f"two images named {name}: {found[name].image} and {path}; names must differ"
            )
        found[name] = Files(path, _nearest(by_stem.get(path.stem, []), path))
    return found


def _qualified(path: Path, root: Path) -> str:
    """Return the stem behind the folders that are not just called images."""
    folders = path.parent.relative_to(root).parts
    kept = [part for part in folders if not IMAGE_FOLDER.fullmatch(part)]
    return "/".join([*kept, path.stem])


def _nearest(masks: Sequence[Path], image: Path) -> Path | None:
    """Return the mask whose path shares the most leading folders with the image's."""

    def shared(mask: Path) -> int:
        pairs = zip(mask.parts, image.parts, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    return max(masks, key=shared) if masks else None


def _candidates(root: Path) -> tuple[list[Path], list[Path]]:
    """Return image and mask files: of images/ and masks/ alone when both are there, else of all."""
    tops = [root]
    folders = {folder.name.lower(): folder for folder in root.iterdir() if folder.is_dir()}
    if "images" in folders:
        marked = [folder for name, folder in folders.items() if MASK_FOLDER.search(name)]
        tops = [folders["images"], *marked] if marked else tops
    images: list[Path] = []
    masks: list[Path] = []
    for top in tops:
        for path in sorted(top.rglob("*")):
            if path.suffix.lower() not in IMAGE_SUFFIXES or IGNORED.search(path.stem):
                continue
            folder = path.parent.relative_to(root).as_posix().split("/")[-1]
            is_mask = MASK_FOLDER.search(folder) or MASK_ENDINGS.search(path.stem)
            (masks if is_mask else images).append(path)
    return images, masks


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", name)]


def listed(names: Sequence[str]) -> str:
    """Return the first few names for a message, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more
